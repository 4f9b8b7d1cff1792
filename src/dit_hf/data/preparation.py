"""Image preparation: from an RGB image to the tensor that the VAE encodes (Dhariwal & Nichol 2021, as in DiT).

Legend: S side of the training resolution.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to `size` and crop the centre square.

    The image is first halved with a box filter while its short side is at least `2 * size`, then resized bicubically.
    The ImageNet references of ADM and DiT were made in this way.

    Args:
        image: RGB image of any size.
        size: Side of the square that is returned, in pixels.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate, scale and shift a picture on white by a little: at most 8 degrees, 8 % and 3 % of its side."""
    angle, scale = np.deg2rad(rng.uniform(-8, 8)), np.exp(rng.uniform(-0.08, 0.08))
    shift = rng.uniform(-0.03, 0.03, size=2) * image.width
    centre = np.array(image.size) / 2
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
    offset = centre - matrix @ (centre + shift)  # output pixel -> input pixel
    coefficients = np.hstack([matrix, offset[:, None]]).ravel().tolist()
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC, fillcolor=(255, 255, 255)
    )


def image_to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to a tensor of float32 in [-1, 1]."""
    array = np.array(image, dtype=np.float32)  # (S, S, 3)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1).contiguous()  # (3, S, S)
