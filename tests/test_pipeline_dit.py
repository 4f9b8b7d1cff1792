"""The pipeline against the original's trajectories and exact models; what it refuses, and what it gives."""

import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.guiders import MagnitudeAwareGuidance, SkipLayerGuidance
from sampling_parts import (
    ANCESTRAL,
    GOLDEN,
    ID2LABEL,
    PAPER,
    ExactDenoiser,
    count_rows,
    sampled,
    scheduler_by_name,
    seeded,
    tiny_model,
    tiny_pipeline,
    tiny_vae,
)

from dit_hf import DiTConfig, DiTImg2ImgPipeline, DiTInpaintPipeline, DiTPipeline
from dit_hf.diffusion import OBJECTIVES
from dit_hf.sampling.schedulers import SCHEDULERS


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
    final, used = sampled(
        pipe,
        golden["cfg_y"].tolist(),
        guidance_scale=scale,
        num_inference_steps=steps,
        latents=torch.from_numpy(golden["z"]),
        output_type="latent",
    )
    assert used.timesteps.tolist() == golden["timesteps"].tolist()
    # float32 tables of the scheduler against the original's float64 ones, over values up to 874
    torch.testing.assert_close(final, torch.from_numpy(golden["final"]), rtol=0, atol=5e-3)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_the_table_runs_its_usual_number_of_steps(name):
    flow = SCHEDULERS[name].flow
    model = tiny_model(num_hidden_layers=1, hidden_size=16, learn_sigma=not flow)
    scheduler = scheduler_by_name(name)
    pipe = tiny_pipeline(model, scheduler, prediction_type="flow_prediction" if flow else None)
    final, used = sampled(pipe, 1, output_type="latent", generator=seeded(0))
    # the last step of Heun's two is one evaluation, and PNDM begins with nine more
    evaluations = {"HeunDiscreteScheduler": 99, "FlowMatchHeunDiscreteScheduler": 99, "PNDMScheduler": 59}
    assert len(used.timesteps) == evaluations.get(name, SCHEDULERS[name].num_steps)
    assert final.shape == (1, 4, 8, 8)
    assert torch.isfinite(final).all()


def test_usual_number_of_steps_fits_a_short_schedule():
    scheduler = DDIMScheduler(num_train_timesteps=20, timestep_spacing="leading", clip_sample=False)
    _, used = sampled(tiny_pipeline(tiny_model(learn_sigma=False), scheduler), 1, output_type="latent")
    assert used.num_inference_steps == 20


def test_usual_numbers_of_steps_are_the_documented_ones():
    assert {name: traits.num_steps for name, traits in SCHEDULERS.items()} == {
        "DDPMScheduler": 250,
        **dict.fromkeys(["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"], 50),
        **dict.fromkeys(["EulerAncestralDiscreteScheduler"], 50),
        **dict.fromkeys(["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"], 50),
        **dict.fromkeys(["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "SASolverScheduler"], 25),
        **dict.fromkeys(["UniPCMultistepScheduler", "DEISMultistepScheduler"], 25),
    }


@pytest.mark.parametrize("eta", [-0.1, 7, float("nan")])
def test_eta_outside_its_range_is_refused(eta):
    scheduler = DDIMScheduler(timestep_spacing="leading", clip_sample=False)
    with pytest.raises(ValueError, match="eta=.* is outside"):
        tiny_pipeline(tiny_model(learn_sigma=False), scheduler)(1, eta=eta)


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


def test_timesteps_of_ones_own_are_taken():
    pipe = tiny_pipeline()
    latents = torch.randn(1, 4, 8, 8, generator=seeded(0))
    arguments = {"latents": latents, "output_type": "latent"}
    runs = [
        sampled(pipe, 7, generator=seeded(1), **steps, **arguments)
        for steps in ({"num_inference_steps": 4}, {"timesteps": [999, 666, 333, 0]}, {"timesteps": np.array([999, 9])})
    ]
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=0, atol=0)
    assert runs[2][1].timesteps.tolist() == [999, 9]
    assert not torch.equal(runs[1][0], runs[2][0])


def test_sigmas_of_ones_own_are_taken():
    pipe = tiny_pipeline(tiny_model(learn_sigma=False), scheduler_by_name("EulerDiscreteScheduler"))
    rows = count_rows(pipe)
    # this scheduler wants the last one too
    _, used = sampled(pipe, 7, sigmas=[80.0, 10.0, 1.0, 0.0], output_type="latent")
    assert len(rows) == 3
    assert used.sigmas.tolist() == [80.0, 10.0, 1.0, 0.0]
    assert used.init_noise_sigma >= 80


BAD_CALLS = {
    "an id beyond the null class": ({"class_labels": 11}, r"class_labels\[0\]=11 is outside 0..9, or 10 for no class"),
    "a negative id": ({"class_labels": [1, -1]}, r"class_labels\[1\]=-1"),
    "a bool": ({"class_labels": [True]}, "True"),
    "a float": ({"class_labels": 1.0}, r"1\.0"),
    "a nested list": ({"class_labels": [[1]]}, r"\[1\]"),
    "no label": ({"class_labels": []}, "empty"),
    "None": ({"class_labels": None}, "10 classes"),
    "a misspelt name": ({"class_labels": "goldfsh"}, "did you mean 'goldfish'"),
    "a number as a name": ({"class_labels": "7"}, "'7'"),
    "a name of two classes": ({"class_labels": "grass snake"}, "classes 2, 3"),
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
    "a size between patches": ({"height": 18, "position_policy": "extend"}, "height=18: .* of 4, .*: 16 or 20$"),
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
    pipe = tiny_pipeline(scheduler=ddpm(clip_sample=True))
    assert "clip_sample=True and clips latents at +-1" in caplog.text
    caplog.clear()
    pipe.scheduler = DDIMScheduler.from_config(
        diffusers.DPMSolverMultistepScheduler().config, timestep_spacing="leading"
    )
    pipe(1, num_inference_steps=2, output_type="latent")  # the default of DDIM came with the exchange
    assert "DDIMScheduler has clip_sample=True" in caplog.text
    caplog.clear()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)  # as the warning says
    pipe(1, num_inference_steps=2, output_type="latent")
    assert "clip_sample" not in caplog.text


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
