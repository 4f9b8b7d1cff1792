"""Guidance against the original's output, closed forms, and counts of the model's passes."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AdaptiveProjectedMixGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    TangentialClassifierFreeGuidance,
)
from sampling_parts import GOLDEN, count_rows, sampled, seeded, tiny_model, tiny_pipeline

from dit_hf import DiTPipeline
from dit_hf.sampling.guidance import guide


def test_guidance_of_the_first_three_channels_equals_the_original():
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "dit_p2_c4.npz").items()}
    x, t, y = golden["x"], golden["t"], golden["cfg_y"]
    with torch.no_grad():
        answer = tiny_model()(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, torch.full_like(y, 10)])).sample
    guided = guide(*answer.chunk(2), 4.0, 3)
    torch.testing.assert_close(guided, golden["cfg_out_scale4"][:3], rtol=1e-5, atol=1e-5)


def test_guidance_channels_differ_only_where_they_are_named():
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    arguments = {"num_inference_steps": 10, "guidance_scale": 4.0, "latents": latents, "output_type": "latent"}
    pipe = tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False))
    x_t = []
    for channels in ("first_three", "all"):

        def first_step(pipe, step, t, tensors):
            if step == 0:
                x_t.append(tensors["latents"])

        pipe(7, guidance_channels=channels, callback_on_step_end=first_step, **arguments)
    torch.testing.assert_close(x_t[0][:, :3], x_t[1][:, :3], rtol=0, atol=0)
    assert (x_t[0][:, 3] - x_t[1][:, 3]).abs().max() > 1e-3


@pytest.mark.parametrize(("scale", "batch"), [(1.0, 2), (0.5, 2), (1.1, 4)])
def test_unconditional_pass_runs_in_the_same_batch_and_only_where_it_guides(scale, batch):
    pipe = tiny_pipeline()
    rows = count_rows(pipe)
    pipe([7, 2], guidance_scale=scale, num_inference_steps=3, output_type="latent")
    assert rows == [batch] * 3


@pytest.mark.parametrize(
    ("interval", "unit", "guided"),
    [
        ((0.0, 0.5), "steps", [1, 1, 1, 1, 1, 0, 0, 0, 0, 0]),
        ((0.3, 0.6), "steps", [0, 0, 0, 1, 1, 1, 0, 0, 0, 0]),
        ((0.0, 1.0), "steps", [1] * 10),
        ((0.35, 3.2), "sigma", [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]),  # of 157 59 25 11.6 6.2 3.7 2.4 1.6 ...: see below
    ],
)
def test_guidance_interval_skips_the_unconditional_pass_outside(interval, unit, guided):
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="leading")
    pipe = tiny_pipeline(scheduler=scheduler)
    if unit == "sigma":  # from the scheduler's table, by hand
        sigma = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()[torch.arange(900, -1, -100)]
        guided = [int(interval[0] < level <= interval[1]) for level in sigma]
        assert 1 <= sum(guided) <= 8
    rows = count_rows(pipe)
    arguments = {"num_inference_steps": 10, "guidance_interval": interval, "guidance_interval_unit": unit}
    pipe(7, output_type="latent", **arguments)
    assert rows == [1 + step for step in guided]


def test_outside_the_interval_a_step_is_the_unguided_one():
    pipe = tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False))
    arguments = {"latents": torch.randn(1, 4, 8, 8, generator=seeded(0)), "num_inference_steps": 5}
    x = {}
    for interval, scale in (((0.4, 1.0), 4.0), (None, 1.0), (None, 4.0)):
        states = []
        keep = lambda pipe, step, t, tensors, states=states: states.append(tensors["latents"])  # noqa: E731
        pipe(7, scale, guidance_interval=interval, callback_on_step_end=keep, output_type="latent", **arguments)
        x[interval, scale] = states
    # two rows in one product may be summed in another order than one
    torch.testing.assert_close(x[(0.4, 1.0), 4.0][1], x[None, 1.0][1], rtol=1e-5, atol=1e-4)
    assert (x[(0.4, 1.0), 4.0][2] - x[None, 1.0][2]).abs().max() > 1e-2
    assert (x[(0.4, 1.0), 4.0][2] - x[None, 4.0][2]).abs().max() > 1e-2


def test_noise_levels_of_flow_matching_are_its_times():
    pipe = tiny_pipeline(
        tiny_model(learn_sigma=False), FlowMatchEulerDiscreteScheduler(), prediction_type="flow_prediction"
    )
    rows = count_rows(pipe)
    arguments = {"guidance_interval": (0.3, 0.7), "guidance_interval_unit": "sigma", "output_type": "latent"}
    _, used = sampled(pipe, 7, num_inference_steps=10, **arguments)
    levels = used.timesteps / 1000
    assert rows == [2 if 0.3 < level <= 0.7 else 1 for level in levels]
    assert 2 < sum(rows) - 10 < 6


def test_guider_of_diffusers_equals_guidance_by_the_same_scale():
    pipe = tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False))
    arguments = {"latents": torch.randn(2, 4, 8, 8, generator=seeded(0)), "num_inference_steps": 8}
    guider = ClassifierFreeGuidance(guidance_scale=3.0, start=0.25, stop=0.75)
    rows = count_rows(pipe)
    found = pipe([1, 7], guider, output_type="latent", **arguments).images
    assert rows == [2, 2, 4, 4, 4, 4, 2, 2]
    expected = pipe([1, 7], 3.0, guidance_interval=(0.25, 0.75), output_type="latent", **arguments).images
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "guider",
    [
        AdaptiveProjectedGuidance(guidance_scale=3.0, adaptive_projected_guidance_momentum=-0.5),
        TangentialClassifierFreeGuidance(guidance_scale=3.0),
        ClassifierFreeZeroStarGuidance(guidance_scale=3.0, zero_init_steps=0),
        AdaptiveProjectedMixGuidance(guidance_scale=3.0, adaptive_projected_guidance_start_step=2),
    ],
    ids=lambda guider: type(guider).__name__,
)
def test_guiders_of_two_answers_run_and_forget_the_last_run(guider):
    pipe = tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False))
    arguments = {"latents": torch.randn(1, 4, 8, 8, generator=seeded(0)), "num_inference_steps": 6}
    first, again = (pipe(7, guider, output_type="latent", **arguments).images for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    plain = pipe(7, 3.0, output_type="latent", **arguments).images
    assert (first - plain).abs().max() > 1e-3


def test_weaker_model_guides_in_place_of_the_unconditional_pass():
    pipe = tiny_pipeline(tiny_model(class_dropout_prob=0.0), DDIMScheduler(clip_sample=False))  # no null class
    weak = tiny_model(hidden_size=24, num_hidden_layers=1, learn_sigma=False)
    rows, weak_rows = count_rows(pipe), []
    weak.register_forward_pre_hook(lambda _, args: weak_rows.append(len(args[0])))
    latents = torch.randn(2, 4, 8, 8, generator=seeded(0))
    arguments = {"latents": latents, "num_inference_steps": 5, "output_type": "latent"}
    found, used = sampled(pipe, [1, 7], 2.0, guide_model=weak, guidance_interval=(0.0, 0.6), **arguments)
    assert (rows, weak_rows) == ([2] * 5, [2] * 3)
    x, ids = latents, torch.tensor([1, 7])
    with torch.no_grad():
        for step, t in enumerate(used.timesteps):  # Karras et al. 2024, eq. 3, by hand
            strong = pipe.transformer(x, t, ids).sample[:, :4]
            eps = 2.0 * strong - weak(x, t, ids).sample if step < 3 else strong
            x = used.step(eps, t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-3)
    # a model guides nothing towards itself
    same = pipe([1, 7], 3.0, guide_model=pipe.transformer, **arguments).images
    torch.testing.assert_close(same, pipe([1, 7], 1.0, **arguments).images, rtol=1e-4, atol=1e-3)


def test_guidance_without_a_null_class_is_refused():
    pipe = tiny_pipeline(tiny_model(class_dropout_prob=0.0))
    with pytest.raises(ValueError, match=r"class_dropout_prob=0.0 has no null class.*guidance_scale=1"):
        pipe([1])
    pipe([1], guidance_scale=1, num_inference_steps=1, output_type="latent")


def test_scale_of_guidance_may_be_a_number_of_numpy():
    pipe = DiTPipeline(tiny_model(), None, DDIMScheduler(clip_sample=False))
    arguments = {"num_inference_steps": 2, "output_type": "latent"}
    images = [pipe(1, guidance_scale=scale, generator=seeded(0), **arguments).images for scale in (2, np.float32(2))]
    torch.testing.assert_close(*images, rtol=0, atol=0)
