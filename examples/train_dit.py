# /// script
# requires-python = ">=3.11"
# dependencies = ["dit-hf[train]"]
# ///
"""Train a DiT.

    accelerate launch examples/train_dit.py                                  # the embedded emoji
    accelerate launch examples/train_dit.py examples/configs/emoji_300.yaml  # the shipped model
    accelerate launch examples/train_dit.py --dataset_name user/images --model DiT-B/4   # a data set of your own
    torchrun --nproc_per_node 2 examples/train_dit.py ...                    # two processes, on GPUs or not
    uv run train_dit.py --dataset_name user/images ...                       # this file alone, see docs/jobs.md

The same command again resumes from the newest checkpoint. `--help` describes every setting. Without a launcher,
`dit-hf train` does the same.
"""

import os
import sys
from pathlib import Path

# Threads that wait for each other sleep instead of spinning: beside other work, training on a CPU is many times faster.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch

from dit_hf.training.run import main

CONFIGS = Path(__file__).parent / "configs"


def with_settings(arguments: list[str]) -> list[str]:
    """Put the settings of the embedded emoji before the arguments, if neither a file nor a data set is named."""
    has_file = bool(arguments) and arguments[0].endswith((".yaml", ".yml"))
    if has_file or any(argument.partition("=")[0] == "--dataset_name" for argument in arguments):
        return arguments
    if not CONFIGS.is_dir():
        sys.exit("error: --dataset_name is missing: the embedded emoji come only with a checkout of the repository")
    config = CONFIGS / ("emoji_300.yaml" if torch.cuda.is_available() else "emoji_10.yaml")
    print(f"no data set is named: training on the embedded emoji with the settings of {config}")
    return [str(config), *arguments]


if __name__ == "__main__":
    main(with_settings(sys.argv[1:]))
