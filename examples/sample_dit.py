"""Draw many images with a DiT, on any number of processes; an interrupted command continues when it is run again.

    python examples/sample_dit.py --num_images 100 --labels balanced --output out/samples            # PNGs
    torchrun --nproc_per_node 8 examples/sample_dit.py --model my/dit --num_images 50000 --output samples.npz

`dit-hf generate` does the same without a checkout of the repository. To draw with something else than a pipeline, call
`dit_hf.generation.generate_images` with any function from labels and generators to uint8 images.
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
    parser.add_argument("--model", default=str(MODEL), help="folder of a pipeline, or its id on the Hub")
    parser.add_argument("--output", type=Path, required=True, help="new folder for PNGs, or a file that ends in .npz")
    parser.add_argument("--num_images", type=int, help="number of images; default: lines of the file of labels")
    parser.add_argument("--labels", default="random", help="random, balanced, or a text file with a label on each line")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise and of random labels")
    parser.add_argument("--batch_size", type=int, default=32, help="number of images that each process draws at once")
    parser.add_argument("--guidance_scale", type=float, default=1.5, help="scale of guidance; 1 is no guidance")
    parser.add_argument("--num_inference_steps", type=int, help="number of sampling steps; default: the scheduler's")
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
