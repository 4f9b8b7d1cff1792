"""Image preparation against arithmetic on arrays and Pillow called by hand."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from dit_hf.data.preparation import image_to_tensor, jitter, resize_and_crop
from dit_hf.images import decode_image


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def random_image(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_image_of_twice_the_size_is_the_mean_of_four_pixels():
    image = random_image(16, 16)
    blocks = np.array(image, dtype=np.float64).reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    prepared = np.array(resize_and_crop(image, 8), dtype=np.float64)
    assert np.abs(prepared - blocks).max() <= 1  # Pillow rounds to uint8 after each of its two passes


def test_long_side_is_cropped_around_the_centre():
    image = random_image(64, 100)
    expected = np.array(image)[:, 18:82]
    np.testing.assert_array_equal(np.array(resize_and_crop(image, 64)), expected)


def test_image_is_halved_first_and_then_resized_bicubically():
    image = random_image(50, 90)
    halved = image.resize((45, 25), Image.Resampling.BOX)
    by_hand = halved.resize((36, 20), Image.Resampling.BICUBIC).crop((8, 0, 28, 20))
    np.testing.assert_array_equal(np.array(resize_and_crop(image, 20)), np.array(by_hand))


@pytest.mark.parametrize("size", [(7, 7), (7, 31), (31, 7), (200, 201)])
def test_prepared_image_is_a_square_of_the_size_asked_for(size):
    assert resize_and_crop(random_image(*size), 16).size == (16, 16)


def test_tensor_is_in_minus_one_to_one_with_channels_first():
    image = Image.new("RGB", (4, 2), (0, 255, 51))
    tensor = image_to_tensor(image)
    assert tensor.shape == (3, 2, 4)
    torch.testing.assert_close(tensor[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG", "GIF", "BMP"])
def test_common_formats_decode_to_rgb(format):
    decoded = decode_image(encode(Image.new("RGB", (8, 8), (255, 0, 0)), format))
    assert decoded.mode == "RGB"
    np.testing.assert_allclose(np.array(decoded)[0, 0], [255, 0, 0], atol=2)  # JPEG rounds


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "RGBA"])
def test_other_modes_of_a_white_image_stay_white(mode):
    format = "TIFF" if mode == "CMYK" else "PNG"
    decoded = decode_image(encode(Image.new("RGB", (4, 4), "white").convert(mode), format))
    assert decoded.mode == "RGB"
    assert np.array(decoded).min() == 255


def test_transparency_is_composited_on_white():
    half_black = Image.new("RGBA", (2, 2), (0, 0, 0, 51))
    assert np.array(decode_image(encode(half_black, "PNG")))[0, 0].tolist() == [204, 204, 204]


def test_exif_orientation_is_applied():
    image = random_image(8, 16)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    decoded = decode_image(encode(image, "PNG", exif=exif))
    np.testing.assert_array_equal(np.array(decoded), np.rot90(np.array(image), k=-1))


@pytest.mark.parametrize("seed", range(200))
def test_broken_exif_stops_no_image(seed: int):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x9003] = 6, "maker", "2026:01:01 00:00:00"
    data = bytearray(encode(Image.new("RGB", (8, 4), "white"), "JPEG", exif=exif))
    header = data.index(b"Exif")
    rng = np.random.default_rng(seed)
    for position in rng.integers(header + 6, header + 80, size=6):
        data[position] = rng.integers(256)
    assert decode_image(bytes(data)).size in ((8, 4), (4, 8))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_that_of_pillow(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(random_image(8, 16), "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.array(decode_image(data)), np.array(expected))


def test_jitter_moves_a_little_and_fills_with_white():
    square = Image.new("RGB", (64, 64), "white")
    square.paste((0, 0, 0), (16, 16, 48, 48))
    moved = np.array(jitter(square, np.random.default_rng(0)))
    again = np.array(jitter(square, np.random.default_rng(0)))
    np.testing.assert_array_equal(moved, again)
    assert not np.array_equal(moved, np.array(square))
    assert moved[0].min() == 255
    assert moved[32, 32].max() == 0
    dark = (moved < 128).mean() / (np.array(square) < 128).mean()
    assert 0.8 < dark < 1.25  # scaled by at most 8 % a side
