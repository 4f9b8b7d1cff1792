"""Draw many images with a DiT, on any number of processes; the same command goes on where a killed one stopped.

    python examples/sample_dit.py --num_images 100 --labels balanced --output out/samples            # PNGs
    torchrun --nproc_per_node 8 examples/sample_dit.py --model my/dit --num_images 50000 --output samples.npz

`dit-hf generate` does the same from anywhere. In Python, any function may take the pipeline's place: `generate_images`
gives it the labels of a batch and a generator for each image, and takes uint8 images.
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
    parser.add_argument("--model", default=str(MODEL), help="a pipeline's folder, or its id on the Hub")
    parser.add_argument("--output", type=Path, required=True, help="a new folder for PNGs, or a file that ends in .npz")
    parser.add_argument("--num_images", type=int, help="how many; as many as the file of labels has if not given")
    parser.add_argument("--labels", default="random", help="random, balanced, or a text file with one on each line")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=32, help="images at once on each process")
    parser.add_argument("--guidance_scale", type=float, default=1.5, help="1 is none; the paper's best is 1.5")
    parser.add_argument("--num_inference_steps", type=int, help="the scheduler's usual number if not given")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    return parser.parse_args()


def main() -> None:
    arguments = vars(parse_arguments())
    model, dtype = arguments.pop("model"), getattr(torch, arguments.pop("dtype"))
    pipeline = DiTPipeline.from_pretrained(model, dtype=dtype)
    written = generate_with_pipeline(pipeline, **arguments)
    PartialState().print(f"wrote {written}")  # once for all processes


if __name__ == "__main__":
    main()
