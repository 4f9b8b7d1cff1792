"""Every scheduler with all betas, sigmas and numbers of steps: finite latents, or a refusal before any work."""

import inspect
import itertools
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from sampling_parts import sampled, seeded

from dit_hf import DiTConfig, DiTImg2ImgPipeline, DiTModel, DiTPipeline
from dit_hf.modeling_dit import DiTConditioning
from dit_hf.sampling import rehearsal
from dit_hf.sampling.schedulers import SCHEDULERS

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # DEIS, with numpy 2

BETAS = [
    {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    {"beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "linear", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"beta_schedule": "linear", "rescale_betas_zero_snr": True, "prediction_type": "epsilon"},
]
SOLVERS = [name for name, traits in SCHEDULERS.items() if traits.divides_by_step]
LEVELS = [
    *({"timestep_spacing": spacing} for spacing in ("linspace", "leading", "trailing")),
    *({f"use_{kind}": True} for kind in ("karras_sigmas", "exponential_sigmas", "beta_sigmas", "lu_lambdas")),
    {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
]


class Half(DiTModel):
    """Answers at once, with half of what it is asked."""

    evaluations = 0

    def condition(self, timestep, class_labels=None, drop_labels=None):
        return DiTConditioning(embedding=timestep)

    def forward(self, hidden_states, conditioning):
        self.evaluations += 1
        return SimpleNamespace(sample=hidden_states / 2)


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "sample_size": 2, "in_channels": 1}
MODEL = Half(DiTConfig(**SIZES, num_classes=0, learn_sigma=False))


def make(cls: type, scheduler) -> DiffusionPipeline:
    flow = SCHEDULERS[type(scheduler).__name__].flow or scheduler.config.get("use_flow_sigmas")
    pipe = cls(MODEL, None, scheduler, prediction_type="flow_prediction" if flow else None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def settings_of(name: str, num_train: int) -> list[dict]:
    """All combinations of settings that a scheduler's class has."""
    known = inspect.signature(getattr(diffusers, name)).parameters
    combined = [{**betas, **levels} for betas in BETAS for levels in LEVELS if next(iter(levels)) in known]
    combined = [{key: value for key, value in chosen.items() if key in known} for chosen in combined or BETAS]
    usual = {"num_train_timesteps": num_train, **({"clip_sample": False} if "clip_sample" in known else {})}
    return [{**usual, **chosen} for k, chosen in enumerate(combined) if chosen not in combined[:k]]


def outcome(pipe, num_steps: int, **source) -> str:
    """ "finite", or the message of a refusal before any work."""
    MODEL.evaluations = 0
    arguments = {"num_images": 1, "guidance_scale": 1, "num_inference_steps": num_steps, "generator": seeded(0)}
    try:
        latents = pipe(**source, **arguments, output_type="latent").images
    except ValueError as error:
        assert MODEL.evaluations == 0
        return str(error)
    assert torch.isfinite(latents).all()
    return "finite"


KINDS = {  # of outcomes, by a part of the message
    "finite": "finite",
    "strength": "strength=0.1 of",
    "spacing": "always steps by",
    "PNDM": "num_inference_steps=4 or more",
    "midway": "cannot start from an image",
    "fails": " fails in step ",
}


def pipelines_of(name: str, settings: dict) -> list[tuple[DiffusionPipeline, dict]]:
    """A pipeline from noise and one from an image, each with its arguments; none for epsilon without any signal."""
    scheduler = getattr(diffusers, name)(**settings)
    if settings.get("rescale_betas_zero_snr") and settings["prediction_type"] == "epsilon":
        with pytest.raises(ValueError, match="rescale_betas_zero_snr=False"):  # the remedy
            make(DiTPipeline, scheduler)
        return []
    image = {"image": torch.full((1, 1, 2, 2), 0.7), "strength": 0.1}
    return [(make(DiTPipeline, scheduler), {}), (make(DiTImg2ImgPipeline, scheduler), image)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_combination_ends_in_finite_latents_or_is_refused_before_any_work(name: str):
    found = dict.fromkeys(KINDS, 0)
    for settings in settings_of(name, num_train=24):
        for (pipe, source), num_steps in itertools.product(pipelines_of(name, settings), [1, 2, 3, 10, 20, 24]):
            text = outcome(pipe, num_steps, **source)
            [kind] = [kind for kind, part in KINDS.items() if part in text]
            found[kind] += 1
    assert found["finite"] > 0
    assert found["fails"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("spacing", [None, "leading"])
def test_a_thousand_steps_are_the_thousand_timesteps(name: str, spacing: str | None):
    cls = getattr(diffusers, name)
    has_spacing = "timestep_spacing" in inspect.signature(cls).parameters
    scheduler = cls(timestep_spacing=spacing) if spacing and has_spacing else cls()
    before = dict(scheduler.config)
    arguments = {"num_images": 1, "guidance_scale": 1, "num_inference_steps": 1000, "output_type": "latent"}
    latents, used = sampled(make(DiTPipeline, scheduler), **arguments)
    assert used.timesteps.tolist() == list(range(1000))[::-1]
    assert torch.isfinite(latents).all()
    assert dict(scheduler.config) == before


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("sigmas", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_first_timestep_that_occurs_twice_is_not_skipped(name: str, sigmas: str):
    scheduler = getattr(diffusers, name)(beta_schedule="squaredcos_cap_v2", **{sigmas: True})
    steps = []
    keep = lambda call, *_: steps.append(call.scheduler.step_index)  # noqa: E731
    arguments = {"num_images": 1, "guidance_scale": 1, "num_inference_steps": 20, "output_type": "latent"}
    make(DiTPipeline, scheduler)(**arguments, callback_on_step_end=keep)
    assert steps == list(range(1, 21))


REFUSED = {
    "PNDM below four steps": ("PNDMScheduler", {"timestep_spacing": "leading"}, 3, "num_inference_steps=4 or more"),
    "a prediction that is not implemented": (
        "EulerAncestralDiscreteScheduler",
        {"prediction_type": "sample"},
        5,
        "NotImplementedError.*another scheduler",
    ),
    "noise levels that round to NaN": (
        "EulerAncestralDiscreteScheduler",
        {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"},
        3,
        r"fails in step 1 of 3 \(t = 999\), its numbers are not finite",
    ),
    "an offset beyond the training": (
        "DDPMScheduler",
        {"steps_offset": 1, "clip_sample": False},
        1000,
        "begins at timestep 1000, beyond the trained 0..999: .*steps_offset=0",
    ),
    "a last step of second order to no noise": (
        "UniPCMultistepScheduler",
        {"lower_order_final": False},
        10,
        "fails in step 10 of 10.*lower_order_final=False",
    ),
    "the root of a logarithm": (
        "DDPMScheduler",
        {"variance_type": "fixed_large_log", "clip_sample": False},
        5,
        "use 'fixed_large'",
    ),
    "betas of no signal": ("DDIMScheduler", {"trained_betas": [0.5, 1.0], "clip_sample": False}, 1, "trained_betas"),
}


@pytest.mark.parametrize(("name", "settings", "num_steps", "message"), REFUSED.values(), ids=REFUSED)
def test_steps_that_fail_are_refused_with_a_remedy(name: str, settings: dict, num_steps: int, message: str):
    MODEL.evaluations = 0
    with pytest.raises(ValueError, match=message):
        make(DiTPipeline, getattr(diffusers, name)(**settings))(
            num_images=1, guidance_scale=1, num_inference_steps=num_steps
        )
    assert MODEL.evaluations == 0


def test_rehearsal_changes_neither_the_scheduler_nor_any_generator():
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(5)
    generator, state = seeded(3), torch.get_rng_state()
    before = {name: np.copy(value) for name, value in vars(scheduler).items() if isinstance(value, torch.Tensor)}
    rehearsal.PASSED.clear()
    rehearsal.rehearse(scheduler, scheduler.timesteps, {"generator": generator}, False)
    assert scheduler.step_index is None
    assert all(np.array_equal(vars(scheduler)[name], value) for name, value in before.items())
    assert torch.equal(generator.get_state(), seeded(3).get_state())
    assert torch.equal(torch.get_rng_state(), state)


def test_settings_are_rehearsed_once(monkeypatch: pytest.MonkeyPatch):
    pipe, steps = make(DiTPipeline, diffusers.DEISMultistepScheduler()), []
    step = diffusers.DEISMultistepScheduler.step

    def counted(self, *args, **arguments):
        steps.append(1)
        return step(self, *args, **arguments)

    monkeypatch.setattr(diffusers.DEISMultistepScheduler, "step", counted)
    rehearsal.PASSED.clear()
    for num_steps, expected in ((4, 8), (4, 12), (5, 22)):
        pipe(num_images=1, guidance_scale=1, num_inference_steps=num_steps, output_type="latent")
        assert len(steps) == expected
