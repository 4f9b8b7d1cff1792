"""The pipeline against the original's trajectories, closed forms and its own saved folders."""

import json
import math
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import accelerate
import diffusers
import numpy as np
import pytest
import torch
import torch._dynamo as dynamo
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AdaptiveProjectedMixGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    MagnitudeAwareGuidance,
    SkipLayerGuidance,
    TangentialClassifierFreeGuidance,
)
from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from dit_hf import DiTConfig, DiTImg2ImgPipeline, DiTInpaintPipeline, DiTModel, DiTPipeline
from dit_hf.diffusion import OBJECTIVES, FlowLoss
from dit_hf.hub.flatten import flatten
from dit_hf.modeling_dit import DiTConditioning
from dit_hf.pipeline_dit import SCHEDULERS, _Source, guide

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
ID2LABEL = {0: "tench, Tinca tinca", 1: "goldfish", 2: "crane, bird", 3: "crane, machine"}
PAPER = {"variance_type": "learned_range", "timestep_spacing": "linspace", "clip_sample": False}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_vae(**config) -> AutoencoderKL:
    torch.manual_seed(3)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": 4}
    return AutoencoderKL(**{**blocks, **sizes, **config}).eval()


def tiny_model(**config) -> DiTModel:
    """The golden weights, or random ones of another configuration."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "sample_size": 8, "num_classes": 10}
    model = DiTModel(DiTConfig(**{**sizes, **config})).eval()
    if not config:
        model.load_state_dict(load_file(GOLDEN / "dit_p2_c4.safetensors"))
        return model
    generator = seeded(4)
    for parameter in model.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def tiny_pipeline(model=None, scheduler=None, vae="tiny", **arguments) -> DiTPipeline:
    vae = tiny_vae() if vae == "tiny" else vae
    pipe = DiTPipeline(model or tiny_model(), vae, scheduler or DDPMScheduler(**PAPER), **arguments)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduler_by_name(name: str, prediction_type: str = "epsilon"):
    cls = getattr(diffusers, name)
    if SCHEDULERS[name].flow:
        return cls()
    # by name, as the defaults of some start at 0.00085
    ours = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": prediction_type}
    return cls(**ours, **({"clip_sample": False} if "clip_sample" in cls().config else {}))


# --- the original's samplers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "scale"),
    [("ddpm10_cfg4.0", 10, 4.0), ("ddpm25_cfg1.5", 25, 1.5), ("ddpm20_cfg1.0", 20, 1.0), ("ddim20_cfg4.0", 20, 4.0)],
)
def test_trajectory_equals_the_original(name, steps, scale, monkeypatch):
    golden = {key.removeprefix(f"{name}_"): value for key, value in np.load(GOLDEN / "dit_p2_c4.npz").items()}
    if name.startswith("ddpm"):
        scheduler = DDPMScheduler(**PAPER)
        noise = iter(torch.from_numpy(golden["noise"]))
        # the stock scheduler draws inside its step: hand it what the original drew there
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(noise))
    else:
        scheduler = DDIMScheduler(clip_sample=False)
    pipe = tiny_pipeline(scheduler=scheduler, guidance_channels="first_three")
    final = pipe(
        golden["cfg_y"].tolist(),
        guidance_scale=scale,
        num_inference_steps=steps,
        latents=torch.from_numpy(golden["z"]),
        output_type="latent",
    ).images
    assert scheduler.timesteps.tolist() == golden["timesteps"].tolist()
    # float32 tables of the scheduler against the original's float64 ones, over values up to 874
    torch.testing.assert_close(final, torch.from_numpy(golden["final"]), rtol=0, atol=5e-3)


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


# --- what runs, and how often ------------------------------------------------------------------------------------


def count_rows(pipe) -> list[int]:
    """Rows of each pass of the transformer, as they come."""
    rows = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


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
    pipe(7, num_inference_steps=10, **arguments)
    levels = pipe.scheduler.timesteps / 1000
    assert rows == [2 if 0.3 < level <= 0.7 else 1 for level in levels]
    assert 2 < sum(rows) - 10 < 6


# --- what is computed once -------------------------------------------------------------------------------------------


@torch.no_grad()
def plain_loop(pipe, labels, latents, steps, scale) -> torch.Tensor:
    """Sampling without anything computed beforehand."""
    model, scheduler = pipe.transformer, pipe.scheduler
    scheduler.set_timesteps(steps)
    ids = torch.tensor([*labels, *[model.config.num_classes] * len(labels)])
    x = latents
    for t in scheduler.timesteps:
        answer = guide(*model(torch.cat([x, x]), t.expand(len(ids)), ids).sample.chunk(2), scale, 4)
        x = scheduler.step(answer[:, :4], t, x).prev_sample
    return x


@pytest.mark.parametrize("block_type", ["adaln_zero", "adaln", "cross_attention", "in_context"])
@pytest.mark.parametrize("labels", [[3], [3, 3, 1]])
def test_precomputed_conditionings_change_nothing(block_type, labels):
    pipe = tiny_pipeline(tiny_model(block_type=block_type), DDIMScheduler(clip_sample=False))
    latents = torch.randn(len(labels), 4, 8, 8, generator=seeded(0))
    expected = plain_loop(pipe, labels, latents, 8, 4.0)
    for window in (1, 3, 8):
        rows = 2 if len(labels) == 1 else 3
        pipe.conditioning_bytes = 2 * window * rows * 6 * 48 * 3 * 4
        final = pipe(labels, 4.0, 8, latents=latents, output_type="latent").images
        error = (final - expected).norm() / expected.norm()
        assert error < 1e-5
        if window == 1 and len(labels) == 1:  # at the step's own batch shape there is no other rounding
            assert torch.equal(final, expected)


def test_conditioning_is_computed_once_for_each_timestep_and_distinct_label():
    pipe = tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False))
    calls, in_steps = [], []
    model = pipe.transformer
    condition = model.condition

    def counted(timestep, class_labels, drop_labels):
        calls.append((timestep.tolist(), class_labels.tolist()))
        return condition(timestep, class_labels, drop_labels)

    model.condition = counted
    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding | torch.nn.Conv2d):
            size = sum(parameter.nbytes for parameter in module.parameters())
            module.register_forward_pre_hook(lambda *_, size=size: in_steps.append(size))
    starts = []
    model.register_forward_pre_hook(lambda *_: starts.append(len(in_steps)))
    pipe([3, 3, 1], num_inference_steps=4, output_type="latent")
    assert calls == [([750] * 3 + [500] * 3 + [250] * 3 + [0] * 3, [3, 1, 10] * 4)]
    # parameter bytes that each step reads: those of neither adaLN nor the embedders
    ends = [*starts[1:], len(in_steps)]
    spared = sum(p.nbytes for name, p in model.named_parameters() if "adaLN" in name or "embedder." in name[1:])
    spared -= sum(p.nbytes for p in model.x_embedder.parameters())
    every = sum(p.nbytes for p in model.parameters()) - model.pos_embed.nbytes
    assert [sum(in_steps[a:b]) for a, b in zip(starts, ends, strict=True)] == [every - spared] * 4
    assert spared > 0.3 * every


def test_memory_of_the_conditionings_is_bounded():
    pipe = tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False))
    rows, held = [], []
    condition = pipe.transformer.condition

    def measured(*args, **kwargs):
        table = condition(*args, **kwargs)
        rows.append(len(table.embedding))
        held.append(sum(part.nbytes for part in (table.embedding, table.final, *table.blocks)))
        return table

    pipe.transformer.condition = measured
    row = 6 * 48 * (2 + 1) * 4  # 6D for each of two blocks, and once more, of float32
    pipe.conditioning_bytes = 2 * 7 * 2 * row
    pipe(3, num_inference_steps=20, output_type="latent")
    assert rows == [14, 14, 12]
    assert max(held) <= pipe.conditioning_bytes / 2
    assert max(held) > pipe.conditioning_bytes / 3
    pipe.conditioning_bytes = 0  # one step at a time is the least
    pipe(3, num_inference_steps=2, output_type="latent")
    assert rows[3:] == [2, 2]


class ScalarReads(TorchDispatchMode):
    """Counts the reads of a value that was computed from the latents or the weights: on a GPU each stops the loop."""

    def __init__(self, tensors):
        super().__init__()
        self.device = WeakIdKeyDictionary(dict.fromkeys(tensors, True))
        self.reads = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        on_device = any(isinstance(x, torch.Tensor) and x in self.device for x in tree_leaves((args, kwargs)))
        if on_device and func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"):
            self.reads.append(str(func))
        for x in tree_leaves(result) if on_device else []:
            if isinstance(x, torch.Tensor):
                self.device[x] = True
        return result


@pytest.mark.parametrize("name", SCHEDULERS)
def test_loop_never_waits_for_the_device(name):
    flow = SCHEDULERS[name].flow
    model = tiny_model(num_hidden_layers=1, hidden_size=16, learn_sigma=name == "DDPMScheduler")
    scheduler = DDPMScheduler(**PAPER) if name == "DDPMScheduler" else scheduler_by_name(name)
    pipe = tiny_pipeline(model, scheduler, prediction_type="flow_prediction" if flow else None)
    reads = ScalarReads([*model.parameters()])
    seen = []

    def boundary(pipe, step, t, tensors):
        seen.append(len(reads.reads))
        reads.device[tensors["latents"]] = True

    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    reads.device[latents] = True
    with reads:
        pipe(1, num_inference_steps=6, latents=latents, callback_on_step_end=boundary, output_type="latent")
    assert len(seen) >= 6
    assert seen == [0] * len(seen)
    assert reads.reads == ["aten._local_scalar_dense.default"]  # after the loop: were the latents finite?


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_the_table_runs_its_usual_number_of_steps(name):
    flow = SCHEDULERS[name].flow
    model = tiny_model(num_hidden_layers=1, hidden_size=16, learn_sigma=not flow)
    scheduler = scheduler_by_name(name)
    pipe = tiny_pipeline(model, scheduler, prediction_type="flow_prediction" if flow else None)
    final = pipe(1, output_type="latent", generator=seeded(0)).images
    assert scheduler.num_inference_steps == SCHEDULERS[name].num_steps
    assert final.shape == (1, 4, 8, 8)
    assert torch.isfinite(final).all()


def test_usual_number_of_steps_fits_a_short_schedule():
    scheduler = DDIMScheduler(num_train_timesteps=20, timestep_spacing="leading", clip_sample=False)
    tiny_pipeline(tiny_model(learn_sigma=False), scheduler)(1, output_type="latent")
    assert scheduler.num_inference_steps == 20


@pytest.mark.parametrize("eta", [-0.1, 7, float("nan")])
def test_eta_outside_its_range_is_refused(eta):
    scheduler = DDIMScheduler(timestep_spacing="leading", clip_sample=False)
    with pytest.raises(ValueError, match="eta=.* is outside"):
        tiny_pipeline(tiny_model(learn_sigma=False), scheduler)(1, eta=eta)


def test_generators_may_be_a_tuple():
    scheduler = DDIMScheduler(timestep_spacing="leading", clip_sample=False)
    pipe = tiny_pipeline(tiny_model(learn_sigma=False), scheduler)
    images = [
        pipe([1, 2], generator=kind([seeded(0), seeded(1)]), num_inference_steps=2, output_type="latent").images
        for kind in (tuple, list)
    ]
    torch.testing.assert_close(*images, rtol=0, atol=0)


def test_usual_numbers_of_steps_are_the_documented_ones():
    assert {name: traits.num_steps for name, traits in SCHEDULERS.items()} == {
        "DDPMScheduler": 250,
        **dict.fromkeys(["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"], 50),
        **dict.fromkeys(["EulerAncestralDiscreteScheduler"], 50),
        **dict.fromkeys(["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"], 50),
        **dict.fromkeys(["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler"], 25),
        **dict.fromkeys(["UniPCMultistepScheduler", "DEISMultistepScheduler"], 25),
    }


ANCESTRAL = ("DDPMScheduler", "EulerAncestralDiscreteScheduler")


class ExactDenoiser(DiTModel):
    """The exact answer for data from N(MEAN, STD^2), whatever it was asked to predict."""

    MEAN, STD = 0.7, 0.5
    objective = None

    def condition(self, timestep, class_labels=None, drop_labels=None):
        return DiTConditioning(embedding=timestep)

    def forward(self, hidden_states, conditioning):
        t = conditioning.embedding.to(torch.float64).reshape(-1, 1, 1, 1)
        if isinstance(self.objective, FlowLoss):
            a, b = 1 - t / 1000, t / 1000
        else:  # fractional timesteps, as the Euler family has them, lie between the tables' entries
            table, low = self.objective.schedule.alpha_bar, t.floor().long()
            log = table.log()
            alpha_bar = (log[low] + (t - low) * (log[(low + 1).clamp(max=999)] - log[low])).exp()
            a, b = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x_t = hidden_states.double()
        x_0 = self.MEAN + a * self.STD**2 / (a**2 * self.STD**2 + b**2) * (x_t - a * self.MEAN)
        noise = (x_t - a * x_0) / b
        answers = {"epsilon": noise, "sample": x_0, "v_prediction": a * noise - b * x_0, "flow_prediction": noise - x_0}
        answer = answers[self.objective.prediction_type].float()
        if self.config.learn_sigma:
            answer = torch.cat([answer, torch.ones_like(answer)], 1)  # beta, the larger of the two variances
        return type("Answer", (), {"sample": answer})


@pytest.mark.parametrize("name", OBJECTIVES)
def test_saved_scheduler_turns_the_exact_model_of_each_objective_into_its_data(name):
    objective = OBJECTIVES[name]()
    config = DiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, sample_size=16, num_classes=0)
    config.learn_sigma = name == "hybrid"
    model = ExactDenoiser(config)
    model.objective = objective
    scheduler_config = objective.scheduler_config()
    scheduler = getattr(diffusers, scheduler_config["_class_name"]).from_config(scheduler_config)
    pipe = tiny_pipeline(model, scheduler, vae=None, prediction_type=objective.prediction_type)
    steps = 250 if name == "hybrid" else 100
    samples = pipe(
        num_images=16, guidance_scale=1, num_inference_steps=steps, generator=seeded(0), output_type="latent"
    ).images
    # 16,384 values: the mean strays by 0.004, the deviation by 0.003; first-order steps add up to 0.006
    assert abs(samples.mean() - ExactDenoiser.MEAN) < 0.012
    assert abs(samples.std() - ExactDenoiser.STD) < 0.012


@pytest.mark.parametrize("name", [name for name, traits in SCHEDULERS.items() if not traits.flow])
def test_each_scheduler_samples_the_gaussian_of_an_exact_model(name):
    config = DiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, sample_size=16, num_classes=0)
    config.learn_sigma = False
    model = ExactDenoiser(config)
    model.objective = OBJECTIVES["epsilon"]()
    pipe = tiny_pipeline(model, scheduler_by_name(name), vae=None)
    samples = pipe(
        num_images=16, guidance_scale=1, num_inference_steps=250, generator=seeded(0), output_type="latent"
    ).images
    assert abs(samples.mean() - ExactDenoiser.MEAN) < 0.015
    # the smaller of the two variances, which the ancestral ones take, leaves some: 0.019 at 250 steps, 0.030 at 100
    assert abs(samples.std() - ExactDenoiser.STD) < (0.025 if name in ANCESTRAL else 0.015)


# --- steps of one's own, sizes, memory -------------------------------------------------------------------------------


def test_timesteps_of_ones_own_are_taken():
    pipe = tiny_pipeline()
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    arguments = {"latents": latents, "output_type": "latent"}
    images = [
        pipe(7, generator=seeded(1), **steps, **arguments).images
        for steps in ({"num_inference_steps": 4}, {"timesteps": [999, 666, 333, 0]}, {"timesteps": np.array([999, 9])})
    ]
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=0)
    assert pipe.scheduler.timesteps.tolist() == [999, 9]
    assert not torch.equal(images[1], images[2])


def test_sigmas_of_ones_own_are_taken():
    pipe = tiny_pipeline(tiny_model(learn_sigma=False), scheduler_by_name("EulerDiscreteScheduler"))
    rows = count_rows(pipe)
    pipe(7, sigmas=[80.0, 10.0, 1.0, 0.0], output_type="latent")  # this scheduler wants the last one too
    assert len(rows) == 3
    assert pipe.scheduler.sigmas.tolist() == [80.0, 10.0, 1.0, 0.0]
    assert pipe.scheduler.init_noise_sigma >= 80


@pytest.mark.parametrize("policy", ["extend", "interpolate"])
def test_other_sizes_are_sampled_under_a_named_policy(policy):
    pipe = tiny_pipeline()
    sizes = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape[2:])))
    images = pipe(7, height=24, width=12, position_policy=policy, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 24, 12, 3)
    assert sizes == [(12, 6)] * 2


def test_trained_size_needs_no_policy():
    pipe = tiny_pipeline()
    arguments = {"num_inference_steps": 2, "output_type": "latent"}
    images = [pipe(7, generator=seeded(0), **size, **arguments).images for size in ({}, {"height": 16, "width": 16})]
    torch.testing.assert_close(*images, rtol=0, atol=0)


def test_vae_decodes_in_chunks():
    pipe = tiny_pipeline()
    latents = torch.randn(5, 4, 8, 8, generator=seeded(0))
    expected = pipe._decode(latents, "pt")
    chunks = []
    pipe.vae.decoder.register_forward_pre_hook(lambda _, args: chunks.append(len(args[0])))
    pipe.decode_batch_size = 2
    torch.testing.assert_close(pipe._decode(latents, "pt"), expected, rtol=1e-5, atol=1e-6)
    assert chunks == [2, 2, 1]


def test_vae_slicing_and_tiling_are_the_vae_s_own():
    pipe = tiny_pipeline(vae=tiny_vae(sample_size=8))
    latents = torch.randn(2, 4, 8, 8, generator=seeded(0))
    seen = []
    pipe.vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    pipe.vae.enable_slicing()
    pipe._decode(latents, "pt")
    assert seen == [(1, 4, 8, 8)] * 2
    pipe.vae.disable_slicing()
    pipe.vae.enable_tiling()
    assert pipe._decode(latents, "pt").shape == (2, 3, 16, 16)
    assert len(seen) > 3


@pytest.mark.parametrize("sequential", [True, False])
def test_offloaded_models_are_brought_back_for_each_part(sequential):
    pipe = tiny_pipeline()
    latents = torch.randn(2, 4, 8, 8, generator=seeded(0))
    arguments = {"latents": latents, "num_inference_steps": 3, "output_type": "np"}
    tall = {"height": 24, "position_policy": "extend", "num_inference_steps": 2, "output_type": "np"}
    expected = pipe([1, 7], generator=seeded(1), **arguments).images
    expected_tall = pipe(3, generator=seeded(2), **tall).images
    if sequential:  # as enable_sequential_cpu_offload does, which names the device "cpu:0" and trips on it
        for model in (pipe.transformer, pipe.vae):
            accelerate.cpu_offload(model, torch.device("cpu"))
        assert pipe.transformer.pos_embed.is_meta
    else:
        pipe.enable_model_cpu_offload(device="cpu")
    np.testing.assert_allclose(pipe([1, 7], generator=seeded(1), **arguments).images, expected, atol=1e-6)
    np.testing.assert_allclose(pipe(3, generator=seeded(2), **tall).images, expected_tall, atol=1e-6)
    assert hasattr(pipe.transformer, "_hf_hook")


@pytest.mark.slow
@pytest.mark.parametrize("regional", [True, False])
def test_compiled_model_is_not_compiled_again(regional):
    dynamo.reset()
    counters.clear()
    pipe = tiny_pipeline(tiny_model(num_hidden_layers=3), DDIMScheduler(clip_sample=False))
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    expected = pipe(3, latents=latents, num_inference_steps=4, output_type="latent").images
    if regional:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    else:
        pipe.transformer = torch.compile(pipe.transformer, fullgraph=True, backend="eager")
    found = pipe(3, latents=latents, num_inference_steps=4, output_type="latent").images
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)

    def graphs_after(labels, **arguments):
        pipe(labels, output_type="latent", **arguments)
        return counters["stats"]["unique_graphs"]

    assert counters["stats"]["unique_graphs"] == 1  # one for the three blocks
    assert graphs_after(5, guidance_scale=1.5, num_inference_steps=7) == 1  # labels, guidance, steps
    assert graphs_after(5, guidance_scale=1.5, num_inference_steps=3, eta=0.5) == 1
    # a batch of one, and batches of any other size
    assert graphs_after(5, num_inference_steps=4, guidance_interval=(0.5, 1.0)) == 2
    assert graphs_after([5, 5], num_inference_steps=4, guidance_interval=(0.0, 0.5)) == 3
    assert graphs_after([1, 2, 3], num_inference_steps=5, guidance_interval=(0.4, 1.0)) == 3
    assert not counters["graph_break"]


# --- other guides ----------------------------------------------------------------------------------------------------


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
    found = pipe([1, 7], 2.0, guide_model=weak, guidance_interval=(0.0, 0.6), **arguments).images
    assert (rows, weak_rows) == ([2] * 5, [2] * 3)
    x, ids = latents, torch.tensor([1, 7])
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):  # Karras et al. 2024, eq. 3, by hand
            strong = pipe.transformer(x, t, ids).sample[:, :4]
            eps = 2.0 * strong - weak(x, t, ids).sample if step < 3 else strong
            x = pipe.scheduler.step(eps, t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-3)
    # a model guides nothing towards itself
    same = pipe([1, 7], 3.0, guide_model=pipe.transformer, **arguments).images
    torch.testing.assert_close(same, pipe([1, 7], 1.0, **arguments).images, rtol=1e-4, atol=1e-3)


# --- labels ------------------------------------------------------------------------------------------------------


def test_names_synonyms_and_ids_mix():
    pipe = tiny_pipeline(id2label={str(key): value for key, value in ID2LABEL.items()})
    assert pipe.config.id2label == ID2LABEL
    assert pipe.labels == {"Tinca tinca": 0, "bird": 2, "goldfish": 1, "machine": 3, "tench": 0}
    assert pipe.get_label_ids("tench") == [0]
    assert pipe.get_label_ids(["goldfish", "Tinca tinca"]) == [1, 0]
    arguments = {"num_inference_steps": 2, "guidance_scale": 1, "output_type": "latent"}
    expected = pipe([0, 1, 7], generator=seeded(0), **arguments).images
    for labels in (["tench", 1, 7], torch.tensor([0, 1, 7]), np.array([0, 1, 7]), ("Tinca tinca", "goldfish", 7)):
        torch.testing.assert_close(pipe(labels, generator=seeded(0), **arguments).images, expected, rtol=0, atol=0)


WORDS = st.text(max_size=3) | st.sampled_from(["crane", "bird", " bird ", "crane, bird", "a,,b", "'", '"', "0"])
PARTS = tiny_pipeline()


@given(id2label=st.dictionaries(st.integers(0, 9), st.lists(WORDS, max_size=3).map(", ".join)), name=WORDS)
def test_any_name_is_found_where_one_class_has_it_and_else_refused(id2label, name):
    index = json.loads(json.dumps(id2label))  # the form that it has in a saved folder
    pipe = DiTPipeline(PARTS.transformer, None, PARTS.scheduler, id2label=index)
    assert pipe.config.id2label == (id2label or None)
    classes = [label_id for label_id, label in id2label.items() if name in map(str.strip, label.split(","))]
    if len(classes) == 1:
        assert pipe.get_label_ids(name) == classes
        assert pipe.labels[name] == classes[0]
        return
    assert name not in pipe.labels
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        pipe.get_label_ids(name)


def test_training_mode_drops_no_label():
    pipe = tiny_pipeline()
    # unguarded, one of 200 labels would be dropped with probability 1 - 1e-9
    arguments = {"class_labels": [*range(10)], "guidance_scale": 1, "num_inference_steps": 20, "output_type": "latent"}
    expected = pipe(**arguments, generator=seeded(0)).images
    pipe.transformer.train()
    torch.testing.assert_close(pipe(**arguments, generator=seeded(0)).images, expected, rtol=0, atol=0)


def test_images_of_one_label_stand_next_to_each_other():
    pipe = tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False))
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0)).expand(4, 4, 8, 8)
    arguments = {"guidance_scale": 1, "num_inference_steps": 3, "output_type": "latent"}
    images = pipe([7, 2], num_images_per_label=2, latents=latents, **arguments).images
    alone = pipe(2, latents=latents[:1], **arguments).images
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=0)
    torch.testing.assert_close(images[2:], alone.expand(2, 4, 8, 8), rtol=1e-5, atol=1e-4)
    assert (images[0] - images[2]).abs().max() > 1e-2


def test_unconditional_model_takes_a_number_of_images():
    pipe = tiny_pipeline(tiny_model(num_classes=0))
    assert pipe(num_images=3, guidance_scale=1, num_inference_steps=1, output_type="latent").images.shape[0] == 3
    with pytest.raises(ValueError, match="unconditional, pass num_images"):
        pipe([1], guidance_scale=1)
    with pytest.raises(ValueError, match="guidance_scale=1"):
        pipe(num_images=1)


def test_guidance_without_a_null_class_is_refused():
    pipe = tiny_pipeline(tiny_model(class_dropout_prob=0.0))
    with pytest.raises(ValueError, match=r"class_dropout_prob=0.0 has no null class.*guidance_scale=1"):
        pipe([1])
    pipe([1], guidance_scale=1, num_inference_steps=1, output_type="latent")


# --- refusals ----------------------------------------------------------------------------------------------------

BAD_CALLS = {
    "the null class": ({"class_labels": 10}, r"class_labels\[0\]=10 is outside 0..9"),
    "a negative id": ({"class_labels": [1, -1]}, r"class_labels\[1\]=-1"),
    "a bool": ({"class_labels": [True]}, "True"),
    "a float": ({"class_labels": 1.0}, r"1\.0"),
    "a nested list": ({"class_labels": [[1]]}, r"\[1\]"),
    "no label": ({"class_labels": []}, "empty"),
    "None": ({"class_labels": None}, "10 classes"),
    "a misspelt name": ({"class_labels": "goldfsh"}, "did you mean 'goldfish'"),
    "a number as a name": ({"class_labels": "7"}, "'7'"),
    "a name of two classes": ({"class_labels": "crane"}, "classes 2, 3"),
    "num_images with labels": ({"num_images": 2}, "num_images_per_label"),
    "no images": ({"num_images_per_label": 0}, "num_images_per_label=0"),
    "NaN guidance": ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
    "negative guidance": ({"guidance_scale": -1}, "guidance_scale=-1"),
    "guidance as text": ({"guidance_scale": "4"}, "guidance_scale='4'"),
    "unknown guidance channels": ({"guidance_channels": "three"}, "first_three, all"),
    "no steps": ({"num_inference_steps": 0}, "num_inference_steps=0"),
    "half steps": ({"num_inference_steps": 2.5}, "num_inference_steps=2.5"),
    "too many steps": ({"num_inference_steps": 1001}, "at most 1000"),
    "unknown output": ({"output_type": "jpg"}, "pil, np, pt, latent"),
    "two generators for one image": ({"generator": [seeded(0), seeded(1)]}, "2 generators for 1 images"),
    "latents of another size": ({"latents": torch.zeros(1, 4, 4, 4)}, r"\(1, 4, 8, 8\)"),
    "eta where there is none": ({"eta": 0.5}, "DDPMScheduler has none"),
    "NaN as a label": ({"class_labels": float("nan")}, "nan"),
    "infinite guidance": ({"guidance_scale": math.inf}, "guidance_scale=inf"),
    "negative steps": ({"num_inference_steps": -1}, "num_inference_steps=-1"),
    "a seed as a generator": ({"generator": 5}, r"generator=5: pass torch.Generator\(\)"),
    "a list of seeds": ({"generator": [5]}, "generator=5"),
    "an interval that ends before it begins": ({"guidance_interval": (0.6, 0.4)}, "0 <= low < high <= 1"),
    "an interval over all steps and more": ({"guidance_interval": (0.0, 1.5)}, r"guidance_interval=\(0.0, 1.5\)"),
    "an interval of one number": ({"guidance_interval": 0.5}, "guidance_interval=0.5"),
    "an interval of NaN": ({"guidance_interval": (math.nan, 1.0)}, "guidance_interval"),
    "an unknown unit": ({"guidance_interval_unit": "seconds"}, "steps, sigma"),
    "rising timesteps": ({"timesteps": [0, 500]}, r"timesteps=\[0, 500\]: pass falling numbers in 0..999"),
    "a timestep beyond training": ({"timesteps": [1000, 500]}, "timesteps=.*0..999"),
    "a fractional timestep": ({"timesteps": [500.5]}, "timesteps=.*list of numbers"),
    "no timesteps": ({"timesteps": []}, "at least one"),
    "steps given twice": ({"timesteps": [5], "num_inference_steps": 3}, "num_inference_steps and timesteps"),
    "sigmas where they are not taken": ({"sigmas": [1.0]}, "DDPMScheduler takes no sigmas"),
    "another size without a policy": ({"height": 32}, r"\[32, 16\] pixels from a model of \[16, 16\]: .*'interpolate'"),
    "an unknown policy": ({"height": 32, "position_policy": "crop"}, "'crop'"),
    "a size between patches": ({"height": 18, "position_policy": "extend"}, "height=18: pass a multiple of 4"),
    "no height": ({"height": 0}, "height=0"),
    "a guider of attention": (
        {"guidance_scale": SkipLayerGuidance(skip_layer_guidance_layers=[0])},
        "SkipLayerGuidance .*choose from ClassifierFreeGuidance",
    ),
    "a guider that fails on latents": ({"guidance_scale": MagnitudeAwareGuidance()}, "MagnitudeAwareGuidance"),
    "a guide of other classes": ({"guide_model": tiny_model(num_classes=3)}, "num_classes=3, the transformer 10"),
    "a guide that is no DiT": ({"guide_model": tiny_vae()}, "model_type=None"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_argument_is_refused_before_any_work(arguments, message):
    pipe = tiny_pipeline(id2label=ID2LABEL)
    pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message):
        pipe(**{"class_labels": 1, **arguments})


def ddpm(**config) -> DDPMScheduler:
    return DDPMScheduler(**{**PAPER, **config})


BAD_PARTS = {
    "a scheduler out of the table": (
        lambda: {"scheduler": diffusers.LCMScheduler()},
        r"LCMScheduler is not supported.*DDIMScheduler",
    ),
    "a solver that cuts the variance": (
        lambda: {"scheduler": diffusers.DPMSolverMultistepScheduler.from_config(ddpm().config)},
        r"DPMSolverMultistepScheduler.from_config\(config, variance_type=None\)",
    ),
    "a learned variance that nobody learned": (
        lambda: {"model": tiny_model(learn_sigma=False)},
        "variance_type='fixed_small'",
    ),
    "another prediction": (lambda: {"prediction_type": "v_prediction"}, "'epsilon'.*'v_prediction'"),
    "a flow scheduler without its word": (
        lambda: {"scheduler": FlowMatchEulerDiscreteScheduler()},
        "prediction_type='flow_prediction'",
    ),
    "a flow scheduler for epsilon": (
        lambda: {"scheduler": FlowMatchEulerDiscreteScheduler(), "prediction_type": "epsilon"},
        "DDIMScheduler",
    ),
    "a flow model under betas": (
        lambda: {"prediction_type": "flow_prediction"},
        "FlowMatchEulerDiscreteScheduler",
    ),
    "flow prediction without flow sigmas": (
        lambda: {"scheduler": diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction")},
        "use_flow_sigmas=True",
    ),
    "other latent channels": (
        lambda: {"vae": tiny_vae(latent_channels=8)},
        "latent_channels=8, the model in_channels=4",
    ),
    "no scaling factor": (lambda: {"vae": tiny_vae(scaling_factor=0.0)}, "scaling_factor=0.0"),
    "a mean of other channels": (lambda: {"vae": tiny_vae(latents_mean=[0.0])}, "1 numbers in latents_mean for 4"),
    "names beyond the classes": (lambda: {"id2label": {10: "null"}}, r"10.*0\.\.9"),
    "unknown guidance channels": (lambda: {"guidance_channels": "four"}, "first_three, all"),
    "another transformer": (lambda: {"model": tiny_vae()}, "not a DiTModel"),
}


@pytest.mark.parametrize(("parts", "message"), BAD_PARTS.values(), ids=BAD_PARTS)
def test_parts_that_do_not_fit_are_refused_at_construction(parts, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**parts())


def test_scheduler_that_is_swapped_in_later_is_checked_too():
    pipe = tiny_pipeline()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="timestep_spacing='leading'"):
        pipe(1)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="1000 // 30"):
        pipe(1, num_inference_steps=30)
    pipe.scheduler = DDIMScheduler(prediction_type="v_prediction")
    with pytest.raises(ValueError, match="'v_prediction', the model was trained with 'epsilon'"):
        pipe(1)
    pipe.scheduler = DDIMScheduler(clip_sample=False)
    pipe(1, num_inference_steps=2, eta=1.0, output_type="latent")


def test_clipping_of_latents_is_warned_about(caplog):
    diffusers.utils.logging.enable_propagation()
    tiny_pipeline(scheduler=ddpm(clip_sample=True))
    assert "clip_sample=True" in caplog.text


# --- numbers -----------------------------------------------------------------------------------------------------


def test_non_finite_latents_name_the_step():
    def spoil(pipe, step, t, tensors):
        return {"latents": tensors["latents"] * float("inf")} if step == 1 else {}

    with pytest.raises(FloatingPointError, match=r"after step 2 \(t = 0\)"):
        tiny_pipeline()(1, num_inference_steps=3, callback_on_step_end=spoil)


def test_non_finite_image_is_an_error():
    pipe = tiny_pipeline()
    pipe.vae.decoder.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="VAE"):
        pipe(1, num_inference_steps=1)


def test_image_with_its_own_generator_is_independent_of_its_batch():
    pipe = tiny_pipeline()
    arguments = {"num_inference_steps": 3, "output_type": "latent"}
    batch = pipe([1, 7, 2], generator=[seeded(11), seeded(12), seeded(13)], **arguments).images
    alone = pipe(7, generator=seeded(12), **arguments).images
    # a matrix product of another height may sum in another order; values reach some hundreds
    torch.testing.assert_close(batch[1:2], alone, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.5},
        {"scaling_factor": 2.0, "shift_factor": 0.3},
        {"scaling_factor": 1.0, "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]},
    ],
)
def test_latents_are_unscaled_before_decoding(config):
    vae = tiny_vae(**config)
    pipe = tiny_pipeline(vae=vae)
    z = torch.randn(1, 4, 8, 8, generator=seeded(0))  # what the encoder gave
    mean, std = (torch.tensor(config.get(key, [0.0])).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std"))
    std = torch.where(std == 0, 1, std)
    scaled = (z - mean - config.get("shift_factor", 0.0)) / std * config["scaling_factor"]
    with torch.no_grad():
        expected = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
        torch.testing.assert_close(pipe._decode(scaled, "pt"), expected, rtol=1e-4, atol=1e-5)


def test_pil_images_round_as_the_paper_s_code_and_diffusers():
    pipe = tiny_pipeline()
    latents = torch.randn(2, 4, 8, 8, generator=seeded(0)) / pipe.vae.config.scaling_factor
    with torch.no_grad():
        images = np.stack([np.asarray(image) for image in pipe._decode(latents, "pil")])
        x = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    expected = (127.5 * x + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert images.shape == (2, 16, 16, 3)
    assert (images == expected).mean() > 0.999  # they differ in ties only


class Float32Only(DDPMScheduler):
    def step(self, model_output, timestep, sample, **arguments):
        assert model_output.dtype == sample.dtype == torch.float32
        return super().step(model_output, timestep, sample, **arguments)


def test_half_precision_keeps_float32_latents_and_a_vae_that_overflows():
    pipe = tiny_pipeline(scheduler=Float32Only(**PAPER))
    arguments = {"class_labels": 7, "guidance_scale": 1, "num_inference_steps": 4, "output_type": "latent"}
    expected = pipe(**arguments, generator=seeded(0)).images
    pipe.transformer.to(torch.bfloat16)
    pipe.vae.to(torch.float16)
    latents = pipe(**arguments, generator=seeded(0)).images
    assert latents.dtype == torch.float32
    assert (latents - expected).std() < 0.1 * expected.std()  # one bfloat16 forward may err by 3e-2, here are four
    image = pipe._decode(torch.zeros(1, 4, 8, 8), "pt")
    assert pipe.vae.dtype == torch.float16
    assert image.dtype == torch.float32


def test_outputs_come_in_the_named_forms():
    pipe = tiny_pipeline()
    arguments = {"class_labels": [1, 2], "num_inference_steps": 1}
    assert [image.size for image in pipe(**arguments).images] == [(16, 16)] * 2
    assert pipe(**arguments, output_type="np").images.shape == (2, 16, 16, 3)
    assert pipe(**arguments, output_type="pt", return_dict=False)[0].shape == (2, 3, 16, 16)
    pixels = tiny_pipeline(vae=None)
    assert pixels(**arguments, output_type="pt").images.shape == (2, 4, 8, 8)


def test_rectangular_latents_are_sampled():
    pipe = tiny_pipeline(tiny_model(sample_size=(4, 8)))
    assert pipe(1, num_inference_steps=1, output_type="latent").images.shape == (1, 4, 4, 8)


# --- from an image -----------------------------------------------------------------------------------------------


def picture(seed: int = 0, size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


STARTS_MIDWAY = [name for name, traits in SCHEDULERS.items() if traits.starts_midway]


def variant(cls, name="DDIMScheduler", **parts):
    flow = SCHEDULERS[name].flow
    parts = {"model": tiny_model(learn_sigma=False), "scheduler": scheduler_by_name(name), **parts}
    pipe = cls.from_pipe(tiny_pipeline(**parts, prediction_type="flow_prediction" if flow else None))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", STARTS_MIDWAY)
def test_image_is_noised_to_the_level_of_the_first_step_taken(name):
    pipe = variant(DiTImg2ImgPipeline, name)
    noise = torch.randn(1, 4, 8, 8, generator=seeded(0))
    seen = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    arguments = {"strength": 0.5, "num_inference_steps": 10, "latents": noise, "output_type": "latent"}
    final = pipe(picture(), 7, guidance_scale=1, **arguments).images
    order = pipe.scheduler.order
    assert len(seen) == 5 * order - (order - 1)  # the last step of a second-order method takes one evaluation
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None] / 127.5 - 1
        clean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    t = pipe.scheduler.timesteps[5 * order if order == 1 else -len(seen)]
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


def exact_model() -> ExactDenoiser:
    config = DiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, sample_size=16, num_classes=0)
    config.in_channels, config.learn_sigma = 3, False
    model = ExactDenoiser(config)
    model.objective = OBJECTIVES["epsilon"]()
    return model


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
    pipe(picture(), mask, 7, guidance_scale=1, num_inference_steps=6, latents=noise, output_type="latent")
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None] / 127.5 - 1
        clean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    log = None if SCHEDULERS[name].flow else pipe.scheduler.alphas_cumprod.double().log().numpy()
    for x, t in zip(inputs, pipe.scheduler.timesteps, strict=True):
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
    source = _Source(picture(), 1.0, mask)
    start = pipe._encode(source, (1, 4, 8, 8))
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


def test_scale_of_guidance_may_be_a_number_of_numpy():
    pipe = DiTPipeline(tiny_model(), None, DDIMScheduler(clip_sample=False))
    arguments = {"num_inference_steps": 2, "output_type": "latent"}
    images = [pipe(1, guidance_scale=scale, generator=seeded(0), **arguments).images for scale in (2, np.float32(2))]
    torch.testing.assert_close(*images, rtol=0, atol=0)


def test_inversion_has_the_betas_that_the_model_was_trained_with():
    trained = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False)
    pipe = DiTImg2ImgPipeline(tiny_model(in_channels=3, learn_sigma=False), None, trained)
    used = []

    def look(inverse: DiTPipeline, *_) -> None:
        used.append(inverse.scheduler)

    pipe.invert(torch.rand(1, 3, 8, 8), 1, num_inference_steps=2, callback_on_step_end=look)
    torch.testing.assert_close(used[0].betas, trained.betas, rtol=0, atol=0)


def test_autoencoder_that_fails_in_float32_is_half_again():
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=4, force_upcast=True).half()
    pipe = DiTPipeline(tiny_model(), vae, DDIMScheduler(clip_sample=False))
    with pytest.raises(MemoryError), pipe._safe_vae() as dtype:
        raise MemoryError
    assert (dtype, vae.dtype) == (torch.float32, torch.float16)


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
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no betas"):
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


def test_pipelines_share_their_parts_and_keep_their_dtypes():
    pipe = tiny_pipeline(id2label=ID2LABEL, guidance_channels="first_three")
    pipe.transformer.to(torch.bfloat16)
    for cls in (DiTImg2ImgPipeline, DiTInpaintPipeline, DiTPipeline):
        other = cls.from_pipe(pipe, scheduler=DDIMScheduler(clip_sample=False))
        assert other.transformer is pipe.transformer
        assert other.vae is pipe.vae
        assert (other.transformer.dtype, other.vae.dtype) == (torch.bfloat16, torch.float32)
        assert other.config.id2label == ID2LABEL
        assert other.config.guidance_channels == "first_three"
        assert type(other.scheduler) is DDIMScheduler
    assert type(pipe.scheduler) is DDPMScheduler


# --- saved folders -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "dit-tiny"
    pipe = tiny_pipeline(id2label=ID2LABEL, guidance_channels="first_three")
    pipe.save_pretrained(folder)
    np.save(folder.parent / "image.npy", sample(pipe))
    return folder


def sample(pipe) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe(["tench", 7], num_inference_steps=5, generator=seeded(5), output_type="np").images


def test_pipeline_comes_back_as_it_was_saved(saved, tmp_path):
    pipe = DiTPipeline.from_pretrained(saved)
    assert type(pipe) is DiTPipeline
    assert type(pipe.transformer) is DiTModel
    assert pipe.config.id2label == ID2LABEL
    assert pipe.config.guidance_channels == "first_three"
    np.testing.assert_array_equal(sample(pipe), np.load(saved.parent / "image.npy"))
    pipe.save_pretrained(tmp_path)
    for file in sorted(path for path in saved.rglob("*") if path.is_file()):
        assert (tmp_path / file.relative_to(saved)).read_bytes() == file.read_bytes(), file.name


def test_flow_model_comes_back_with_its_prediction_type(tmp_path):
    pipe = tiny_pipeline(
        tiny_model(learn_sigma=False), FlowMatchEulerDiscreteScheduler(), prediction_type="flow_prediction"
    )
    pipe.save_pretrained(tmp_path)
    assert DiTPipeline.from_pretrained(tmp_path).config.prediction_type == "flow_prediction"


def test_saved_folder_has_the_form_of_the_hub(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_dit", "DiTPipeline"]
    assert index["transformer"] == ["modeling_dit", "DiTModel"]
    assert index["id2label"] == {str(key): value for key, value in ID2LABEL.items()}
    assert index["guidance_channels"] == "first_three"
    assert "_name_or_path" not in index
    config = json.loads((saved / "transformer" / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "modeling_dit.DiTConfig", "AutoModel": "modeling_dit.DiTModel"}
    assert not [file for file in saved.rglob("*.json") if "_name_or_path" in file.read_text()]
    code = {path.relative_to(saved).as_posix(): path.read_text() for path in saved.rglob("*.py")}
    model = flatten(ROOT / "src" / "dit_hf" / "modeling_dit.py")
    pipeline = (ROOT / "src" / "dit_hf" / "pipeline_dit.py").read_text()
    assert code == {"pipeline_dit.py": pipeline, "modeling_dit.py": model, "transformer/modeling_dit.py": model}


def test_cached_repository_loads_offline_by_its_id(saved, tmp_path):
    commit = "0" * 40
    repository = tmp_path / "models--somebody--dit-tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(saved, target_is_directory=True)
    files = {path.relative_to(saved).as_posix(): path for path in saved.rglob("*") if path.is_file()}
    entries = {name: TreeCacheEntry(size=path.stat().st_size, blob_id="0" * 40) for name, path in files.items()}
    write_tree_cache(str(repository), commit, entries)  # the listing that a download leaves behind
    pipe = DiTPipeline.from_pretrained("somebody/dit-tiny", cache_dir=tmp_path, local_files_only=True)
    np.testing.assert_array_equal(sample(pipe), np.load(saved.parent / "image.npy"))


# --- routes: each in a process of its own ------------------------------------------------------------------------

WITHOUT_PACKAGE = "import importlib.util; assert importlib.util.find_spec('dit_hf') is None\n"
PIPELINE_IMAGE = """
import numpy as np, torch
pipe.set_progress_bar_config(disable=True)
image = pipe(["tench", 7], num_inference_steps=5, generator=torch.Generator().manual_seed(5), output_type="np").images
np.testing.assert_allclose(image, np.load(FOLDER + "/../image.npy"), rtol=0, atol=1e-5)
"""
MODEL_OUTPUT = """
import numpy as np, torch
golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN).items()}
with torch.no_grad():
    out = model.eval()(golden["x"], golden["t"], golden["y"]).sample
