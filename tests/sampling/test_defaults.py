import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from fresh_process import WITHOUT_PACKAGE, run_elsewhere
from sampling_parts import PAPER, seeded, tiny_model, tiny_pipeline

from dit_hf import DiTImg2ImgPipeline, DiTPipeline
from dit_hf.conversion import with_scheduler
from dit_hf.generation.from_pipeline import pipeline_settings

LATENT = {"class_labels": [1, 7], "output_type": "latent"}


def drawn(pipe, **arguments):
    pipe.set_progress_bar_config(disable=True)
    return pipe(**LATENT, generator=seeded(0), **arguments).images


def own_pipeline(**arguments):
    stated = {"guidance_scale": 2.0, "num_inference_steps": 3, **arguments}
    return tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False), **stated)


def test_call_takes_what_the_pipeline_states_and_an_argument_wins():
    pipe, plain = own_pipeline(), tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False))
    pairs = [
        ({}, {"guidance_scale": 2.0, "num_inference_steps": 3}),
        ({"guidance_scale": 4}, {"guidance_scale": 4.0, "num_inference_steps": 3}),
        ({"num_inference_steps": 5}, {"guidance_scale": 2.0, "num_inference_steps": 5}),
        ({"timesteps": [900, 300]}, {"guidance_scale": 2.0, "timesteps": [900, 300]}),
    ]
    for given, spelled_out in [pair for pair in pairs if "timesteps" not in pair[0]]:
        torch.testing.assert_close(drawn(pipe, **given), drawn(plain, **spelled_out), rtol=0, atol=0)
    assert not torch.equal(drawn(pipe, guidance_scale=4), drawn(pipe))


def test_pipeline_that_states_nothing_guides_by_four_as_before():
    pipe = tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False))
    expected = drawn(pipe, guidance_scale=4.0, num_inference_steps=50)
    torch.testing.assert_close(drawn(pipe), expected, rtol=0, atol=0)
    assert pipeline_settings(pipe)["guidance_scale"] == 4.0
    assert pipeline_settings(own_pipeline())["guidance_scale"] == 2.0
    assert pipeline_settings(own_pipeline())["num_inference_steps"] == 3


def test_statement_survives_saving_sharing_and_another_class(tmp_path):
    pipe = own_pipeline()
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert (index["guidance_scale"], index["num_inference_steps"]) == (2.0, {"DDIMScheduler": 3})
    loaded = DiTPipeline.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(drawn(loaded), drawn(pipe), rtol=0, atol=0)
    changed = DiTPipeline.from_pretrained(tmp_path / "saved", guidance_scale=3.0)
    assert changed.config.guidance_scale == 3.0
    shared = DiTImg2ImgPipeline.from_pipe(loaded)
    assert (shared.config.guidance_scale, shared.config.num_inference_steps) == (2.0, {"DDIMScheduler": 3})


def test_steps_are_those_of_the_scheduler_that_they_were_stated_for(tmp_path):
    pipe = own_pipeline()
    pipe.save_pretrained(tmp_path / "saved")
    others = [
        with_scheduler(pipe, "DPMSolverMultistepScheduler"),
        DiTPipeline.from_pretrained(tmp_path / "saved", scheduler=DPMSolverMultistepScheduler()),
    ]
    pipe.scheduler = DPMSolverMultistepScheduler()
    for other in [*others, pipe]:
        assert pipeline_settings(other)["num_inference_steps"] == 25
    pipe.scheduler = DDIMScheduler(clip_sample=False)
    assert pipeline_settings(pipe)["num_inference_steps"] == 3


@pytest.mark.slow
def test_statement_holds_without_the_package(tmp_path):
    pipe = own_pipeline()
    pipe.save_pretrained(tmp_path / "saved")
    torch.save(drawn(pipe), tmp_path / "expected.pt")
    code = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
found = pipe([1, 7], output_type="latent", generator=seeded(0)).images
torch.testing.assert_close(found, torch.load("expected.pt"), rtol=0, atol=0)
pipe.save_pretrained("again")
again = DiffusionPipeline.from_pretrained("again", trust_remote_code=True)
assert (again.config.guidance_scale, again.config.num_inference_steps) == (2.0, {"DDIMScheduler": 3})
"""
    run_elsewhere(WITHOUT_PACKAGE + code, tmp_path / "saved", tmp_path)


def test_statement_survives_the_form_of_diffusers(tmp_path, caplog):
    pipe = tiny_pipeline(
        tiny_model(num_classes=1000), DDIMScheduler(clip_sample=False), guidance_scale=0.0, num_inference_steps=3
    )
    pipe.save_pretrained(tmp_path / "stock", format="diffusers")
    assert "does not read guidance_scale=0.0, num_inference_steps={'DDIMScheduler': 3}" in caplog.text
    back = DiTPipeline.from_pretrained(tmp_path / "stock")
    assert (back.config.guidance_scale, back.config.num_inference_steps) == (0.0, {"DDIMScheduler": 3})


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"guidance_scale": -1}, "guidance_scale=-1: pass a finite number from 0 on"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"guidance_scale": "2"}, "guidance_scale='2'"),
        ({"num_inference_steps": 0}, "num_inference_steps=0: pass a whole number of at least 1 and at most 1000"),
        ({"num_inference_steps": 1001}, "num_inference_steps=1001"),
        ({"num_inference_steps": {"DDPMScheduler": 2.5}}, "num_inference_steps=2.5"),
    ],
)
def test_impossible_statement_is_refused(stated, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(**stated)


def test_model_that_cannot_be_guided_states_no_guidance():
    model = tiny_model(class_dropout_prob=0.0)
    with pytest.raises(ValueError, match=r"guidance_scale=2.0: the model has no null class"):
        tiny_pipeline(model, guidance_scale=2.0)
    assert tiny_pipeline(model, DDPMScheduler(**PAPER), guidance_scale=1).config.guidance_scale == 1.0


def test_folder_of_an_older_version_states_nothing(golden_dir, tmp_path):
    shutil.copytree(golden_dir / "pipeline_0.1.0", tmp_path / "older")
    pipe = DiTPipeline.from_pretrained(tmp_path / "older")
    assert pipe.config.guidance_scale is None
    assert pipe.config.num_inference_steps is None
