"""Extract the latents of a data set. Training on them needs no VAE encoder and decodes no images.

    accelerate launch examples/extract_latents.py --output_dir out/emoji-latents        # the embedded emoji
    torchrun --nproc_per_node 8 examples/extract_latents.py --dataset_name ILSVRC/imagenet-1k \
        --vae_name_or_path stabilityai/sd-vae-ft-ema --resolution 256 --output_dir out/imagenet-latents
    accelerate launch examples/train_dit.py --dataset_name out/imagenet-latents

`dit-hf extract DATASET` is the same as a command. If the command is stopped, the same command continues. `--help`
describes every setting.
"""

import sys
from pathlib import Path

from transformers import HfArgumentParser

from dit_hf.extraction import ExtractSettings, main, run

__all__ = ["ExtractSettings", "HfArgumentParser", "main", "run"]

ASSETS = Path(__file__).parent / "assets"
EMOJI = {"dataset_name": ASSETS / "emoji", "vae_name_or_path": ASSETS / "vae-emoji", "resolution": 64}

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not any(argument.startswith("--dataset_name") for argument in arguments):
        arguments = [text for name, value in EMOJI.items() for text in (f"--{name}", str(value))] + arguments
    main(arguments)
