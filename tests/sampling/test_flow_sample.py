"""A model of flow matching that predicts x_0: the schedulers get the velocity that follows, in every pipeline."""

import inspect

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.guiders import AdaptiveProjectedGuidance
from sampling_parts import exact_model, seeded, tiny_model, tiny_pipeline

from dit_hf import DiTImg2ImgPipeline, DiTInpaintPipeline, DiTPipeline
from dit_hf.conversion import with_scheduler
from dit_hf.diffusion import OBJECTIVES
from dit_hf.sampling.schedulers import SCHEDULERS as SCHEDULERS_BY_NAME

FLOW_SIGMAS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS = {
    "Euler": FlowMatchEulerDiscreteScheduler(),
    "Euler, shift 3": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "Euler, Karras": FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
    "Heun": diffusers.FlowMatchHeunDiscreteScheduler(),
}


def exact_pipeline(name: str, scheduler, cls=DiTPipeline):
    """A pipeline whose model knows N(0.7, 0.25), and predicts what the objective of this name trains."""
    model = exact_model()
    model.objective = OBJECTIVES[name]()
    pipe = cls(model, None, scheduler, prediction_type=model.objective.prediction_type)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, *args, **arguments) -> torch.Tensor:
    arguments = {"guidance_scale": 1.0, "num_images": 2, "output_type": "latent", **arguments}
    return pipe(*args, generator=seeded(0), **arguments).images


@pytest.mark.parametrize("scheduler", SCHEDULERS.values(), ids=SCHEDULERS)
def test_x_0_and_velocity_give_the_same_samples(scheduler):
    found, expected = (
        sample(exact_pipeline(name, scheduler), num_inference_steps=20) for name in ("flow_sample", "flow")
    )
    # float32: the velocity is a difference that is divided by a small sigma
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"])
def test_solvers_with_flow_sigmas_sample_as_if_they_read_x_0(name):
    """They round their timesteps, so the velocity must be that of their own sigma."""
    cls, images = getattr(diffusers, name), []
    for predicted, read in (("flow_sample", "flow_prediction"), ("sample", "sample")):
        pipe = exact_pipeline("flow_sample", FlowMatchEulerDiscreteScheduler())
        scheduler = cls(**{**FLOW_SIGMAS, "prediction_type": read})
        pipe = DiTPipeline(pipe.transformer, None, scheduler, prediction_type=predicted)
        pipe.set_progress_bar_config(disable=True)
        images.append(sample(pipe, num_inference_steps=20))
    torch.testing.assert_close(*images, rtol=0, atol=1e-4)


