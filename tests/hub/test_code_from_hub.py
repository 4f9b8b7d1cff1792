"""Code that comes with a repository: of the older form and of the new one, from a Hub, in one process."""

import shutil
from pathlib import Path

import pytest
from fresh_process import WITHOUT_PACKAGE, run_elsewhere

from dit_hf import DiTPipeline
from dit_hf.hub.push import push_folder

OLDER = Path(__file__).parents[1] / "golden" / "pipeline_0.1.0"
CHECK = """
from safetensors.torch import load_file
[expected] = load_file(GOLDEN + "/pipeline_0.1.0_latents.safetensors").values()
def check(pipe):
    arguments = {"num_inference_steps": 4, "guidance_scale": 2.0, "generator": seeded(0), "output_type": "latent"}
    pipe.set_progress_bar_config(disable=True)
    torch.testing.assert_close(pipe(["cat", "dog"], **arguments).images, expected)
"""
REMOTE = """
import sys
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from transformers import AutoModel
folders = []
for name in ("user/older", "user/newer", "user/older"):
    pipe = DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
    check(pipe)
    load = {"subfolder": "transformer", "trust_remote_code": True}
    pipe.transformer = AutoModel.from_pretrained(name, **load).eval()
    check(pipe)
    has_import = "from .configuration_dit" in open(sys.modules[type(pipe.transformer).__module__].__file__).read()
    assert has_import == (name == "user/older"), name
    folders.append(snapshot_download(name, local_files_only=True, allow_patterns="*/*"))
for folder in folders:  # offline diffusers takes a folder
    check(DiffusionPipeline.from_pretrained(folder, trust_remote_code=True))
"""
LOCAL = """
from dit_hf import DiTModel, DiTPipeline
from transformers import AutoModel
for name in ("user/older", "user/newer"):
    pipe = DiTPipeline.from_pretrained(name)
    assert type(pipe.transformer) is DiTModel
    check(pipe)
    assert type(AutoModel.from_pretrained(name, subfolder="transformer")) is DiTModel
    check(DiTPipeline.from_pretrained(name, local_files_only=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [WITHOUT_PACKAGE + CHECK + REMOTE, CHECK + LOCAL], ids=["without", "with"])
def test_older_and_newer_repositories_load_beside_each_other(code, hub, hub_environment, tmp_path):
    DiTPipeline.from_pretrained(OLDER).save_pretrained(tmp_path / "newer")
    shutil.copytree(OLDER, tmp_path / "older")
    for name in ("older", "newer"):
        push_folder(tmp_path / name, f"user/{name}")
    environment = {name: value for name, value in hub_environment.items() if name.startswith("HF_")}
    run_elsewhere(code, tmp_path, tmp_path, **{**environment, "HF_HUB_OFFLINE": "0"})
