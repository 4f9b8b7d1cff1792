"""The blocks of Modular Diffusers, held against the pipeline that they divide."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sampling_parts import picture, seeded, tiny_model, tiny_pipeline

from dit_hf import DiTImg2ImgPipeline, DiTInpaintPipeline, DiTPipeline
from dit_hf.modular import DiTBlocks, DiTDenoiseStep, save_modular, to_modular

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


@pytest.fixture(scope="module")
def tiny() -> DiTPipeline:
    return tiny_pipeline()


def half_of(size: tuple[int, int]) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


@pytest.mark.parametrize(
    "call",
    [
        {"height": 24, "width": 32, "position_policy": "extend"},
        {"width": 32, "position_policy": "interpolate"},
        {"guidance_interval": (0.25, 0.75)},
        {"guidance_interval": (0.5, 20.0), "guidance_interval_unit": "sigma"},
        {"guidance_channels": "first_three"},
        {"timesteps": [900, 500, 100], "num_inference_steps": None},
        {"guide_model": "weaker"},
        {"num_images_per_label": 2},
    ],
    ids=lambda call: "-".join(call),
)
def test_blocks_take_the_arguments_of_the_pipeline_and_draw_its_images(tiny: DiTPipeline, call: dict[str, Any]):
    call = {"class_labels": [1, 2], "num_inference_steps": 4, "output_type": "np", **call}
    call |= {"guide_model": tiny_model(num_hidden_layers=1)} if "guide_model" in call else {}
    images = to_modular(tiny)(**call, generator=seeded(0), output="images")
    np.testing.assert_array_equal(images, tiny(**call, generator=seeded(0)).images)


@pytest.mark.parametrize(
    "size", [{}, {"height": 24, "width": 32, "position_policy": "extend"}], ids=["trained", "other"]
)
@pytest.mark.parametrize("strength", [{}, {"strength": 0.5}], ids=["usual", "half"])
def test_blocks_start_from_a_picture_as_the_image_pipelines_do(tiny: DiTPipeline, size: dict, strength: dict):
    call = {"image": picture(), "class_labels": 1, "num_inference_steps": 4, "output_type": "np", **size, **strength}
    images = to_modular(tiny)(**call, generator=seeded(0), output="images")
    np.testing.assert_array_equal(images, DiTImg2ImgPipeline.from_pipe(tiny)(**call, generator=seeded(0)).images)
    call["mask_image"] = half_of(picture().size)
    images = to_modular(tiny)(**call, generator=seeded(0), output="images")
    np.testing.assert_array_equal(images, DiTInpaintPipeline.from_pipe(tiny)(**call, generator=seeded(0)).images)


@pytest.mark.parametrize("call", [{"strength": 0.5}, {"mask_image": half_of((16, 16))}], ids=["strength", "mask"])
def test_settings_of_a_picture_without_one_are_refused(tiny: DiTPipeline, call: dict[str, Any]):
    with pytest.raises(ValueError, match="without image"):
        to_modular(tiny)(class_labels=1, **call)


def test_changed_blocks_are_not_saved_as_if_they_were_whole(tiny: DiTPipeline, tmp_path: Path):
    blocks = DiTBlocks()
    blocks.sub_blocks.pop("decode")

    class Own(DiTDenoiseStep):
        pass

    for changed, message in ((blocks, "left out"), (Own(), "another file")):
        with pytest.raises(ValueError, match=message):
            changed.save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="public"):
        DiTBlocks().save_pretrained(tmp_path / "a", push_to_hub=True)
    (tmp_path / "model_index.json").touch()
    with pytest.raises(ValueError, match="not empty"):
        save_modular(to_modular(tiny), tmp_path)
    assert not (tmp_path / "a").exists()
