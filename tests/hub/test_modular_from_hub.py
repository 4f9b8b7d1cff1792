"""A modular pipeline from a Hub, by the code that lies there, without the package."""

import numpy as np
import pytest
import torch
from fresh_process import WITHOUT_PACKAGE, run_elsewhere

from dit_hf import DiTPipeline
from dit_hf.hub.push import push_folder
from dit_hf.modular import save_modular, to_modular

LOAD = """
import numpy as np
from diffusers import ModularPipeline
from diffusers.modular_pipelines import ModularPipelineBlocks
for source in ("user/modular", FOLDER):
    pipe = ModularPipeline.from_pretrained(source, trust_remote_code=True)
    pipe.load_components(trust_remote_code=True)
    arguments = {"class_labels": ["goldfish", 0], "num_inference_steps": 3, "output_type": "np"}
    images = pipe(**arguments, generator=seeded(0), output="images")
    np.testing.assert_array_equal(images, np.load("expected.npy"))
pipe.blocks.save_pretrained("again")  # a copy of its own code
ModularPipelineBlocks.from_pretrained("again", trust_remote_code=True)
try:
    ModularPipeline.from_pretrained("user/modular")
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise AssertionError("code of a repository ran without trust")
"""


@pytest.mark.slow
def test_modular_pipeline_loads_from_a_hub_without_the_package_bit_for_bit(
    pipeline: DiTPipeline, hub, hub_environment, tmp_path
):
    folder = tmp_path / "modular"
    save_modular(to_modular(pipeline), folder, repo_id="user/modular")
    push_folder(folder, "user/modular")
    call = {"class_labels": ["goldfish", 0], "num_inference_steps": 3, "output_type": "np"}
    np.save(tmp_path / "expected.npy", pipeline(**call, generator=torch.Generator().manual_seed(0)).images)
    environment = {name: value for name, value in hub_environment.items() if name.startswith("HF_")}
    run_elsewhere(WITHOUT_PACKAGE + LOAD, folder, tmp_path, **{**environment, "HF_HUB_OFFLINE": "0"})
