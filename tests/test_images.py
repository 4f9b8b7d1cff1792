"""Kinds of pictures whose files are written here byte by byte, against pixels computed by hand.

What a viewer shows is the oracle: each sample scaled so that its white is 255, then composited on white. The corpus of
`data/test_bad_images.py` holds further kinds, written by Pillow.
"""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dit_hf.images import BadImage, decode_image, read_image, readable_formats, readable_suffixes, to_rgb

GREY = np.arange(0, 256, 17, dtype=np.uint8).reshape(4, 4)  # sixteen greys, which 1, 2, 4, 8 and 16 bits can hold
DEEP = GREY.astype(np.uint16) * 257
WHITE = np.full((4, 4), 255, np.uint8)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Composite colours (H, W, 3) on white by their opacity (H, W), 0..255."""
    share = alpha[..., None] / 255
    return np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)


# ---- PNG -------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows: list[bytes], width: int, depth: int, colour: int, before: bytes = b"", after: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    end = chunk(b"IDAT", data) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + end


def grey_png(depth: int, before: bytes = b"", after: bytes = b"") -> bytes:
    """`GREY` in 8 or 16 bits, or its values in 1, 2 or 4 bits."""
    if depth >= 8:
        samples = GREY if depth == 8 else DEEP.astype(">u2")
        return png([row.tobytes() for row in samples], 4, depth, 0, before, after)
    bits = ((GREY >> (8 - depth))[..., None] >> np.arange(depth)[::-1]) & 1  # (4, 4, depth), most significant first
    return png([np.packbits(row).tobytes() for row in bits.reshape(4, -1)], 4, depth, 0, before, after)


def shown(depth: int) -> np.ndarray:
    """What a grey PNG of a depth shows."""
    return GREY if depth >= 4 else ((GREY >> (8 - depth)) * (255 // (2**depth - 1))).astype(np.uint8)


def key(*samples: int) -> bytes:
    """The chunk of a transparent colour, in the samples of the file."""
    return chunk(b"tRNS", struct.pack(f">{len(samples)}H", *samples))


COLOURS = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [255, 0, 0]], np.uint8)
INDICES = np.array([[0, 1, 2, 3]] * 4)
PALETTE = chunk(b"PLTE", COLOURS.tobytes())


def palette_png(before: bytes = b"", after: bytes = b"") -> bytes:
    return png([bytes(row.tolist()) for row in INDICES], 4, 8, 3, PALETTE + before, after)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_every_depth_is_scaled_to_its_white(depth: int):
    np.testing.assert_array_equal(np.array(decode_image(grey_png(depth))), rgb(shown(depth)))


@pytest.mark.parametrize(("depth", "sample"), [(1, 0), (1, 1), (2, 1), (4, 5), (8, 85), (16, 85 * 257), (16, 65535)])
def test_transparent_grey_of_every_depth_becomes_white(depth: int, sample: int):
    grey = shown(depth)
    expected = np.where(grey == round(sample * 255 / (2**depth - 1)), 255, grey)
    np.testing.assert_array_equal(np.array(decode_image(grey_png(depth, key(sample)))), rgb(expected))


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colour_of_every_depth_becomes_white(depth: int):
    pixels = np.tile(COLOURS, (4, 1, 1))  # (4, 4, 3)
    samples = pixels if depth == 8 else (pixels.astype(np.uint16) * 257).astype(">u2")
    data = png([row.tobytes() for row in samples], 4, depth, 2, key(*samples[0, 1].tolist()))
    expected = pixels.copy()
    expected[:, 1] = 255
    np.testing.assert_array_equal(np.array(decode_image(data)), expected)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour", [4, 6])
def test_alpha_of_every_depth_is_composited_on_white(depth: int, colour: int):
    alpha = np.tile(np.array([0, 51, 204, 255], np.uint8), (4, 1))
    layers = [GREY, alpha] if colour == 4 else [GREY, GREY.T, WHITE, alpha]
    pixels = np.stack(layers, -1)
    samples = pixels if depth == 8 else (pixels.astype(np.uint16) * 257).astype(">u2")
    picture = rgb(GREY) if colour == 4 else pixels[..., :3]
    found = np.array(decode_image(png([row.tobytes() for row in samples], 4, depth, colour)))
    assert np.abs(found.astype(int) - on_white(picture, alpha).astype(int)).max() <= 1  # Pillow's rounding


@pytest.mark.parametrize("alphas", [[255, 0], [51, 255, 0], [255, 255, 255, 51]])
def test_transparency_of_a_palette_is_composited_on_white(alphas: list[int]):
    """One transparent entry reaches us as a number, other transparency as bytes."""
    alpha = np.array([*alphas, *[255] * (4 - len(alphas))], np.uint8)[INDICES]
    found = np.array(decode_image(palette_png(chunk(b"tRNS", bytes(alphas)))))
    assert np.abs(found.astype(int) - on_white(COLOURS[INDICES], alpha).astype(int)).max() <= 1


LARGE = zlib.compress(bytes(2**21))
NOTES = {
    "compressed text": chunk(b"zTXt", b"note\0\0" + LARGE),
    "international text": chunk(b"iTXt", b"note\0\1\0\0\0" + LARGE),
    "profile": chunk(b"iCCP", b"profile\0\0" + LARGE),
    "plain text": chunk(b"tEXt", b"note\0" + bytes(65 * 2**20)),
    "broken profile": chunk(b"iCCP", b"profile\0\0broken"),
    "several": 3 * chunk(b"zTXt", b"note\0\0" + LARGE),
}


@pytest.mark.parametrize("name", NOTES)
def test_png_with_large_texts_or_profiles_is_a_whole_image(name: str):
    for data in (palette_png(NOTES[name]), palette_png(b"", NOTES[name])):
        np.testing.assert_array_equal(np.array(decode_image(data)), COLOURS[INDICES])


def test_damaged_png_with_large_texts_is_still_a_bad_image():
    data = palette_png(NOTES["compressed text"])
    for damaged in (data[:-40], data.replace(b"IDAT", b"IDAX")):
        with pytest.raises(BadImage):
            decode_image(damaged)


# ---- TIFF ------------------------------------------------------------------------------------------------------------


def tiff(
    samples: np.ndarray, *, negative: bool = False, kind: int = 1, orientation: int = 1, in_planes: bool = False
) -> bytes:
    """Uncompressed samples (H, W) or (H, W, C); `kind` is 1 for unsigned, 2 for signed, 3 for floating point.

    Two channels are grey and alpha, four are CMYK. With `in_planes`, all of one channel come before all of the next.
    """
    height, width, channels = (*samples.shape, 1)[:3]
    order = ">" if samples.dtype.byteorder == ">" else "<"
    planes = [samples[..., k].tobytes() for k in range(channels)] if in_planes else [samples.tobytes()]
    data, bits = b"".join(planes), 8 * samples.dtype.itemsize
    photometric = {1: int(not negative), 2: 1, 3: 2, 4: 5}[channels]
    rows = [
        (256, 3, [width]), (257, 3, [height]), (258, 3, [bits] * channels), (259, 3, [1]), (262, 3, [photometric]),
        (273, 4, [8 + k * len(planes[0]) for k in range(len(planes))]), (274, 3, [orientation]), (277, 3, [channels]),
        (278, 3, [height]), (279, 4, [len(plane) for plane in planes]), (284, 3, [1 + in_planes]),
        *([(338, 3, [2])] if channels == 2 else []), (339, 3, [kind] * channels),
    ]  # fmt: skip
    start = 8 + len(data)
    table, behind = struct.pack(f"{order}H", len(rows)), b""
    for tag, size, values in rows:
        packed = struct.pack(f"{order}{len(values)}{'H' if size == 3 else 'I'}", *values)
        if len(packed) > 4:  # behind the table
            place = start + 2 + 12 * len(rows) + 4 + len(behind)
            packed, behind = struct.pack(f"{order}I", place), behind + packed
        table += struct.pack(f"{order}HHI", tag, size, len(values)) + packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return head + data + table + struct.pack(f"{order}I", 0) + behind


TIFFS = {
    "8 bits": (tiff(GREY), GREY),
    "8 bits, negative": (tiff(GREY, negative=True), 255 - GREY),
    "16 bits": (tiff(DEEP.astype("<u2")), GREY),
    "16 bits, negative": (tiff(DEEP.astype("<u2"), negative=True), 255 - GREY),
    "16 bits, big-endian": (tiff(DEEP.astype(">u2")), GREY),
    "16 bits in 32": (tiff(DEEP.astype("<u4")), GREY),
    "16 bits in 32, signed": (tiff(DEEP.astype("<i4"), kind=2), GREY),
    "floats": (tiff((GREY / 255).astype("<f4"), kind=3), GREY),
    "floats, negative": (tiff((GREY / 255).astype("<f4"), kind=3, negative=True), 255 - GREY),
}


@pytest.mark.parametrize("name", TIFFS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_grey_tiff_of_every_kind_is_scaled_to_its_white(name: str, wrapped: bool):
    data, expected = TIFFS[name]
    image = to_rgb(Image.open(io.BytesIO(data))) if wrapped else decode_image(data)
    np.testing.assert_array_equal(np.array(image), rgb(expected))


# Samples of 16 bits, their high byte, and the nearest of 256 levels. OpenCV 5.0, imageio 2.38 and Pillow 12 take the
# high byte of colours in PNG; of colours in TIFF OpenCV takes the nearest level.
SAMPLES_16 = [0, 1, 128, 129, 255, 256, 384, 385, 32767, 32768, 33023, 65279, 65280, 65407, 65408, 65535]
HIGH_BYTE = [0, 0, 0, 0, 0, 1, 1, 1, 127, 128, 128, 254, 255, 255, 255, 255]
NEAREST = [0, 0, 0, 1, 1, 1, 1, 1, 127, 128, 128, 254, 254, 255, 255, 255]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("channels", "colour", "expected"), [(1, 0, NEAREST), (3, 2, HIGH_BYTE)])
def test_samples_of_16_bits_become_the_nearest_grey_or_the_high_byte_of_a_colour(order, channels, colour, expected):
    samples = np.array(SAMPLES_16, f"{order}u2").reshape(4, 4, 1).repeat(channels, -1)
    images = [decode_image(tiff(samples[..., 0] if channels == 1 else samples))]
    if order == ">":
        images.append(decode_image(png([row.tobytes() for row in samples], 4, 16, colour)))
    for image in images:
        assert np.array(image)[..., 0].ravel().tolist() == expected
        np.testing.assert_array_equal(np.array(image), rgb(np.array(image)[..., 0]))


@pytest.mark.parametrize("kind", ["<u2", ">u2", "u1"])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_tiff_in_planes_is_read_right_or_refused(kind: str, channels: int):
    """Pillow reads the planes of 16 bits as 8, and those of grey and alpha as pixels."""
    scale = 257 if kind.endswith("u2") else 1
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, channels)).astype(np.uint8)
    data = tiff(pixels.astype(kind) * np.array(scale, kind), in_planes=True)
    if channels == 2 or scale == 257:  # Pillow itself does not know two channels of 16 bits
        told = "no known image format" if (channels, scale) == (2, 257) else "stores its channels one after another"
        with pytest.raises(BadImage, match=told):
            decode_image(data)
    else:
        interleaved = decode_image(tiff(pixels))
        np.testing.assert_array_equal(np.array(decode_image(data)), np.array(interleaved))


@pytest.mark.parametrize("samples", [DEEP.astype("<u2"), DEEP.astype(">u2"), GREY, (GREY / 255).astype("<f4")])
def test_orientation_of_a_tiff_is_applied_once(samples: np.ndarray):
    data = tiff(samples, orientation=6, kind=3 if samples.dtype.kind == "f" else 1)
    np.testing.assert_array_equal(np.array(decode_image(data)), rgb(np.rot90(GREY, -1)))


@pytest.mark.parametrize(
    ("samples", "kind"),
    [
        (GREY.astype("<f4"), 3),
        (np.full((4, 4), np.nan, "<f4"), 3),
        (-GREY.astype("<i4"), 2),
        (DEEP.astype("<u4") << 16, 1),
    ],
)
def test_grey_without_a_known_white_is_refused(samples: np.ndarray, kind: int):
    with pytest.raises(BadImage, match="outside 0..(1|65535) have no known white"):
        decode_image(tiff(samples, kind=kind))


# ---- CMYK ------------------------------------------------------------------------------------------------------------

INK = np.array([[[200, 30, 60, 20]]], np.uint8).repeat(16, 0).repeat(16, 1)  # one colour, which JPEG keeps


def printed(ink: np.ndarray) -> np.ndarray:
    """What inks (H, W, 4), 0 for none, show on white paper."""
    return (255 - ink[..., :3].astype(float)) * (255 - ink[..., 3:].astype(float)) / 255


def test_cmyk_is_shown_as_it_is_printed():
    found = np.array(decode_image(tiff(INK)))
    assert np.abs(found - printed(INK)).max() <= 1


def test_inverted_cmyk_of_adobe_is_told_from_the_plain_one():
    buffer = io.BytesIO()
    Image.fromarray(INK, "CMYK").save(buffer, "JPEG", quality=100)
    inverted = buffer.getvalue()  # Pillow writes CMYK as Adobe does
    start = inverted.index(b"\xff\xee")
    plain = inverted[:start] + inverted[start + 2 + int.from_bytes(inverted[start + 2 : start + 4]) :]
    for data, ink in ((inverted, INK), (plain, 255 - INK)):
        assert np.abs(np.array(decode_image(data)) - printed(ink)).max() <= 4


# ---- other modes, orientations, animations ---------------------------------------------------------------------------


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "JPEG", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_that_was_read_is_not_turned_again(format: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    once = decode_image(saved(Image.new("RGB", (32, 16)), format, exif=exif))
    assert once.size == to_rgb(once).size == ((32, 16) if orientation < 5 else (16, 32))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "JPEG", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_s_orientation_is_applied(format: str, orientation: int):
    corners = np.zeros((16, 32), np.uint8)
    corners[:8, :16], corners[8:, :16], corners[8:, 16:] = 60, 120, 240
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {"quality": 100} if format in ("JPEG", "AVIF") else {}
    found = np.array(decode_image(saved(Image.fromarray(rgb(corners)), format, exif=exif, **options)))[..., 0]
    upright = [corners, corners[:, ::-1], corners[::-1, ::-1], corners[::-1], corners.T, np.rot90(corners, -1)]
    upright += [np.rot90(corners, 2).T, np.rot90(corners)]
    middle = (slice(2, None, 4), slice(2, None, 4))  # away from the edges, which lossy formats blur
    expected = upright[orientation - 1]
    assert found.shape == expected.shape
    assert np.abs(found[middle].astype(int) - expected[middle].astype(int)).max() <= 6


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_every_mode_with_alpha_is_composited_on_white(mode: str):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 51))
    if mode in ("LA", "La"):
        image = image.convert("LA")
    if mode in ("La", "PA", "RGBa"):
        image = image.convert(mode)
    assert image.mode == mode
    assert set(np.unique(np.array(to_rgb(image)))) <= {204, 205}


def test_opened_image_is_left_as_it_was(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(grey_png(4, key(5)))
    image = Image.open(tmp_path / "a.png")
    first, second = np.array(to_rgb(image)), np.array(to_rgb(image))
    assert (image.mode, image.info["transparency"]) == ("L", 5)
    np.testing.assert_array_equal(first, rgb(np.where(GREY == 85, 255, GREY)))
    assert second.shape == first.shape


def test_pictures_of_a_camera_that_hold_a_second_picture_show_the_first():
    first, second = Image.new("RGB", (16, 16), (200, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 200))
    data = saved(first, "MPO", save_all=True, append_images=[second], quality=100)
    assert np.abs(np.array(decode_image(data))[8, 8].astype(int) - [200, 0, 0]).max() <= 3


# ---- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_truncated_file_is_named(tmp_path: Path, format: str):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), format)
    path = tmp_path / f"cut.{format.lower()}"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadImage, match=f"^{path}: "):
        read_image(path)
    path.write_bytes(data)
    assert read_image(path).size == (32, 32)


def test_truncated_file_that_was_opened_elsewhere_is_named(tmp_path: Path):
    path = tmp_path / "cut.png"
    path.write_bytes(palette_png()[:-30])
    with pytest.raises(BadImage, match=f"^{path}: no whole image"):
        to_rgb(Image.open(path))
    with pytest.raises(BadImage, match="^no whole image"):
        to_rgb(Image.open(io.BytesIO(path.read_bytes())))


def test_kinds_that_are_not_read_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BadImage, match="^JPEG XL cannot be read: convert it to PNG or JPEG"):
        decode_image(b"\xff\x0a" + bytes(100))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    readable_formats.cache_clear()
    with pytest.raises(BadImage, match="^HEIC cannot be read: run `pip install pillow-heif`"):
        decode_image(b"\0\0\0\x18ftypheic" + bytes(100))
    assert ".heic" not in readable_suffixes()
    monkeypatch.undo()
    readable_formats.cache_clear()


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_is_read_upright_where_its_plugin_is_installed(tmp_path: Path, orientation: int):
    pytest.importorskip("pillow_heif")
    assert ".heic" in readable_suffixes()
    halves = np.zeros((32, 64), np.uint8)
    halves[:, 32:] = 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "IMG_0001.HEIC"
    Image.fromarray(rgb(halves)).save(path, "HEIF", quality=100, exif=exif.tobytes())
    expected = halves if orientation == 1 else np.rot90(halves, -1)
    found = np.array(read_image(path))[..., 0]
    assert found.shape == expected.shape
    assert np.abs(found[4::8, 4::8].astype(int) - expected[4::8, 4::8].astype(int)).max() <= 4
