"""One picture, one set of pixels: from encoded bytes, or an opened image, to an upright RGB image.

Training, evaluation and the image-to-image pipelines all read their images here. The first picture of an animation
counts; the EXIF orientation is applied; transparency is composited on white; 16-bit grey is scaled to 8 bits.
This file travels to the Hub as a part of `pipeline_dit.py`.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")  # none runs a program
MAX_PIXELS = 89_478_485  # Pillow warns beyond it: 256 MiB as RGB
MIN_SIDE = 2  # pixels
MAX_ASPECT = 100  # long side / short side: the short one is brought to S
DEEP_MODES = {"I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
# What Pillow's decoders have been seen to raise on damaged bytes.
DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, TypeError, AttributeError, LookupError, EOFError, ArithmeticError, RuntimeError,
    MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
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


class BadImage(ValueError):
    """Bytes that cannot be made an image to train on; the message says why."""


def read_orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or the EXIF block is broken."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except (ValueError, TypeError, SyntaxError, AttributeError, KeyError, OSError, struct.error):
        return 1


def open_checked(data: bytes) -> Image.Image:
    """Open an image and refuse, by what its header says, what would take too much memory.

    Raises:
        BadImage: if it is no image of a known format, or its sides are outside the limits.
    """
    try:
        file = Image.open(io.BytesIO(data), formats=FORMATS)
    except DECODER_ERRORS as error:
        raise BadImage(_reason(error, data)) from error
    short, long = sorted(file.size)
    if short * long > MAX_PIXELS or short < MIN_SIDE or long > MAX_ASPECT * short:
        raise BadImage(
            f"{file.width}x{file.height} pixels: at most {MAX_PIXELS} are decoded, of at least {MIN_SIDE} a side, the "
            f"long one at most {MAX_ASPECT} times the short one"
        )
    return file


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an opened image upright and convert it to RGB.

    Raises:
        BadImage: If the values of a grey image have no known white.
    """
    image.load()  # before the orientation: Pillow reports a damaged stream only once, and a PNG's EXIF reads it
    turn = UPRIGHT.get(read_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in DEEP_MODES:
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        image = canvas
    return image.convert("RGB")


def decode_image(data: bytes) -> Image.Image:
    """Decode PNG, JPEG, WebP ... bytes to an upright RGB image.

    Raises:
        BadImage: If the bytes are damaged, or as in `open_checked` and `to_rgb`.
    """
    with open_checked(data) as file:
        try:
            return to_rgb(file)
        except BadImage:
            raise
        except DECODER_ERRORS as error:
            raise BadImage(_reason(error, data)) from error


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, scaled; Pillow would clip it at 255."""
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise BadImage(f"grey values of mode {image.mode} outside 0..65535 have no known white")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8))  # 65535 = 257 * 255


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "no bytes"
    if isinstance(error, UnidentifiedImageError):
        return f"{len(data)} bytes of no known image format"
    return f"{len(data)} bytes that are no whole image: {type(error).__name__}: {' '.join(str(error).split())}"