torch.testing.assert_close(out, golden["out"], rtol=1e-5, atol=1e-5)
"""
ROUTES = {
    "1 the package": "from dit_hf import DiTPipeline\npipe = DiTPipeline.from_pretrained(FOLDER)" + PIPELINE_IMAGE,
    "2 diffusers without the package": WITHOUT_PACKAGE
    + "from diffusers import DiffusionPipeline\n"
    + "pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)"
    + PIPELINE_IMAGE,
    "3 transformers without the package": WITHOUT_PACKAGE
    + "from transformers import AutoModel\n"
    + "model = AutoModel.from_pretrained(FOLDER, subfolder='transformer', trust_remote_code=True)"
    + MODEL_OUTPUT,
    "4 transformers with the package": "import dit_hf\nfrom transformers import AutoModel\n"
    + "model = AutoModel.from_pretrained(FOLDER, subfolder='transformer')\n"
    + "assert type(model) is dit_hf.DiTModel"
    + MODEL_OUTPUT,
}


def run_elsewhere(code: str, folder: Path, tmp_path: Path) -> None:
    """Run code in a fresh process that sees the folder, and the source only where it imports the package."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    # without `site` no .pth file is read, so the libraries are there and a package installed for development is not
    without = WITHOUT_PACKAGE in code
    environment["PYTHONPATH"] = sysconfig.get_path("purelib") if without else str(ROOT / "src")
    header = f"FOLDER, GOLDEN = {str(folder)!r}, {str(GOLDEN / 'dit_p2_c4.npz')!r}\n"
    command = [sys.executable, *(["-S"] if without else []), "-c", header + code]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("code", ROUTES.values(), ids=ROUTES)
