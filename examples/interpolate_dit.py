"""Walk from one image to another: between two noises on the great circle, and between the embeddings of two classes.

    python examples/interpolate_dit.py --labels "fox face" "panda face" --output out/walk

This writes out/walk.png, a strip of the frames, and out/walk.gif, which runs through them forwards and backwards.
"""

import argparse
from pathlib import Path

from diffusers import DDIMScheduler
from diffusers.utils import make_image_grid

from dit_hf import DiTPipeline
from dit_hf.generation import interpolate

MODEL = Path(__file__).parent / "assets" / "dit-emoji"


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
