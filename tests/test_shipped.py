"""The shipped model as people find it: in a checkout, without the package, and beside an installed wheel."""

from pathlib import Path

import pytest
from fresh_process import WITHOUT_PACKAGE, run_elsewhere

SHIPPED = Path(__file__).parents[1] / "examples" / "assets" / "dit-emoji"


@pytest.mark.slow
def test_shipped_model_draws_the_same_without_the_package_guided_as_its_card_advises(tmp_path):
    with_package = """
import numpy as np
from dit_hf import DiTPipeline
pipeline = DiTPipeline.from_pretrained(FOLDER)
arguments = {"class_labels": ["frog", 99], "guidance_scale": 2.0, "num_inference_steps": 25, "output_type": "np"}
np.save("expected.npy", pipeline(**arguments, generator=seeded(0)).images)
"""
    run_elsewhere(with_package, SHIPPED, tmp_path)  # in a process like the other's, which no earlier test has changed
    code = """
import numpy as np
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
images = pipeline(["frog", 99], output_type="np", generator=seeded(0)).images
np.testing.assert_array_equal(images, np.load("expected.npy"))
"""
    run_elsewhere(WITHOUT_PACKAGE + code, SHIPPED, tmp_path)