def test_saved_folder_loads_by_every_route(code, saved, tmp_path):
    run_elsewhere(code, saved, tmp_path)


@pytest.mark.slow
def test_pipeline_of_images_comes_back_by_its_class_with_and_without_the_package(tmp_path):
    folder = tmp_path / "dit-tiny"
    pipe = variant(DiTImg2ImgPipeline, id2label=ID2LABEL)
    pipe.save_pretrained(folder)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == [
        "pipeline_dit",
        "DiTImg2ImgPipeline",
    ]
    arguments = {"strength": 0.5, "num_inference_steps": 4, "output_type": "np"}
    expected = pipe(picture(), "tench", generator=seeded(5), **arguments).images
    for cls in (DiTImg2ImgPipeline, DiTPipeline, DiTInpaintPipeline):
        assert type(cls.from_pretrained(folder)) is cls
    picture().save(tmp_path / "picture.png")
    np.save(tmp_path / "expected.npy", expected)
    code = f"""
import numpy as np, torch
from PIL import Image
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
assert type(pipe).__name__ == "DiTImg2ImgPipeline"
generator = torch.Generator().manual_seed(5)
found = pipe(Image.open(FOLDER + "/../picture.png"), "tench", generator=generator, **{arguments!r}).images
np.testing.assert_allclose(found, np.load(FOLDER + "/../expected.npy"), rtol=0, atol=1e-5)
"""
    run_elsewhere(WITHOUT_PACKAGE + code, folder, tmp_path)


