"""Draw the pictures of docs/concepts.md with the shipped model, enlarged so that each pixel stays a square.

python docs/draw_concepts.py
"""

from pathlib import Path

import numpy as np
import torch
from diffusers.utils import make_image_grid
from PIL import Image, ImageDraw
from torch import Tensor

from dit_hf import DiTPipeline
from dit_hf.sampling.latents import decode_latents

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "images" / "concepts"
CLASSES = ["frog", "jack o lantern", "sunflower", "panda face", "rocket"]
FACTOR = 2


def save(images: list[Image.Image], rows: int, name: str) -> None:
    """Write images in rows, enlarged by the nearest neighbour."""
    grid = make_image_grid(images, rows=rows, cols=len(images) // rows)
    grid = grid.resize((FACTOR * grid.width, FACTOR * grid.height), Image.Resampling.NEAREST)
    PICTURES.mkdir(parents=True, exist_ok=True)
    grid.quantize(128).save(PICTURES / f"{name}.png", optimize=True)


def sample(pipeline: DiTPipeline, **options: object) -> list[Image.Image]:
    """Sample one picture of each class, always from the same noise."""
    generator = torch.Generator().manual_seed(0)
    return pipeline(CLASSES, generator=generator, **options).images


def draw_denoising(pipeline: DiTPipeline) -> None:
    """Draw three pictures while they are sampled: what the latents decode to after some of the steps."""
    frames: dict[int, list[Image.Image]] = {}

    def keep(_: DiTPipeline, step: int, timestep: int, values: dict[str, Tensor]) -> dict[str, Tensor]:
        if step in (0, 3, 6, 9, 12, 15, 19):
            images = decode_latents(pipeline.vae, values["latents"][:3], batch_size=3)
            frames[step] = pipeline.image_processor.postprocess(images)
        return values

    sample(pipeline, guidance_scale=2.0, num_inference_steps=20, callback_on_step_end=keep)
    save([frames[step][k] for k in range(3) for step in sorted(frames)], 3, "denoising")


def draw_latent(pipeline: DiTPipeline, image: Image.Image) -> None:
    """Draw a picture, the four channels of its latent as grey values, and the picture with the grid of its patches."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1  # (1, 3, 64, 64)
    with torch.no_grad():
        latent = pipeline.vae.encode(pixels).latent_dist.mode()[0]  # (4, 16, 16)
    low, high = latent.amin((1, 2), keepdim=True), latent.amax((1, 2), keepdim=True)
    grey = ((latent - low) / (high - low) * 255).byte().numpy()
    channels = [Image.fromarray(channel).resize(image.size, Image.Resampling.NEAREST) for channel in grey]
    patches = image.copy()
    draw, side = ImageDraw.Draw(patches), pipeline.transformer.config.patch_size * image.width // latent.shape[-1]
    for at in range(side, image.width, side):
        draw.line([(at, 0), (at, image.height)], fill="grey")
        draw.line([(0, at), (image.width, at)], fill="grey")
    save([image, *(channel.convert("RGB") for channel in channels), patches], 1, "latent")


def main() -> None:
    """Draw every picture of the page."""
    pipeline = DiTPipeline.from_pretrained(ROOT / "examples" / "assets" / "dit-emoji")
    pipeline.set_progress_bar_config(disable=True)
    draw_denoising(pipeline)
    draw_latent(pipeline, sample(pipeline, guidance_scale=2.0)[0])
    scales = (1.0, 2.0, 4.0, 8.0)
    save([image for scale in scales for image in sample(pipeline, guidance_scale=scale)], len(scales), "guidance")
    counts = (2, 4, 8, 20)
    rows = [sample(pipeline, guidance_scale=2.0, num_inference_steps=count) for count in counts]
    save([image for row in rows for image in row], len(counts), "steps")


if __name__ == "__main__":
    main()
