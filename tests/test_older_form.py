"""A folder that version 0.1.0 saved, in three files of code: it loads by every route, and is saved in the new form."""

import json
import re
from pathlib import Path

import pytest
import torch
from fresh_process import WITHOUT_PACKAGE, run_elsewhere
from safetensors.torch import load_file
from sampling_parts import GOLDEN, ROOT, seeded
from transformers import AutoModel

from dit_hf import DiTImg2ImgPipeline, DiTModel, DiTPipeline
from dit_hf.hub.flatten import flatten

OLDER = GOLDEN / "pipeline_0.1.0"
[LATENTS] = load_file(GOLDEN / "pipeline_0.1.0_latents.safetensors").values()
CODE = {"pipeline_dit.py", "modeling_dit.py", "transformer/modeling_dit.py"}


def sample(pipe) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 4, "guidance_scale": 2.0, "generator": seeded(0), "output_type": "latent"}
    return pipe(["cat", "dog"], **arguments).images


SAMPLE = """
from safetensors.torch import load_file
def check(pipe):
    arguments = {"num_inference_steps": 4, "guidance_scale": 2.0, "generator": seeded(0), "output_type": "latent"}
    pipe.set_progress_bar_config(disable=True)
    [expected] = load_file(GOLDEN + "/pipeline_0.1.0_latents.safetensors").values()
    torch.testing.assert_close(pipe(["cat", "dog"], **arguments).images, expected)
"""


def code_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


def assert_new_form(folder: Path) -> None:
    assert code_of(folder) == CODE
    for name, root in (("pipeline_dit.py", "image_pipelines.py"), ("transformer/modeling_dit.py", "modeling_dit.py")):
        assert (folder / name).read_text() == flatten(ROOT / "src" / "dit_hf" / root), name
    assert (folder / "modeling_dit.py").read_text() == (folder / "transformer" / "modeling_dit.py").read_text()
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "modeling_dit.DiTConfig", "AutoModel": "modeling_dit.DiTModel"}


def test_package_loads_it_and_saves_the_new_form(tmp_path):
    pipe = DiTPipeline.from_pretrained(OLDER)
    assert type(pipe.transformer) is DiTModel
    torch.testing.assert_close(sample(pipe), LATENTS)
    assert type(DiTImg2ImgPipeline.from_pretrained(OLDER)) is DiTImg2ImgPipeline
    for path in ("configuration_dit.py", "transformer/configuration_dit.py"):  # a save over an older folder
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    pipe.save_pretrained(tmp_path)
    assert_new_form(tmp_path)
    torch.testing.assert_close(sample(DiTPipeline.from_pretrained(tmp_path)), LATENTS)


def test_registered_class_loads_its_model():
    model = AutoModel.from_pretrained(OLDER, subfolder="transformer")
    assert type(model) is DiTModel


@pytest.mark.slow
def test_it_loads_without_the_package_and_what_is_saved_from_it_loads_again(tmp_path):
    code = """
from diffusers import DiffusionPipeline
from transformers import AutoModel
pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
check(pipe)
pipe.transformer = AutoModel.from_pretrained(FOLDER, subfolder="transformer", trust_remote_code=True).eval()
check(pipe)
pipe.save_pretrained("again")
check(DiffusionPipeline.from_pretrained("again", trust_remote_code=True))
"""
    run_elsewhere(WITHOUT_PACKAGE + SAMPLE + code, OLDER, tmp_path)
    torch.testing.assert_close(sample(DiTPipeline.from_pretrained(tmp_path / "again")), LATENTS)


@pytest.mark.slow
def test_its_code_runs_beside_the_package_which_saves_its_model_in_the_new_form(tmp_path):
    code = """
from diffusers import DiffusionPipeline
from transformers import AutoModel
load = {"subfolder": "transformer", "trust_remote_code": True}
model = AutoModel.from_pretrained(FOLDER, **load).eval()
import dit_hf
pipe = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
assert not isinstance(pipe, dit_hf.DiTPipeline)
check(pipe)
pipe.transformer = AutoModel.from_pretrained(FOLDER, **load).eval()  # from here or there, as transformers has it
check(pipe)
assert not isinstance(model, dit_hf.DiTModel)
mixed = dit_hf.DiTPipeline(model, pipe.vae, pipe.scheduler, pipe.config.id2label, pipe.config.guidance_channels)
check(mixed)
mixed.save_pretrained("mixed")
"""
    run_elsewhere(SAMPLE + code, OLDER, tmp_path)
    folder = tmp_path / "mixed"
    assert code_of(folder) == CODE
    model = (folder / "transformer" / "modeling_dit.py").read_text()
    assert model == (folder / "modeling_dit.py").read_text()
    assert re.findall(r"^# --- (\S+) ---", model, re.M) == ["configuration_dit.py", "modeling_dit.py"]
    code = """
from diffusers import DiffusionPipeline
check(DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True))
"""
    run_elsewhere(WITHOUT_PACKAGE + SAMPLE + code, folder, tmp_path)
