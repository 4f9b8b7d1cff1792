"""One picture, one set of pixels: from encoded bytes, a file or an opened image to an upright RGB image.

Training, evaluation and the image-to-image pipelines all read their images here:

- of an animation, the first picture counts;
- the EXIF orientation is applied;
- transparency is composited on white, whether it is an alpha channel, a palette entry or a transparent colour;
- grey of 16 bits or in floating point is scaled to 8 bits, of colour in 16 bits Pillow reads the high byte (at most one
  level from the rounded value), and CMYK is converted;
- colour profiles are not applied.

This file travels to the Hub as a part of `pipeline_dit.py`.
"""

import functools
import importlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

from .extras import PACKAGES, how_to_install, is_installed

# Format of Pillow -> suffixes of its files. None of these formats can run a program.
FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif", ".avifs"),
}
HEIC_PLUGIN, HEIC_SUFFIXES = "pillow_heif", (".heic", ".heif", ".hif")
HEIC_REMEDY = f"{how_to_install(PACKAGES[HEIC_PLUGIN])}, or convert them to JPEG"
MAX_PIXELS = 89_478_485  # Pillow warns beyond it: 256 MiB as RGB
MIN_SIDE = 2  # pixels
MAX_ASPECT = 100  # long side / short side, because the short side is resized to the training resolution
DEEP_MODES = {"I", "I;16", "I;16B", "I;16L", "I;16N", "F"}  # grey of more than 8 bits
# What Pillow's decoders have been seen to raise on damaged bytes.
DECODER_ERRORS = (
    OSError, ValueError, SyntaxError, TypeError, AttributeError, LookupError, EOFError, ArithmeticError, RuntimeError,
    MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
ORIENTATION = 0x0112  # tag of EXIF
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # tag of TIFF, and its value for a negative
BITS, COMPRESSION, CHANNELS, PLANES = 258, 259, 277, 284  # tags of TIFF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_NOTES = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}  # texts and profiles, which change no pixel here


class BadImage(ValueError):
    """Data that cannot be made an image to train on or to measure; the message says why."""


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Return the formats of Pillow that are read; HEIC is one of them if pillow-heif is installed."""
    if not is_installed(HEIC_PLUGIN):
        return tuple(FORMATS)
    importlib.import_module(HEIC_PLUGIN).register_heif_opener()
    return (*FORMATS, "HEIF")


def readable_suffixes() -> frozenset[str]:
    """Return the suffixes of the files that are taken for images, in lower case."""
    heic = HEIC_SUFFIXES if "HEIF" in readable_formats() else ()
    return frozenset((*(suffix for suffixes in FORMATS.values() for suffix in suffixes), *heic))


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file to an upright RGB image.

    Raises:
        BadImage: As `decode_image`; the message names the file.
        OSError: If the file cannot be read.
    """
    try:
        return decode_image(Path(path).read_bytes())
    except BadImage as error:
        raise BadImage(f"{path}: {error}") from error


def decode_image(data: bytes) -> Image.Image:
    """Decode the bytes of an image file to an upright RGB image.

    Raises:
        BadImage: If the bytes are damaged, of no known format, or as in `open_checked` and `to_rgb`.
    """
    try:
        return _decode(data)
    except BadImage:
        # Pillow refuses a PNG whose texts or colour profile take much memory; the picture is whole without them.
        bare = _without_notes(data)
        if len(bare) == len(data):
            raise
        return _decode(bare)


def open_checked(data: bytes) -> Image.Image:
    """Open an image, and judge by its header whether decoding it would take too much memory.

    Raises:
        BadImage: If the data are no image of a known format, or its sides are outside the limits.
    """
    try:
        file = Image.open(io.BytesIO(data), formats=readable_formats())
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

    Args:
        image: Image of any mode, decoded or not yet.

    Raises:
        BadImage: If the image cannot be decoded, or if its grey values have no known white. The message names the file
            that the image was opened from, if there is one.
    """
    try:
        return _to_rgb(image)
    except DECODER_ERRORS as error:
        reason = str(error) if isinstance(error, BadImage) else _in_one_line(error)
        name = getattr(image, "filename", "")
        raise BadImage(f"{name}: {reason}" if name else reason) from error


def _decode(data: bytes) -> Image.Image:
    with open_checked(data) as file:
        try:
            return _to_rgb(file)
        except BadImage:
            raise
        except DECODER_ERRORS as error:
            raise BadImage(_reason(error, data)) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    _refuse_planes(image)
    levels = _levels_of_a_sample(image)  # before the image is decoded: afterwards Pillow has forgotten it
    image.load()  # before the orientation: Pillow reports a damaged stream only once, and a PNG's EXIF reads it
    turn = TURNS.get(read_orientation(image))
    transparent = image.info.get("transparency")
    is_negative = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    # Pillow takes every CMYK file in JPEG for one of Adobe's, whose inks are stored inverted.
    is_plain_cmyk = image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in DEEP_MODES:
        image = _to_8_bit(image, is_negative, transparent)
    elif isinstance(transparent, int) and image.mode == "L" and levels > 1:
        image = _with_transparent(image, transparent * levels)
    elif isinstance(transparent, tuple) and max(transparent) > 255:  # a colour of 16 bits in an image read as 8 bits
        image = _with_transparent(image, tuple(value >> 8 for value in transparent))
    if is_plain_cmyk:
        image = ImageChops.invert(image)
    if image.mode == "La":  # Pillow has no way from premultiplied grey to RGBA
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        image = canvas
    rgb = image.convert("RGB")
    rgb.info = {}  # the orientation is applied: whoever reads the image again must not find it
    return rgb


def _refuse_planes(image: Image.Image) -> None:
    """Refuse a TIFF that stores its channels one after another, in the forms that Pillow 12 reads wrongly."""
    tags = getattr(image, "tag_v2", {})
    bits, compression = tags.get(BITS, (1,)), tags.get(COMPRESSION, 1)
    is_misread = tags.get(CHANNELS, 1) == 2 or (max(bits) > 8 and compression == 1)
    if tags.get(PLANES, 1) == 2 and tags.get(CHANNELS, 1) > 1 and is_misread:
        raise BadImage(
            "this TIFF stores its channels one after another, which is misread: save it with interleaved channels, or "
            "convert it to PNG"
        )


def read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, which is 1 (upright) if there is none or if the EXIF block is broken."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except (ValueError, TypeError, SyntaxError, AttributeError, KeyError, OSError, struct.error):
        return 1


def _levels_of_a_sample(image: Image.Image) -> int:
    """Return the grey levels of 8 bits per level of the file: 85 for grey of 2 bits, 17 for 4 bits, 1 for 8 bits."""
    tile: Any = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    rawmode = arguments if isinstance(arguments, str) else next(iter(arguments or ("",)), "")
    return {"L;2": 85, "L;4": 17}.get(rawmode, 1)


def _with_transparent(image: Image.Image, value: int | tuple[int, ...]) -> Image.Image:
    image = image.copy()
    image.info["transparency"] = value
    return image


def _to_8_bit(image: Image.Image, is_negative: bool, transparent: Any) -> Image.Image:
    """Scale grey of 16 bits, or of floating-point numbers between 0 and 1, to 8 bits; Pillow would clip it at 255.

    Args:
        image: Image of one of `DEEP_MODES`.
        is_negative: Whether 0 is white.
        transparent: Value that is transparent; None for none.
    """
    values = np.asarray(image, dtype=np.float64)  # (H, W)
    white = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= white):  # also if a value is NaN
        raise BadImage(f"grey values of mode {image.mode} outside 0..{white:g} have no known white")
    shown = white - values if is_negative else values
    grey = np.rint(shown * (255 / white)).astype(np.uint8)
    if not isinstance(transparent, int):
        return Image.fromarray(grey)
    alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
    return Image.fromarray(np.stack([grey, alpha], axis=-1), "LA")


def _without_notes(data: bytes) -> bytes:
    """Return the bytes of a PNG without its texts and its colour profile; other bytes as they are."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])  # length, kind, content, checksum
        if data[start + 4 : start + 8] not in PNG_NOTES:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _in_one_line(error: Exception) -> str:
    return f"no whole image: {type(error).__name__}: {' '.join(str(error).split())}"


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "no bytes"
    if not isinstance(error, UnidentifiedImageError):
        return f"{len(data)} bytes that are {_in_one_line(error)}"
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
        return f"HEIC cannot be read: {HEIC_REMEDY}"
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL cannot be read: convert it to PNG or JPEG"
    return f"{len(data)} bytes of no known image format"
