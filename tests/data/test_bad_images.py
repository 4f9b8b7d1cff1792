"""A corpus of images as they lie on disks: golden pixels or a named skip; never a crash, nor memory without bound."""

import io
import logging
import struct
import tracemalloc
import warnings
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from dit_hf.data.bad_images import allowed_bad_images
from dit_hf.data.preparation import resize_and_crop
from dit_hf.data.sources import open_images
from dit_hf.data.streaming import ImageStream, Position
from dit_hf.images import MAX_PIXELS, BadImage, decode_image, open_checked

# what Pillow warns of is refused by us
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
RAMP = np.arange(0, 256, 17, dtype=np.uint8).reshape(4, 4)  # sixteen greys
COLOUR = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def grey(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[..., None], 3, axis=-1)


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header claims any size; its data are a few zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def palette() -> bytes:
    image = Image.fromarray(RAMP // 17, "P")
    image.putpalette(
        np.stack([np.arange(16) * 17, 255 - np.arange(16) * 17, np.zeros(16)], -1).astype(np.uint8).tobytes()
    )
    return encode(image)


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.fromarray(COLOUR), exif=exif)


def animated(format: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    return encode(
        frames[0], format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )


def with_alpha(mode: str) -> bytes:
    alpha = np.full((4, 4), 51, np.uint8)  # a fifth
    black = np.zeros((4, 4), np.uint8)
    layers = [black, alpha] if mode == "LA" else [black, black, black, alpha]
    return encode(Image.fromarray(np.stack(layers, -1), mode))


WIDE = np.arange(0, 65536, 4369, dtype=np.uint16).reshape(4, 4)  # 4369 = 17 * 257: the sixteen greys in 16 bits
RED = np.zeros((4, 4, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
GREEN = np.zeros((8, 8, 3), np.uint8) + np.array([90, 160, 30], np.uint8)
FIFTH = np.full((4, 4, 3), 204, np.uint8)  # a fifth of black on white

# name -> bytes, the pixels that a viewer shows, how far they may be off
GOOD: dict[str, tuple[bytes, np.ndarray, int]] = {
    "rgb.png": (encode(Image.fromarray(COLOUR)), COLOUR, 0),
    "rgb.bmp": (encode(Image.fromarray(COLOUR), "BMP"), COLOUR, 0),
    "rgb.ppm": (encode(Image.fromarray(COLOUR), "PPM"), COLOUR, 0),
    "rgb.tiff": (encode(Image.fromarray(COLOUR), "TIFF"), COLOUR, 0),
    "rgb.webp": (encode(Image.fromarray(COLOUR), "WEBP", lossless=True), COLOUR, 0),
    "rgb.jp2": (encode(Image.fromarray(COLOUR), "JPEG2000"), COLOUR, 0),
    "rgb.jpeg": (encode(Image.fromarray(GREEN), "JPEG", quality=100), GREEN, 2),
    "rgb.avif": (encode(Image.fromarray(GREEN), "AVIF", quality=100), GREEN, 3),
    "png named jpeg": (encode(Image.fromarray(COLOUR)), COLOUR, 0),
    "grey.png": (encode(Image.fromarray(RAMP)), grey(RAMP), 0),
    "grey.jpeg": (encode(Image.new("L", (8, 8), 100), "JPEG"), np.full((8, 8, 3), 100), 1),
    "grey alpha.png": (with_alpha("LA"), FIFTH, 0),
    "alpha.png": (with_alpha("RGBA"), FIFTH, 0),
    "black and white.png": (encode(Image.fromarray(RAMP > 100)), grey(np.where(RAMP > 100, 255, 0)), 0),
    "palette.png": (palette(), np.stack([RAMP, 255 - RAMP, 0 * RAMP], -1), 0),
    "transparent palette.gif": (encode(Image.new("P", (4, 4), 0), "GIF", transparency=0), np.full((4, 4, 3), 255), 0),
    "colour key.png": (encode(Image.fromarray(RED), transparency=(255, 0, 0)), np.full((4, 4, 3), 255), 0),
    "cmyk.tiff": (encode(Image.fromarray(RED).convert("CMYK"), "TIFF"), RED, 0),
    "cmyk.jpeg": (encode(Image.fromarray(RED).convert("CMYK"), "JPEG", quality=100), RED, 3),
    "16 bits.png": (encode(Image.fromarray(WIDE)), grey(RAMP), 0),
    "16 bits.tiff": (encode(Image.fromarray(WIDE), "TIFF"), grey(RAMP), 0),
    "32 bits of 16.tiff": (encode(Image.fromarray(WIDE.astype(np.int32)), "TIFF"), grey(RAMP), 0),
    "lab.tiff": (encode(Image.new("LAB", (4, 4), (255, 128, 128)), "TIFF"), np.full((4, 4, 3), 255), 2),
    "animated.gif": (animated("GIF"), RED, 0),
    "animated.webp": (animated("WEBP"), RED, 0),
    "animated.png": (animated("PNG"), RED, 0),
    "rotated 3.png": (oriented(3), COLOUR[::-1, ::-1], 0),
    "rotated 6.png": (oriented(6), np.rot90(COLOUR, -1), 0),
    "orientation 0.png": (oriented(0), COLOUR, 0),
    "orientation 99.png": (oriented(99), COLOUR, 0),
    "two by two.png": (encode(Image.new("RGB", (2, 2), "red")), RED[:2, :2], 0),
}  # fmt: skip

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
JPEG = encode(Image.fromarray(NOISE), "JPEG")
PNG = encode(Image.fromarray(NOISE))

GIF_BOMB = b"GIF89a\xff\xff\xff\xff\x80\x00\x00" + bytes(6) + b",\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02D\x01\x00;"

# name -> bytes, what the message says
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no bytes"),
    "text": (b"<html>404 Not Found</html>", "26 bytes of no known image format"),
    "noise": (np.random.default_rng(0).bytes(1000), "1000 bytes of no known image format"),
    "truncated.jpeg": (JPEG[: len(JPEG) // 2], "no whole image"),
    "header only.jpeg": (JPEG[:30], "no whole image|no known image format"),
    "truncated.png": (PNG[: len(PNG) // 2], "no whole image"),
    "corrupt.png": (PNG.replace(PNG[41:43], b"\xff\xff", 1), "no whole image"),
    "missing data.png": (png_header(64, 64), "no whole image"),
    "bomb.png": (png_header(12_000, 12_000), f"12000x12000 pixels: at most {MAX_PIXELS}"),
    "huge bomb.png": (png_header(2**31 - 1, 2**31 - 1), "no whole image: DecompressionBombError"),
    "bomb.gif": (GIF_BOMB, "no whole image: DecompressionBombError"),
    "one pixel.png": (encode(Image.new("RGB", (1, 1))), "1x1 pixels"),
    "line.png": (encode(Image.new("RGB", (4000, 1))), "4000x1 pixels"),
    "ribbon.png": (encode(Image.new("RGB", (4000, 3))), "4000x3 pixels"),
    "float.tiff": (encode(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), "no known white"),
    "32 bits.tiff": (encode(Image.fromarray(RAMP.astype(np.int32) << 20), "TIFF"), "no known white"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no known image format"),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_image_has_the_pixels_that_a_viewer_shows(name: str):
    data, expected, tolerance = GOOD[name]
    image = decode_image(data)
    assert image.mode == "RGB"
    assert np.abs(np.array(image).astype(int) - expected.astype(int)).max() <= tolerance


@pytest.mark.parametrize("name", BAD)
def test_image_that_cannot_be_used_is_named(name: str):
    data, message = BAD[name]
    with (
        warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
        pytest.raises(BadImage, match=message),
    ):
        decode_image(data)


def test_bombs_are_refused_before_memory_is_taken():
    for name in ("bomb.png", "huge bomb.png", "line.png"):
        tracemalloc.start()
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning), pytest.raises(BadImage):
            open_checked(BAD[name][0])
        assert tracemalloc.get_traced_memory()[1] < 2**20
        tracemalloc.stop()


@pytest.mark.parametrize("data", [JPEG, PNG, GOOD["16 bits.tiff"][0], GOOD["animated.gif"][0], GOOD["rgb.webp"][0]])
def test_damaged_bytes_give_an_image_or_a_bad_one_and_nothing_else(data: bytes):
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for position in rng.integers(len(data), size=rng.integers(1, 6)):
            damaged[position] = rng.integers(256)
        try:
            with warnings.catch_warnings(action="ignore"):
                image = decode_image(bytes(damaged[: rng.integers(len(data) // 2, len(data) + 1)]))
        except BadImage:
            continue
        assert resize_and_crop(image, 8).size == (8, 8)


# ---- in the stream ---------------------------------------------------------------------------------------------------


def write(folder: Path, images: list[bytes], row_groups: int = 4) -> Path:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b", "c"])})
    rows = [{"image": {"bytes": data, "path": None}, "label": k % 3} for k, data in enumerate(images)]
    folder.mkdir()
    Dataset.from_list(rows, features=features).to_parquet(
        folder / "train-00000-of-00001.parquet", batch_size=row_groups
    )
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    good, bad = [data for data, _, _ in GOOD.values()], [data for data, _ in BAD.values()]
    mixed = [data for pair in zip(good, [*bad, *good], strict=False) for data in pair]
    return write(tmp_path_factory.mktemp("corpus") / "images", mixed)


def make_stream(folder: Path, **options) -> ImageStream:
    return ImageStream(open_images(str(folder)), **{"batch_size": 8, "resolution": 8, "max_bad_images": 1.0, **options})


@pytest.mark.slow
def test_stream_skips_what_is_bad_and_workers_processes_and_restarts_skip_the_same(corpus: Path):
    alone = list(islice(make_stream(corpus), 16))  # two epochs of 64
    skipped = {skip.key for batch in alone for skip in batch.skipped}
    assert skipped == {f"row {2 * k + 1} of train-00000-of-00001.parquet" for k in range(len(BAD))}
    bad_rows = {2 * k + 1 for k in range(len(BAD))}
    for batch in alone:
        assert not bad_rows & {row for _, row, *_ in batch.identities}
        assert batch.class_labels.tolist() == [
            row % 3 for _, row, *_ in batch.identities
        ]  # of what stands in its place

    resumed = make_stream(corpus, start=alone[4].next_position)
    workers = make_stream(corpus, num_workers=2)
    for others, expected in ((resumed, alone[5:]), (workers, alone)):
        for batch, whole in zip(others, expected, strict=False):
            torch.testing.assert_close(batch.images, whole.images, rtol=0, atol=0)
            assert batch.identities == whole.identities
            assert {key for key, _ in batch.skipped} == {key for key, _ in whole.skipped}
    ranks = [islice(make_stream(corpus, batch_size=4, rank=rank, world_size=2), 16) for rank in range(2)]
    for parts, whole in zip(zip(*ranks, strict=True), alone, strict=True):
        assert [
            identity for pair in zip(*(part.identities for part in parts), strict=True) for identity in pair
        ] == whole.identities


def test_each_bad_image_is_reported_once_with_its_reason(tmp_path: Path, caplog):
    folder = write(tmp_path / "images", [PNG] * 9 + [b"text"])
    with caplog.at_level(logging.WARNING, "dit_hf"):
        list(islice(make_stream(folder), 5))
    assert [record.getMessage() for record in caplog.records] == [
        "skipped row 9 of train-00000-of-00001.parquet: 4 bytes of no known image format"
    ]


def test_too_many_bad_images_stop_with_their_keys(tmp_path: Path):
    folder = write(tmp_path / "images", [PNG] * 17 + [b"text", b"", b"text"])
    message = r"[23] images cannot be decoded, more than max_bad_images=0.05 allows: row 1\d of .*; row 1\d of"
    with pytest.raises(ValueError, match=message):
        list(islice(make_stream(folder, max_bad_images=0.05), 10))
    list(islice(make_stream(folder, max_bad_images=0.15), 10))
    with pytest.raises(ValueError, match="^[123] images cannot be decoded, more than max_bad_images=0"):
        list(islice(make_stream(folder, max_bad_images=0), 10))
    with pytest.raises(ValueError, match="^[23] images cannot be decoded"):  # whole, out of a worker too
        list(islice(make_stream(folder, max_bad_images=0.05, num_workers=1), 10))


@pytest.mark.parametrize(
    ("share", "num_images", "allowed"),
    [
        (0, 10**6, 0),
        (0.001, 5, 1),
        (0.001, 60, 6),
        (0.001, 100, 10),
        (0.001, 5_000, 10),
        (0.001, 50_000, 50),
        (0.5, 8, 4),
    ],
)
def test_a_few_bad_images_are_always_allowed(share: float, num_images: int, allowed: int):
    assert allowed_bad_images(share, num_images) == allowed


def test_small_set_with_a_few_damaged_photographs_trains(tmp_path: Path):
    folder = write(tmp_path / "images", [PNG] * 54 + [JPEG[:1000], b"", PNG[:-100]] * 2)
    labels = [batch.class_labels for batch in islice(make_stream(folder, max_bad_images=0.001), 15)]
    assert torch.cat(labels).bincount().min() > 0
    more = write(tmp_path / "more", [PNG] * 53 + [JPEG[:1000]] * 7)
    with pytest.raises(ValueError, match="^7 images cannot be decoded.*At most 6 of 60 may be bad: repair or remove"):
        list(islice(make_stream(more, max_bad_images=0.001), 15))


def test_missing_image_is_a_bad_image(tmp_path: Path):
    """As a table without an image in some rows has it: no bytes and no path, or nothing at all."""
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a"])})
    rows = [{"image": {"bytes": PNG, "path": None}, "label": 0}] * 8
    rows += [{"image": {"bytes": None, "path": None}, "label": 0}, {"image": None, "label": 0}]
    pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), tmp_path / "train.parquet")
    batches = list(islice(make_stream(tmp_path), 3))
    skipped = {skip.key: skip.reason for batch in batches for skip in batch.skipped}
    assert skipped == {f"row {k} of train.parquet": "no bytes and no path of a file" for k in (8, 9)}


def test_data_set_without_a_good_image_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="none of the 4 images beside row . of .* can be decoded"):
        list(islice(make_stream(write(tmp_path / "images", [b"text"] * 4), start=Position(0, 0)), 1))


def test_first_good_image_stands_in_for_a_group_without_one(tmp_path: Path):
    """The last group of 9 images in groups of 4 is a single one."""
    folder = write(tmp_path / "images", [b"text", *[PNG] * 7, b"text"])
    whole = list(islice(make_stream(folder, batch_size=3), 6))
    rows = [row for batch in whole for _, row, *_ in batch.identities]
    assert sorted(rows) == sorted(2 * [1, 1, *range(1, 8)])
    for batch, expected in zip(make_stream(folder, batch_size=3, num_workers=2), whole, strict=False):
        assert batch.identities == expected.identities