@pytest.mark.parametrize("predicted", ["flow", "flow_sample"])
def test_solver_that_takes_the_place_of_the_scheduler_walks_the_shifted_path_more_exactly(predicted):
    pipe = exact_pipeline(predicted, FlowMatchEulerDiscreteScheduler(shift=3.0))
    z = torch.randn(2, 3, 16, 16, generator=seeded(0))
    errors = {}
    for name, traits in SCHEDULERS_BY_NAME.items():
        if not (traits.flow or "use_flow_sigmas" in inspect.signature(getattr(diffusers, name)).parameters):
            with pytest.raises(ValueError, match=f"'{name}' is no scheduler of diffusers for flow matching: choose "):
                with_scheduler(pipe, name)
            continue
        changed = with_scheduler(pipe, name)
        changed.set_progress_bar_config(disable=True)
        found = sample(changed, num_inference_steps=50, latents=z)
        errors[name] = (found - (0.7 + 0.5 * z)).square().mean().sqrt().item()
        assert found.mean().item() == pytest.approx(0.7, abs=0.05)
        assert with_scheduler(changed, "FlowMatchEulerDiscreteScheduler").scheduler.config.shift == 3.0
    euler = errors.pop("FlowMatchEulerDiscreteScheduler")
    assert errors.keys() >= {"DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "SASolverScheduler"}
    better = {"DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"}
    assert max(errors[name] for name in better) < euler / 2


def test_samples_converge_to_the_exact_path():
    """From noise z, the path of N(m, s^2) ends in m + s z."""
    errors = []
    for num_steps in (25, 50, 100, 200):
        pipe = exact_pipeline("flow_sample", FlowMatchEulerDiscreteScheduler())
        z = torch.randn(2, 3, 16, 16, generator=seeded(0))
        found = sample(pipe, num_inference_steps=num_steps, latents=z)
        errors.append((found - (0.7 + 0.5 * z)).square().mean().sqrt().item())
    assert errors[-1] < 5e-3
    assert -np.polyfit(np.log([25, 50, 100, 200]), np.log(errors), 1)[0] > 0.9  # first order


def test_last_step_of_euler_ends_at_what_the_model_predicts():
    class Constant(type(exact_model())):
        def forward(self, hidden_states, conditioning):
            return type("Answer", (), {"sample": torch.full_like(hidden_states, 0.25)})

    pipe = exact_pipeline("flow_sample", FlowMatchEulerDiscreteScheduler())
    pipe.transformer.__class__ = Constant
    torch.testing.assert_close(sample(pipe, num_inference_steps=7), torch.full((2, 3, 16, 16), 0.25), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cls", [DiTImg2ImgPipeline, DiTInpaintPipeline])
def test_pipelines_that_begin_with_an_image_convert_as_well(cls):
    image = torch.rand(1, 3, 16, 16, generator=seeded(1))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    args = (image,) if cls is DiTImg2ImgPipeline else (image, mask)
    for scheduler in (SCHEDULERS["Euler, shift 3"], SCHEDULERS["Heun"]):
        found, expected = (
            sample(exact_pipeline(name, scheduler, cls), *args, strength=0.6, num_inference_steps=20)
            for name in ("flow_sample", "flow")
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def twins():
    """Two models of one network: one answers x_0, the other the velocity of it."""
    x_0_model = tiny_model(learn_sigma=False)
    velocity_model = tiny_model(learn_sigma=False)
    velocity_model.load_state_dict(x_0_model.state_dict())
    forward = velocity_model.forward

    def answer(hidden_states, *, conditioning=None, **arguments):
        output = forward(hidden_states, conditioning=conditioning, **arguments)
        output.sample = (hidden_states - output.sample) / velocity_model.sigma
        return output

    def at_sigma(timestep, **arguments):
        assert len(timestep.unique()) == 1
        velocity_model.sigma = float(timestep[0]) / 1000
        return condition(timestep, **arguments)

    condition = velocity_model.condition
    velocity_model.forward, velocity_model.condition = answer, at_sigma
    return x_0_model, velocity_model


@pytest.mark.parametrize("scale", [1.0, 4.0, AdaptiveProjectedGuidance(guidance_scale=3.0)], ids=["1", "4", "APG"])
def test_guidance_combines_velocities(scale):
    images = []
    for model, predicted in zip(twins(), ("flow_sample", "flow_prediction"), strict=True):
        pipe = tiny_pipeline(model, FlowMatchEulerDiscreteScheduler(), None, prediction_type=predicted)
        pipe.conditioning_bytes = 1  # one step at a time
        images.append(
            pipe([1, 2], scale, 6, generator=seeded(0), output_type="latent").images,
        )
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-4)


def test_pipeline_comes_back_with_what_its_model_predicts(tmp_path):
    pipe = tiny_pipeline(
        tiny_model(learn_sigma=False), FlowMatchEulerDiscreteScheduler(), prediction_type="flow_sample"
    )
    image = pipe([3], 2.0, 4, generator=seeded(0), output_type="np").images
    pipe.save_pretrained(tmp_path)
    for cls in (DiTPipeline, DiTImg2ImgPipeline, DiTInpaintPipeline):
        assert cls.from_pretrained(tmp_path).config.prediction_type == "flow_sample"
    assert DiTImg2ImgPipeline.from_pipe(pipe).config.prediction_type == "flow_sample"
    loaded = diffusers.DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.prediction_type == "flow_sample"
    np.testing.assert_array_equal(loaded([3], 2.0, 4, generator=seeded(0), output_type="np").images, image)


@pytest.mark.parametrize(
    ("scheduler", "remedy"),
    [
        (diffusers.DDIMScheduler(prediction_type="sample"), "use FlowMatchEulerDiscreteScheduler"),
        (diffusers.DDPMScheduler(), "use FlowMatchEulerDiscreteScheduler"),
        (diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction"), "needs use_flow_sigmas=True"),
    ],
    ids=["sample", "epsilon", "no flow sigmas"],
)
def test_schedulers_that_cannot_sample_it_are_refused(scheduler, remedy):
    model = tiny_model(learn_sigma=False)
    with pytest.raises(ValueError, match=remedy):
        DiTPipeline(model, None, scheduler, prediction_type="flow_sample")
    pipe = DiTPipeline(model, None, FlowMatchEulerDiscreteScheduler(), prediction_type="flow_sample")
    pipe.scheduler = scheduler
    with pytest.raises(ValueError, match=remedy):
        pipe([1])


def test_other_models_of_flow_matching_are_told_of_the_word():
    with pytest.raises(ValueError, match="'flow_prediction', or 'flow_sample' if it predicts x_0"):
        DiTPipeline(tiny_model(learn_sigma=False), None, FlowMatchEulerDiscreteScheduler())
