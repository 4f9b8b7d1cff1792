"""Images to begin with: read as in training, encoded, noised, and put back where a mask keeps them.

Legend: B images, C latent channels, H and W latent height and width; height and width in pixels.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ModelMixin, SchedulerMixin
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from PIL import Image
from torch import Tensor

from ..images import to_rgb
from .latents import encode_images
from .schedulers import add_noise


class SourceImage(NamedTuple):
    """What an image-to-image pipeline starts from, as the user passed it."""

    image: PipelineImageInput
    strength: float
    mask_image: PipelineImageInput | None = None


class EncodedSource(NamedTuple):
    """A source image as tensors; a mask is 1 where something new is drawn, 0 where the image is kept."""

    pixels: Tensor  # (B or 1, 3, height, width) in [-1, 1]
    latents: Tensor  # (B or 1, C, H, W)
    mask: Tensor | None  # (B or 1, 1, height, width)
    latent_mask: Tensor | None  # (B or 1, 1, H, W)


def read_images(
    name: str, images: PipelineImageInput, processor: VaeImageProcessor, shape: tuple, num_channels: int
) -> Tensor:
    """Read images or masks, and resize them to the pixels of the latents.

    Args:
        name: Argument that the images were passed as.
        images: One image, or a list of them: PIL images of any mode, read as in training (16 bits, transparency, EXIF);
            arrays (height, width, channels) or tensors (channels, height, width) of uint8, or of numbers in 0..1.
        processor: Processor of diffusers for the values wanted.
        shape: Shape of the latents (B, C, H, W).
        num_channels: Number of channels wanted: 3 for colours, 1 for grey and for masks.

    Returns:
        Tensor (B or 1, channels, height, width) in float32 on the CPU.

    Raises:
        ValueError: If there is neither one image nor one per image to make, an image cannot be read, or it has other
            channels or values outside the limits.
    """
    many = isinstance(images, (list, tuple))
    read = [_as_numbers(name, image, processor, num_channels) for image in (images if many else [images])]
    height, width = (side * processor.config.vae_scale_factor for side in shape[2:])
    tensor = processor.preprocess(read if many else read[0], height, width).to(torch.float32)
    if len(tensor) not in (1, shape[0]):
        raise ValueError(f"{name} holds {len(tensor)} for {shape[0]} images: pass one, or one per image")
    if tensor.shape[1] != num_channels:
        raise ValueError(f"{name} has {tensor.shape[1]} channels: pass PIL images, or {num_channels} channels")
    if not tensor.abs().max() <= 1:  # also if a value is NaN
        raise ValueError(
            f"{name} has values up to {tensor.abs().max():g} after scaling: pass numbers in 0..1, or uint8"
        )
    return tensor


def _as_numbers(name: str, image: Any, processor: VaeImageProcessor, num_channels: int) -> Any:
    """Return an image in a form that diffusers' processor reads rightly: 8 bits of RGB or grey, or numbers in 0..1."""
    if isinstance(image, Image.Image):
        return to_rgb(image) if num_channels == 3 else to_rgb(image).convert("L")
    if not isinstance(image, (np.ndarray, Tensor)):
        return image
    kind = str(image.dtype).removeprefix("torch.")
    if kind.startswith(("float", "bfloat")):
        return image
    if kind not in ("uint8", "bool"):
        raise ValueError(f"{name} has values of type {kind}: pass PIL images, uint8, or numbers in 0..1")
    is_binary = kind == "bool" or (processor.config.do_binarize and image.max() <= 1)
    scale = 1 if is_binary else 255
    return image.astype(np.float32) / scale if isinstance(image, np.ndarray) else image.float() / scale


def encode_source(
    vae: ModelMixin | None, pixels: Tensor, mask: Tensor | None, vae_scale_factor: int, batch_size: int
) -> EncodedSource:
    """Encode a source image (B or 1, 3, height, width), and bring its mask (B or 1, 1, height, width) to latents' size.

    A latent pixel is drawn anew if any of its pixels is.
    """
    latent_mask = None if mask is None else F.max_pool2d(mask, vae_scale_factor)  # (B or 1, 1, H, W)
    return EncodedSource(pixels, encode_images(vae, pixels, batch_size), mask, latent_mask)


def put_back(latents: Tensor, source: EncodedSource, noise: Tensor, scheduler: SchedulerMixin, t: Tensor) -> Tensor:
    """Replace latents outside the mask by those of the source, at the noise level of t (1,).

    Source: Lugmayr et al. 2022, arXiv 2201.09865, eq. 8, without resampling.
    """
    if source.latent_mask is None:
        return latents
    known = add_noise(scheduler, source.latents, noise, t)
    return torch.where(source.latent_mask > 0, latents, known)  # (B, C, H, W)


def first_latents(
    scheduler: SchedulerMixin, noise: Tensor, source: EncodedSource | None, first_timestep: Tensor
) -> Tensor:
    """Return what the loop begins with (B, C, H, W): noise at the scheduler's scale, or a source with noise on it."""
    if source is not None:
        return add_noise(scheduler, source.latents, noise, first_timestep)
    # flow matching schedulers start at scale 1 and have no such field
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)
