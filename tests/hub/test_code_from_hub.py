"""Code that comes with a repository, from a Hub, in one process: of the older form, the new one, and with switches."""

import shutil
from pathlib import Path

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from fresh_process import WITHOUT_PACKAGE, run_elsewhere
from safetensors.torch import save_file
from sampling_parts import seeded, tiny_model, tiny_pipeline
from switches import ALL

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
def check_switched(pipe):
    arguments = {"num_inference_steps": 4, "generator": seeded(0), "output_type": "latent"}
    pipe.set_progress_bar_config(disable=True)
    images = load_file(FOLDER + "/expected.safetensors")["images"]
    torch.testing.assert_close(pipe([1, 2], **arguments).images, images, rtol=1e-5, atol=1e-5)
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
pipe = DiffusionPipeline.from_pretrained("user/switched", trust_remote_code=True)
check_switched(pipe)
pipe.transformer = AutoModel.from_pretrained("user/switched", **load).eval()
check_switched(pipe)
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
pipe = DiTPipeline.from_pretrained("user/switched")
check_switched(pipe)
pipe.transformer = AutoModel.from_pretrained("user/switched", subfolder="transformer").eval()
assert type(pipe.transformer) is DiTModel
check_switched(pipe)
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [WITHOUT_PACKAGE + CHECK + REMOTE, CHECK + LOCAL], ids=["without", "with"])
def test_older_newer_and_switched_repositories_load_beside_each_other(code, hub, hub_environment, tmp_path):
    DiTPipeline.from_pretrained(OLDER).save_pretrained(tmp_path / "newer")
    shutil.copytree(OLDER, tmp_path / "older")
    flow = {"scheduler": FlowMatchEulerDiscreteScheduler(shift=2.0), "prediction_type": "flow_sample"}
    switched = tiny_pipeline(tiny_model(learn_sigma=False, **{**ALL, "position_embedding": "both"}), vae=None, **flow)
    switched.save_pretrained(tmp_path / "switched")
    arguments = {"num_inference_steps": 4, "generator": seeded(0), "output_type": "latent"}
    save_file({"images": switched([1, 2], **arguments).images}, tmp_path / "expected.safetensors")
    for name in ("older", "newer", "switched"):
        push_folder(tmp_path / name, f"user/{name}")
    environment = {name: value for name, value in hub_environment.items() if name.startswith("HF_")}
    run_elsewhere(code, tmp_path, tmp_path, **{**environment, "HF_HUB_OFFLINE": "0"})
