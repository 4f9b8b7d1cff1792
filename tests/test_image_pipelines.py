"""The pipelines that begin with an image, against closed forms of the noise that is added."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from sampling_parts import (
    ExactDenoiser,
    count_rows,
    exact_model,
    picture,
    sampled,
    seeded,
    tiny_model,
    variant,
)

from dit_hf import DiTImg2ImgPipeline, DiTInpaintPipeline, DiTPipeline
from dit_hf.sampling.schedulers import SCHEDULERS
from dit_hf.sampling.sources import SourceImage

STARTS_MIDWAY = [name for name, traits in SCHEDULERS.items() if traits.starts_midway]


@pytest.mark.parametrize("name", STARTS_MIDWAY)
def test_image_is_noised_to_the_level_of_the_first_step_taken(name):
    pipe = variant(DiTImg2ImgPipeline, name)
    noise = torch.randn(1, 4, 8, 8, generator=seeded(0))
    seen = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    arguments = {"strength": 0.5, "num_inference_steps": 10, "latents": noise, "output_type": "latent"}
    final, used = sampled(pipe, picture(), 7, guidance_scale=1, **arguments)
    order = used.order
    assert len(seen) == 5 * order - (order - 1)  # the last step of a second-order method takes one evaluation
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None] / 127.5 - 1
        clean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    t = used.timesteps[5 * order if order == 1 else -len(seen)]
    if SCHEDULERS[name].flow:
        expected = (1 - t / 1000) * clean + t / 1000 * noise
    else:  # whatever the scheduler's scaling, the model sees the variance-preserving latents
        log = pipe.scheduler.alphas_cumprod.double().log().numpy()
        alpha_bar = math.exp(np.interp(float(t), np.arange(1000), log))
        expected = math.sqrt(alpha_bar) * clean + math.sqrt(1 - alpha_bar) * noise
    # sigmas interpolated at fractional timesteps
    torch.testing.assert_close(seen[0], expected.float(), rtol=2e-3, atol=2e-3)
    assert torch.isfinite(final).all()


def test_full_strength_takes_every_step_and_a_little_changes_little():
    pipe = variant(DiTImg2ImgPipeline, model=tiny_model(num_hidden_layers=1, hidden_size=16, learn_sigma=False))
    rows = count_rows(pipe)
    image = picture()
    arguments = {
        "num_inference_steps": 100,
        "guidance_scale": 1,
        "output_type": "latent",
        "latents": torch.zeros(1, 4, 8, 8),
    }
    pipe(image, 7, strength=1.0, **arguments)
    assert len(rows) == 100
    little, much = (pipe(image, 7, strength=strength, **arguments).images for strength in (0.01, 0.5))
    assert len(rows) == 100 + 1 + 50
    assert (little - much).abs().max() > 1e-3


def test_exact_model_takes_an_image_along_its_flow():
    pipe = DiTImg2ImgPipeline(exact_model(), None, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    image = torch.full((1, 3, 16, 16), 0.9)  # 0.8 in [-1, 1]
    noise = torch.randn(1, 3, 16, 16, generator=seeded(0))
    for strength in (0.1, 0.5):
        steps = 1000
        found = pipe(
            image, guidance_scale=1, strength=strength, num_inference_steps=steps, latents=noise, output_type="latent"
        )
        # DDIM follows the flow of N(mean, std^2): the deviation from the mean, in units of its own at t
        alpha_bar = DDIMScheduler().alphas_cumprod[round(1000 * strength) - 1]
        x = alpha_bar.sqrt() * 0.8 + (1 - alpha_bar).sqrt() * noise
        mean, std = ExactDenoiser.MEAN, ExactDenoiser.STD
        spread = (alpha_bar * std**2 + 1 - alpha_bar).sqrt()
        expected = mean + std * (x - alpha_bar.sqrt() * mean) / spread
        # of values up to 3: first-order steps of 1/1000
        torch.testing.assert_close(found.images, expected, rtol=0, atol=1e-2)


def test_pixels_outside_the_mask_stay_equal_to_the_byte():
    pipe = variant(DiTInpaintPipeline)
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[3:9, 5:12] = 255
    levels = Image.fromarray(np.arange(768, dtype=np.int64).reshape(16, 16, 3).astype(np.uint8))  # every byte
    for name, image in (("random", picture()), ("levels", levels)):
        (found,) = pipe(image, Image.fromarray(mask), 7, num_inference_steps=3, generator=seeded(0)).images
        same = np.asarray(found) == np.asarray(image)
        assert same[mask == 0].all(), name
        assert same[mask == 255].mean() < 0.2, name


@pytest.mark.parametrize("name", STARTS_MIDWAY)
def test_inpainting_keeps_the_known_latents_at_the_level_of_each_step(name):
    pipe = variant(DiTInpaintPipeline, name)
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    noise = torch.randn(1, 4, 8, 8, generator=seeded(0))
    inputs = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    arguments = {"num_inference_steps": 6, "latents": noise, "output_type": "latent"}
    _, used = sampled(pipe, picture(), mask, 7, guidance_scale=1, **arguments)
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None] / 127.5 - 1
        clean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    log = None if SCHEDULERS[name].flow else pipe.scheduler.alphas_cumprod.double().log().numpy()
    for x, t in zip(inputs, used.timesteps, strict=True):
        if log is None:
            a, b = 1 - t / 1000, t / 1000
        else:
            alpha_bar = math.exp(np.interp(float(t), np.arange(1000), log))
            a, b = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        torch.testing.assert_close(x[..., 4:], (a * clean + b * noise)[..., 4:].float(), rtol=5e-3, atol=5e-3)


def test_latent_is_drawn_anew_where_any_of_its_pixels_is():
    pipe = variant(DiTInpaintPipeline)
    mask = Image.new("L", (16, 16), 0)
    mask.putpixel((5, 2), 255)
    source = SourceImage(picture(), 1.0, mask)
    start = pipe._encode_source(source, (1, 4, 8, 8))
    assert start.latent_mask.sum() == 1
    assert start.latent_mask[0, 0, 1, 2] == 1


def test_inverted_image_is_made_again():
    pipe = DiTImg2ImgPipeline(exact_model(), None, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 16, generator=seeded(0))
    errors = []
    for steps in (10, 50, 250):
        noise = pipe.invert(image, num_inference_steps=steps)
        arguments = {"guidance_scale": 1.0, "num_inference_steps": steps, "latents": noise, "output_type": "pt"}
        errors.append((DiTPipeline.from_pipe(pipe)(**arguments).images - image).abs().max().item())
    # the noise that the exact flow ends in, and an error that falls with the step
    alpha_bar = DDIMScheduler().alphas_cumprod[996]  # 249 * 4
    spread = (alpha_bar * ExactDenoiser.STD**2 + 1 - alpha_bar).sqrt()
    x = 2 * image - 1
    expected = alpha_bar.sqrt() * ExactDenoiser.MEAN + spread * (x - ExactDenoiser.MEAN) / ExactDenoiser.STD
    torch.testing.assert_close(noise, expected, rtol=0, atol=0.05)  # of values up to 3.4
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.02


def test_inversion_has_the_betas_that_the_model_was_trained_with():
    trained = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False)
    pipe = DiTImg2ImgPipeline(tiny_model(in_channels=3, learn_sigma=False), None, trained)
    used = []

    def look(inverse: DiTPipeline, *_) -> None:
        used.append(inverse.scheduler)

    pipe.invert(torch.rand(1, 3, 8, 8), 1, num_inference_steps=2, callback_on_step_end=look)
    torch.testing.assert_close(used[0].betas, trained.betas, rtol=0, atol=0)


def test_image_keeps_a_size_that_is_no_multiple_of_eight():
    model = tiny_model(in_channels=3, learn_sigma=False, sample_size=12)
    pipe = DiTInpaintPipeline(model, None, DDIMScheduler(clip_sample=False))
    image = torch.rand(1, 3, 12, 12, generator=seeded(0))
    drawn = pipe(image, torch.zeros(1, 1, 12, 12), 1, guidance_scale=1, num_inference_steps=2, output_type="pt").images
    torch.testing.assert_close(drawn, image, rtol=0, atol=1e-6)  # nothing is masked


def test_inversion_takes_the_numbers_and_sizes_of_a_call():
    torch.manual_seed(0)
    scheduler = DDIMScheduler(clip_sample=False)
    pipe = DiTImg2ImgPipeline(tiny_model(in_channels=3, learn_sigma=False), None, scheduler)
    image = torch.rand(1, 3, 12, 8, generator=seeded(0))
    size = {"height": 12, "width": 8, "position_policy": "extend", "num_inference_steps": 2}
    noise = pipe.invert(image, 1, **size)
    assert noise.shape == (1, 3, 12, 8)
    torch.testing.assert_close(pipe.invert(image, 1, num_images_per_label=2, **size), noise.expand(2, -1, -1, -1))
    unconditional = tiny_model(in_channels=3, learn_sigma=False, num_classes=0)
    pipe = DiTImg2ImgPipeline(unconditional, None, scheduler)
    assert pipe.invert(torch.rand(3, 3, 8, 8), num_images=3, num_inference_steps=2).shape == (3, 3, 8, 8)


def test_inversion_of_flow_matching_is_refused():
    model = tiny_model(in_channels=3, learn_sigma=False)
    pipe = DiTImg2ImgPipeline(model, None, FlowMatchEulerDiscreteScheduler(), prediction_type="flow_prediction")
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler .* without betas"):
        pipe.invert(picture(), 1)


def test_coloured_image_is_grey_to_a_model_of_grey_pixels():
    model = tiny_model(in_channels=1, learn_sigma=False)
    pipe = DiTImg2ImgPipeline(model, None, DDIMScheduler(clip_sample=False))
    coloured = Image.new("RGB", (8, 8), (200, 30, 60))
    results = [
        pipe(image, 1, guidance_scale=1, num_inference_steps=4, generator=seeded(0), output_type="pt").images
        for image in (coloured, coloured.convert("L"))
    ]
    torch.testing.assert_close(*results, rtol=0, atol=0)


BAD_SOURCES = {
    "no strength": ({"strength": 0.0}, r"strength=0.0: pass a number in \(0, 1\]"),
    "too much strength": ({"strength": 1.5}, "strength=1.5"),
    "NaN strength": ({"strength": math.nan}, "strength=nan"),
    "strength as text": ({"strength": "half"}, "strength='half'"),
    "less than a step": ({"strength": 0.01, "num_inference_steps": 4}, "of 4 steps is none"),
    "two images for one label": ({"image": [picture(), picture()]}, "image holds 2 for 1 images"),
    "a mask for three": ({"mask_image": torch.ones(3, 1, 16, 16)}, "mask_image holds 3 for 1 images"),
    "no image": ({"image": 3}, "Input is in incorrect format"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_bad_image_arguments_are_refused_before_any_work(arguments, message):
    pipe = variant(DiTInpaintPipeline)
    pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message):
        pipe(**{"image": picture(), "mask_image": Image.new("L", (16, 16), 255), "class_labels": 1, **arguments})


def test_scheduler_that_cannot_start_midway_is_refused():
    with pytest.raises(ValueError, match="PNDMScheduler cannot start from an image"):
        variant(DiTImg2ImgPipeline, "PNDMScheduler")(picture(), 1)
