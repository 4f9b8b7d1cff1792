"""Measure how exactly DDIM draws an image again from the noise that its inversion finds.

    python benchmarks/inversion.py

For each number of steps, an image that the shipped model has drawn is inverted to noise, and drawn again from that
noise without guidance. The table has the PSNR to the image, and the variance of the noise, which is 1 in training.
"""

import argparse

import torch
from caches import decibels
from diffusers import DDIMScheduler
from torch import Tensor

from dit_hf import DiTImg2ImgPipeline, DiTPipeline, shipped_model


def make_pipeline() -> DiTImg2ImgPipeline:
    """Return the shipped model with DDIM at the timesteps that `invert` visits."""
    pipeline = DiTImg2ImgPipeline.from_pretrained(shipped_model())
    pipeline.set_progress_bar_config(disable=True)
    settings = {"timestep_spacing": "leading", "clip_sample": False}
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **settings)
    return pipeline


def draw_again(pipeline: DiTImg2ImgPipeline, image: Tensor, label: str, num_steps: int) -> tuple[Tensor, Tensor]:
    """Return the noise (1, C, h, w) of an image (1, 3, H, W) in [0, 1], and the image that is drawn from it."""
    noise = pipeline.invert(image, label, num_inference_steps=num_steps)
    plain = DiTPipeline.from_pipe(pipeline)
    plain.set_progress_bar_config(disable=True)
    drawn = plain(label, 1.0, num_steps, latents=noise, output_type="pt").images
    return noise, drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", default="tiger")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 50, 200])
    arguments = parser.parse_args()
    pipeline = make_pipeline()
    drawing = DiTPipeline.from_pretrained(shipped_model())
    drawing.set_progress_bar_config(disable=True)
    image = drawing(arguments.label, generator=torch.Generator().manual_seed(0), output_type="pt").images
    print("| steps | drawn again | variance of the noise |\n|---|---|---|")
    for num_steps in arguments.steps:
        noise, drawn = draw_again(pipeline, image, arguments.label, num_steps)
        print(f"| {num_steps} | {decibels(drawn, image)} | {noise.var().item():.0f} |", flush=True)


if __name__ == "__main__":
    main()