@pytest.mark.slow
def test_remote_code_is_refused_unless_it_is_trusted(saved, tmp_path):
    code = """
from diffusers import DiffusionPipeline
try:
    DiffusionPipeline.from_pretrained(FOLDER)
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise AssertionError("it loaded")
"""
    run_elsewhere(WITHOUT_PACKAGE + code, saved, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("route", ["diffusers", "transformers"])
def test_folder_saved_by_remote_code_is_the_same_again(route, saved, tmp_path):
    again = tmp_path / "again"
    load = {
        "diffusers": "pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)\n",
        "transformers": "model = AutoModel.from_pretrained(FOLDER, subfolder='transformer', trust_remote_code=True)\n"
        "pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)\npipe.transformer = model\n",
    }[route]
    imports = "from diffusers import DiffusionPipeline\nfrom transformers import AutoModel\n"
    run_elsewhere(WITHOUT_PACKAGE + imports + load + f"pipe.save_pretrained({str(again)!r})\n", saved, tmp_path)
    # the same bytes load by the same routes
    files = {path.relative_to(saved) for path in saved.rglob("*") if path.is_file()}
    assert {path.relative_to(again) for path in again.rglob("*") if path.is_file()} == files
    for file in sorted(files):
        assert (again / file).read_bytes() == (saved / file).read_bytes(), file


@pytest.mark.parametrize(
    ("damage", "message"),
    [("cut", "safetensors is cut short"), ("infinite", "1 weights are not finite: pos_embed")],
)
def test_pipeline_with_damaged_weights_is_refused(tmp_path, damage, message):
    tiny_pipeline().save_pretrained(tmp_path)
    file = tmp_path / "transformer" / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    else:
        weights = load_file(file)
        weights["pos_embed"][0, 0, 0] = math.inf
        save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        DiTPipeline.from_pretrained(tmp_path)
