"""Walk from one image to another: between two noises on the great circle, and between the embeddings of two classes.

    python examples/interpolate_dit.py --labels "fox face" "panda face" --output out/walk

This writes out/walk.png, a strip of the frames, and out/walk.gif, which runs through them forwards and backwards.
"""

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from diffusers.utils import make_image_grid
from PIL import Image

from dit_hf import DiTPipeline

MODEL = Path(__file__).parent / "assets" / "dit-emoji"


def slerp(start: torch.Tensor, end: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
    """Return points (K, ...) on the great circle between two noises; on a straight line they would be too short."""
    angle = torch.acos(torch.cosine_similarity(start.flatten(), end.flatten(), dim=0))
    fractions = fractions.reshape(-1, *[1] * start.ndim)
    return (torch.sin((1 - fractions) * angle) * start + torch.sin(fractions * angle) * end) / torch.sin(angle)


@torch.no_grad()
def interpolate(
    pipeline: DiTPipeline, labels: tuple[str | int, str | int], num_frames: int, seeds: tuple[int, int], **arguments
) -> list[Image.Image]:
    """Return images between two labels and two seeds; the first and the last are those of the labels and seeds."""
    config = pipeline.transformer.config
    if not 2 <= num_frames <= config.num_classes:
        raise ValueError(f"num_frames={num_frames}: pass 2..{config.num_classes}")
    shape = (config.in_channels, *config.sample_height_width)
    noises = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    fractions = torch.linspace(0, 1, num_frames)
    ids = [label if isinstance(label, int) else pipeline.get_label_ids(label)[0] for label in labels]
    table = pipeline.transformer.y_embedder.embedding_table.weight
    before = table.clone()
    try:
        # row k of the table holds the mixed embedding of frame k until the pipeline has returned
        table[:num_frames] = torch.lerp(before[ids[0]], before[ids[1]], fractions[:, None].to(table))
        latents = slerp(*noises, fractions)
        return pipeline([*range(num_frames)], latents=latents, **arguments).images
    finally:
        table.copy_(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL), help="folder of a pipeline, or its id on the Hub")
    parser.add_argument("--labels", nargs=2, default=["fox face", "panda face"], help="ids or names of two classes")
    parser.add_argument("--seeds", nargs=2, type=int, default=[0, 1], help="seeds of the two noises")
    parser.add_argument("--num_frames", type=int, default=9, help="number of images, both ends included")
    parser.add_argument("--guidance_scale", type=float, default=2.0, help="scale of guidance; 1 is no guidance")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="number of sampling steps")
    parser.add_argument("--output", type=Path, default=Path("out/walk"), help="name of both files, without the suffix")
    arguments = vars(parser.parse_args())
    pipeline, output = DiTPipeline.from_pretrained(arguments.pop("model")), arguments.pop("output")
    # DDIM adds no noise while it samples, so a small step between the noises is a small step between the images
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="leading", clip_sample=False
    )
    labels = tuple(int(label) if label.isdecimal() else label for label in arguments.pop("labels"))
    frames = interpolate(pipeline, labels, seeds=tuple(arguments.pop("seeds")), **arguments)
    output.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(frames, 1, len(frames)).save(f"{output}.png")
    there_and_back = [*frames, *frames[-2:0:-1]]
    there_and_back[0].save(f"{output}.gif", save_all=True, append_images=there_and_back[1:], duration=120, loop=0)
    print(f"wrote {output}.png and {output}.gif: {len(frames)} frames")


if __name__ == "__main__":
    main()
