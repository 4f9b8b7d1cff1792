"""Draw many images with a DiT, on any number of processes; the same command goes on where a killed run stopped.

    python examples/sample_dit.py --num_images 100 --labels balanced --output out/samples            # PNGs
    torchrun --nproc_per_node 8 examples/sample_dit.py --model my/dit --num_images 50000 --output samples.npz

`dit-hf generate` does the same from anywhere. In Python, any function can take the place of the pipeline:
`generate_images` calls it with the labels of a batch and a generator for each image, and it returns uint8 images.
"""

import argparse
from pathlib import Path

import torch
from accelerate import PartialState

from dit_hf import DiTPipeline
from dit_hf.generation import generate_with_pipeline

MODEL = Path(__file__).parent / "assets" / "dit-emoji"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL), help="Folder of a pipeline, or its id on the Hub.")
    parser.add_argument("--output", type=Path, required=True, help="New folder for PNGs, or .npz file.")
    parser.add_argument("--num_images", type=int, help="Number of images. Default: one for each label of a file.")
    parser.add_argument(
        "--labels", help="random (the default with classes), balanced, or a text file with a class on each line."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the noise and of random labels.")
    parser.add_argument("--batch_size", type=int, default=32, help="Number of images that each process draws at once.")
    parser.add_argument(
        "--guidance_scale",
        type=float,
        default=1.5,
        help="Strength of guidance; 1 is none. The paper's best FIDs are at 1.5.",
    )
    parser.add_argument(
        "--num_inference_steps", type=int, help="Number of steps. Default: the scheduler's usual number."
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="Precision.")
    return parser.parse_args()


def main() -> None:
    arguments = vars(parse_arguments())
    model, dtype = arguments.pop("model"), getattr(torch, arguments.pop("dtype"))
    pipeline = DiTPipeline.from_pretrained(model, dtype=dtype)
    written = generate_with_pipeline(pipeline, **arguments)
    PartialState().print(f"wrote {written}")  # once for all processes


if __name__ == "__main__":
    main()
