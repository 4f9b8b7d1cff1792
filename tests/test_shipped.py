"""The shipped model as people find it: in a checkout, without the package, and beside an installed wheel."""

from pathlib import Path

import numpy as np
import pytest
from fresh_process import WITHOUT_PACKAGE, run_elsewhere
from sampling_parts import seeded

from dit_hf import DiTPipeline

SHIPPED = Path(__file__).parents[1] / "examples" / "assets" / "dit-emoji"


@pytest.mark.slow
def test_shipped_model_draws_the_same_without_the_package_guided_as_its_card_advises(tmp_path):
    pipeline = DiTPipeline.from_pretrained(SHIPPED)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"class_labels": ["frog", 99], "guidance_scale": 2.0, "num_inference_steps": 25, "output_type": "np"}
    np.save(tmp_path / "expected.npy", pipeline(**arguments, generator=seeded(0)).images)
    code = """
import numpy as np
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
images = pipeline(["frog", 99], output_type="np", generator=seeded(0)).images
# the order of a sum depends on where its numbers lie in memory
np.testing.assert_allclose(images, np.load("expected.npy"), rtol=0, atol=1e-4)
"""
    run_elsewhere(WITHOUT_PACKAGE + code, SHIPPED, tmp_path)
