"""Image preparation: from encoded bytes to the tensor the VAE sees (Dhariwal & Nichol 2021, as DiT uses it).

Legend: S the side of the training resolution.
"""

import io
import struct

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ORIENTATION = 0x0112  # the tag of EXIF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or the EXIF block is broken."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except (ValueError, TypeError, SyntaxError, AttributeError, KeyError, OSError, struct.error):
        return 1


def decode_image(data: bytes) -> Image.Image:
    """Decode PNG, JPEG, WebP ... bytes to an upright RGB image; transparency is composited on white."""
    with Image.open(io.BytesIO(data)) as file:
        turn = UPRIGHT.get(read_orientation(file))
        image = file if turn is None else file.transpose(turn)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            canvas = Image.new("RGBA", image.size, "white")
            canvas.alpha_composite(image)
            image = canvas
        return image.convert("RGB")


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to `size` and crop the centre square.

    The image is first halved with a box filter while its short side is at least `2 * size`, then resized bicubically:
    how the ImageNet references of ADM and DiT were made.

    Args:
        image: RGB image of any size.
        size: side of the square that is returned, in pixels.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Turn, scale and shift a picture on white by a little: at most 8 degrees, 8 % and 3 % of its side."""
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
    """RGB image to float32 in [-1, 1]."""
    array = np.array(image, dtype=np.float32)  # (S, S, 3)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1).contiguous()  # (3, S, S)
