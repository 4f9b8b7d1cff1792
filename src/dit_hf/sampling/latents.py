"""Latents: their size, the noise that a call begins with, and the VAE between latents and images.

Legend: B images, C latent channels, H and W latent height and width; height and width in pixels.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel

from ..vae import AUTOENCODERS, is_supported_vae, mean_latents, scale_latents, unscale_latents
from .turns import lock_of

Generators = torch.Generator | list[torch.Generator] | None


def on_its_device(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model after moving it to its device, if it is offloaded.

    Accelerate's hooks do this only if `forward` is called, and sampling calls other methods as well.
    """
    if hasattr(model, "_hf_hook"):
        model._hf_hook.pre_forward(model)
    return model


def latent_size(config: Any, vae_scale_factor: int, height: int | None, width: int | None) -> tuple[int, int]:
    """Return height and width of the latents for images of a size in pixels.

    Args:
        config: Configuration of the transformer.
        vae_scale_factor: Number of pixels along one side of a latent pixel.
        height: Height of the images in pixels; None for the trained one.
        width: Width of the images in pixels; None for the trained one.

    Raises:
        ValueError: If a side is no multiple of the pixels of a patch.
    """
    unit = vae_scale_factor * config.patch_size
    size = []
    for name, pixels, trained in zip(("height", "width"), (height, width), config.sample_height_width, strict=True):
        if pixels is not None and (not isinstance(pixels, int) or pixels < unit or pixels % unit):
            raise ValueError(
                f"{name}={pixels!r}: pass a multiple of {unit}, the pixels of a patch{_nearest(pixels, unit)}"
            )
        size.append(trained if pixels is None else pixels // vae_scale_factor)
    return size[0], size[1]


def _nearest(pixels: Any, unit: int) -> str:
    """Propose the multiples of a unit around a number of pixels; nothing for what is no number."""
    if not isinstance(pixels, int):
        return ""
    below = max(pixels // unit, 1) * unit
    return f": {below}" if pixels < unit else f": {below} or {below + unit}"


def resized_positions(
    models: Sequence[PreTrainedModel], size: tuple[int, int], vae_scale_factor: int, policy: str | None
) -> list[Any]:
    """Return the positions of each model at a size; None for each if the size is the trained one.

    Args:
        models: Models of one trained size.
        size: Height and width of the latents.
        vae_scale_factor: Number of pixels along one side of a latent pixel.
        policy: "extend" or "interpolate", see `DiTModel.positions`; needed only at another size.

    Raises:
        ValueError: If the size is another one, and the policy is neither of the two.
    """
    trained = models[0].config.sample_height_width
    if size == trained:
        return [None] * len(models)
    if policy not in ("extend", "interpolate"):
        made, usual = ([side * vae_scale_factor for side in sides] for sides in (size, trained))
        raise ValueError(
            f"images of {made} pixels from a model of {usual}: pass position_policy='extend' or 'interpolate', not "
            f"{policy!r}"
        )
    return [on_its_device(model).positions(*size, policy) for model in models]


def check_noise(shape: tuple, generator: Any, latents: Tensor | None, device: torch.device) -> Generators:
    """Return the generators of a call as the samplers take them.

    Args:
        shape: Shape of the latents (B, C, H, W).
        generator: None, one generator, or a list or tuple of one per image.
        latents: Noise that the user passed, or None.
        device: Device of the model.

    Raises:
        ValueError: If there are not as many generators as images, one is no generator or on another device, or the
            noise has another shape.
    """
    many = isinstance(generator, (list, tuple))
    if many and len(generator) != shape[0]:
        raise ValueError(f"{len(generator)} generators for {shape[0]} images: pass one, or one per image")
    for one in generator if many else [] if generator is None else [generator]:
        if not isinstance(one, torch.Generator):
            raise ValueError(f"generator={one!r}: pass torch.Generator().manual_seed(...), or one per image")
        if one.device.type not in ("cpu", device.type):
            raise ValueError(f"a generator on {one.device} for a pipeline on {device}: use its device")
    if latents is not None and tuple(latents.shape) != shape:
        raise ValueError(f"latents have the shape {tuple(latents.shape)}, these images need {shape}")
    return list(generator) if many else generator


def draw_noise(shape: tuple, generator: Generators, latents: Tensor | None, device: torch.device) -> Tensor:
    """Return standard normal noise (B, C, H, W), drawn or as passed, in float32 whatever the model computes in."""
    noise = randn_tensor(shape, generator, device, torch.float32) if latents is None else latents
    return noise.to(device, torch.float32)


def check_vae(vae: ModelMixin, in_channels: int) -> None:
    """Refuse a VAE of another kind, or whose latents do not fit a model with `in_channels` channels."""
    if not is_supported_vae(vae):
        raise ValueError(f"{type(vae).__name__} is not supported as a VAE: choose from {', '.join(AUTOENCODERS)}")
    config = vae.config
    channels, factor = config.latent_channels, config.get("scaling_factor")
    if channels != in_channels:
        raise ValueError(f"the VAE has latent_channels={channels}, the model in_channels={in_channels}: unequal")
    if not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise ValueError(f"the VAE has scaling_factor={factor!r}: set a positive number, 1 over its latents' deviation")
    for name in ("latents_mean", "latents_std"):
        if config.get(name) and len(config[name]) != channels:
            raise ValueError(f"the VAE has {len(config[name])} numbers in {name} for {channels} latent channels")


@contextmanager
def vae_without_overflow(vae: ModelMixin) -> Iterator[torch.dtype]:
    """Bring a VAE to float32 for a while if it overflows in float16, as its `force_upcast` says; yield its dtype."""
    with ExitStack() as stack:
        stack.enter_context(lock_of(vae))  # another thread may be doing so
        if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
            vae.to(torch.float32)
            stack.callback(vae.to, torch.float16)
        else:
            stack.close()
        yield vae.dtype


@torch.no_grad()
def encode_images(vae: ModelMixin | None, pixels: Tensor, batch_size: int) -> Tensor:
    """Encode pixels (B, 3, height, width) in [-1, 1] to the mean of their latents (B, C, H, W), scaled as trained.

    Args:
        vae: VAE, or None for a model of pixels, whose latents the pixels are.
        pixels: Images.
        batch_size: Number of images that the VAE encodes at once.
    """
    if vae is None:
        return pixels
    with vae_without_overflow(vae) as dtype:
        chunks = pixels.to(dtype).split(batch_size)
        latents = torch.cat([mean_latents(vae.encode(chunk)).float() for chunk in chunks])
    return scale_latents(latents, vae.config)


@torch.no_grad()
def decode_latents(vae: ModelMixin | None, latents: Tensor, batch_size: int) -> Tensor:
    """Decode latents (B, C, H, W) to pixels (B, 3, height, width) in about [-1, 1].

    Args:
        vae: VAE, or None for a model of pixels, whose latents the pixels are.
        latents: Latents, scaled as trained.
        batch_size: Number of images that the VAE decodes at once.

    Raises:
        FloatingPointError: If a pixel is not finite.
    """
    if vae is None:
        return latents
    with vae_without_overflow(vae) as dtype:
        chunks = unscale_latents(latents, vae.config).to(dtype).split(batch_size)
        pixels = torch.cat([vae.decode(chunk).sample.float() for chunk in chunks])
    if not torch.isfinite(pixels).all():
        raise FloatingPointError(f"the VAE's images are not finite in {dtype}: call pipe.vae.float()")
    return pixels
