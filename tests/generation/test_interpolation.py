"""Between two images: the ends are those of the labels and seeds, the way is on a sphere, the model stays as it is."""

from pathlib import Path

import pytest
import torch

from dit_hf import DiTPipeline
from dit_hf.generation.interpolation import interpolate, slerp

ASSETS = Path(__file__).parents[2] / "examples" / "assets"


def test_walk_goes_from_one_image_to_the_other_on_a_sphere():
    noise = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    path = slerp(*noise, torch.linspace(0, 1, 5))
    torch.testing.assert_close(path[[0, -1]], noise, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(path.norm(dim=1), noise.norm(dim=1).mean().expand(5), rtol=0.03, atol=0)
    pipeline = DiTPipeline.from_pretrained(ASSETS / "dit-emoji")
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 5, "guidance_scale": 1.0, "output_type": "pt"}
    frames = interpolate(pipeline, ("strawberry", "tangerine"), 3, (0, 1), **arguments)
    ends = [
        pipeline(
            label, latents=torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)), **arguments
        ).images
        for label, seed in (("strawberry", 0), ("tangerine", 1))
    ]
    torch.testing.assert_close(frames[[0, -1]], torch.cat(ends), rtol=1e-3, atol=1e-3)
    assert (frames[1] - frames[0]).abs().mean() > 0.01


def test_number_of_frames_is_held_to_the_number_of_classes():
    pipeline = DiTPipeline.from_pretrained(ASSETS / "dit-emoji")
    for num_frames in (1, 301):
        with pytest.raises(ValueError, match="pass 2..300"):
            interpolate(pipeline, (0, 1), num_frames, (0, 1))
