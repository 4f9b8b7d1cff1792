"""The blocks of Modular Diffusers, held against the pipeline that they divide."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sampling_parts import seeded

from dit_hf import DiTPipeline
from dit_hf.modular import DiTBlocks, to_modular

SHIPPED = Path(__file__).parents[1] / "examples" / "assets" / "dit-emoji"


@pytest.fixture(scope="module")
def pipeline() -> DiTPipeline:
    return DiTPipeline.from_pretrained(SHIPPED)


def test_blocks_draw_the_images_of_the_pipeline_bit_for_bit(pipeline: DiTPipeline):
    call = {"class_labels": ["frog", 99], "num_inference_steps": 3, "output_type": "np"}
    images = to_modular(pipeline)(**call, generator=seeded(0), output="images")
    np.testing.assert_array_equal(images, pipeline(**call, generator=seeded(0)).images)


def test_blocks_without_decoding_give_the_latents_of_the_pipeline_at_another_guidance(pipeline: DiTPipeline):
    call = {"class_labels": "rocket", "num_inference_steps": 2, "guidance_scale": 3.0}
    blocks = DiTBlocks()
    blocks.sub_blocks.pop("decode")
    latents = to_modular(pipeline, blocks)(**call, generator=seeded(1), output="latents")
    expected = pipeline(**call, generator=seeded(1), output_type="latent").images
    torch.testing.assert_close(latents, expected, rtol=0, atol=0)
