"""Images that a user passes: one picture gives one set of pixels, in whatever form it comes."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from sampling_parts import seeded, tiny_model, tiny_vae

from dit_hf import DiTImg2ImgPipeline, DiTInpaintPipeline

LEVELS = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
GREY = Image.fromarray(LEVELS)
COLOURS = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
COLOUR = Image.fromarray(COLOURS)
ALPHA = np.where(np.arange(256).reshape(16, 16) % 2, 255, 0).astype(np.uint8)
ON_WHITE = Image.fromarray(np.where(ALPHA[..., None] == 255, COLOURS, 255).astype(np.uint8))


def saved(image: Image.Image, form: str, **options) -> Image.Image:
    """The image as it is opened from a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return Image.open(buffer)


def with_orientation(turned: Image.Image, orientation: int) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(turned, "PNG", exif=exif)


def transparent_palette() -> Image.Image:
    image = COLOUR.quantize(8)
    image.info["transparency"] = 3
    return saved(image, "PNG")


def on_white(image: Image.Image) -> Image.Image:
    values = np.asarray(image.convert("RGBA"))
    return Image.fromarray(np.where(values[..., 3:] == 255, values[..., :3], 255).astype(np.uint8))


PICTURES = {  # as given, and the 8-bit RGB picture that it is
    "16 bits of grey": (saved(Image.fromarray(LEVELS.astype(np.uint16) * 257), "PNG"), GREY.convert("RGB")),
    "32-bit TIFF": (saved(Image.fromarray(LEVELS.astype(np.int32) * 257), "TIFF"), GREY.convert("RGB")),
    "floats": (saved(Image.fromarray(LEVELS.astype(np.float32) / 255), "TIFF"), GREY.convert("RGB")),
    "transparency": (saved(Image.fromarray(np.dstack([COLOURS, ALPHA])), "PNG"), ON_WHITE),
    "grey and transparency": (
        saved(Image.merge("LA", (GREY, Image.fromarray(ALPHA))), "PNG"),
        on_white(Image.merge("LA", (GREY, Image.fromarray(ALPHA)))),
    ),
    "a palette with a transparent colour": (transparent_palette(), on_white(transparent_palette())),
    "turned by EXIF": (with_orientation(COLOUR.transpose(Image.Transpose.ROTATE_90), 6), COLOUR),
    "mirrored by EXIF": (with_orientation(COLOUR.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 2), COLOUR),
    "black and white": (GREY.convert("1"), GREY.convert("1").convert("RGB")),
    "uint8 array": (COLOURS, COLOUR),
    "array": (COLOURS.astype(np.float32) / 255, COLOUR),
    "uint8 tensor": (torch.from_numpy(COLOURS).permute(2, 0, 1)[None], COLOUR),
    "tensor": (torch.from_numpy(COLOURS).permute(2, 0, 1)[None] / 255, COLOUR),
    "dark uint8 array": (COLOURS // 255, Image.fromarray(COLOURS // 255)),
}


def pipeline(cls=DiTImg2ImgPipeline, in_channels: int = 3):
    model = tiny_model(in_channels=in_channels, learn_sigma=False, sample_size=16)
    pipe = cls(model, None, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels_of(pipe, image) -> torch.Tensor:
    """What the pipeline begins with, without noise."""
    noise = torch.zeros(len(image) if isinstance(image, list) else 1, pipe.transformer.config.in_channels, 16, 16)
    arguments = {"guidance_scale": 1, "num_inference_steps": 10, "latents": noise, "output_type": "latent"}
    seen = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    pipe(image, [1] * len(noise), 0.1, **arguments)
    return seen[0] / pipe.scheduler.alphas_cumprod[0].sqrt()  # of t = 0


def values_of(picture: Image.Image) -> torch.Tensor:
    """Pixels (1, C, H, W) in [-1, 1]."""
    values = torch.from_numpy(np.array(picture)).float() / 127.5 - 1
    return values[None, None] if values.ndim == 2 else values.permute(2, 0, 1)[None]


@pytest.mark.parametrize(("given", "picture"), PICTURES.values(), ids=PICTURES)
def test_image_of_any_form_has_the_pixels_of_its_picture(given, picture: Image.Image):
    torch.testing.assert_close(pixels_of(pipeline(), given), values_of(picture), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["16 bits of grey", "transparency", "turned by EXIF"])
def test_model_of_grey_pixels_reads_grey(name: str):
    given, picture = PICTURES[name]
    grey = values_of(picture.convert("L"))
    torch.testing.assert_close(pixels_of(pipeline(in_channels=1), given), grey, rtol=0, atol=1e-5)


def test_images_of_a_list_are_read_each():
    given, pictures = zip(
        *(PICTURES[name] for name in ("16 bits of grey", "transparency", "turned by EXIF")), strict=True
    )
    expected = torch.cat([values_of(picture) for picture in pictures])
    torch.testing.assert_close(pixels_of(pipeline(), list(given)), expected, rtol=0, atol=1e-5)


def test_inversion_and_inpainting_read_images_in_the_same_way():
    given, picture = PICTURES["16 bits of grey"]
    invert = pipeline().invert
    arguments = {"num_inference_steps": 2}
    torch.testing.assert_close(invert(given, 1, **arguments), invert(picture, 1, **arguments), rtol=0, atol=0)
    inpaint, mask = pipeline(DiTInpaintPipeline), Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    drawn = inpaint(given, mask, 1, guidance_scale=1, num_inference_steps=2, generator=seeded(0)).images[0]
    np.testing.assert_array_equal(np.asarray(drawn)[:, 8:], np.asarray(picture)[:, 8:])


HALF = np.repeat(np.where(np.arange(16) < 8, 255, 0).astype(np.uint8)[None], 16, 0)
MASKS = {
    "8 bits": Image.fromarray(HALF),
    "16 bits": saved(Image.fromarray(HALF.astype(np.uint16) * 257), "PNG"),
    "dark 16 bits": Image.fromarray(np.where(HALF == 255, 65535, 20000).astype(np.uint16)),
    "one bit": Image.fromarray(HALF).convert("1"),
    "transparent where it is new": Image.fromarray(np.dstack([HALF * 0] * 3 + [255 - HALF])),
    "bool array": HALF[..., None] == 255,
    "uint8 array": HALF[..., None],
    "array of 0 and 1": HALF[..., None] // 255,
    "dark uint8 array": np.where(HALF == 255, 255, 100).astype(np.uint8)[..., None],
    "tensor": torch.from_numpy(HALF)[None, None] / 255,
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_mask_of_any_form_is_new_where_it_is_white(mask):
    inpaint = pipeline(DiTInpaintPipeline)
    drawn = inpaint(COLOUR, mask, 1, guidance_scale=1, num_inference_steps=2, generator=seeded(0)).images[0]
    same = (np.asarray(drawn) == COLOURS).all(-1)
    assert same[:, 8:].all()
    assert same[:, :8].mean() < 0.2


REFUSED = {
    "16-bit array": ({"image": COLOURS.astype(np.uint16)}, "image has values of type uint16: pass PIL images"),
    "values of 0..255": ({"image": COLOURS.astype(np.float32)}, "image has values up to 509 after scaling"),
    "NaN": ({"image": torch.full((1, 3, 16, 16), torch.nan)}, "image has values up to nan"),
    "grey array for colours": ({"image": np.zeros((16, 16, 1), np.float32)}, "image has 1 channels: .*3 channels"),
    "latents": ({"image": torch.zeros(1, 4, 16, 16)}, "image has 4 channels"),
    "grey without a known white": ({"image": Image.fromarray(np.full((16, 16), 300, np.float32))}, "no known white"),
    "coloured mask": ({"mask_image": torch.zeros(1, 3, 16, 16)}, "mask_image has 3 channels"),
    "two for one": ({"image": [COLOUR, COLOUR]}, "image holds 2 for 1 images"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_image_that_cannot_be_read_is_refused_before_any_work(given: dict, message: str):
    pipe = pipeline(DiTInpaintPipeline)
    pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message):
        pipe(**{"image": COLOUR, "mask_image": Image.fromarray(HALF), "class_labels": 1, **given})


def test_damaged_file_is_named(tmp_path: Path):
    COLOUR.save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"cut\.png"):
        pipeline()(Image.open(tmp_path / "cut.png"), 1)


def test_autoencoder_of_grey_images_gets_grey():
    vae = tiny_vae(in_channels=1, out_channels=1)
    pipe = DiTImg2ImgPipeline(tiny_model(learn_sigma=False), vae, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    changed = pipe(COLOUR, 1, 0.5, guidance_scale=1, num_inference_steps=2, output_type="pt").images
    assert changed.shape == (1, 1, 16, 16)
