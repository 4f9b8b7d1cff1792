"""Train a DiT.

    accelerate launch examples/train_dit.py                                  # the embedded emoji
    accelerate launch examples/train_dit.py examples/configs/emoji_100.yaml  # the shipped model
    accelerate launch examples/train_dit.py --dataset_name user/images --model DiT-B/4   # else the paper's recipe
    torchrun --nproc_per_node 2 examples/train_dit.py ...                    # two processes, GPUs or not

The same command again goes on from the newest checkpoint. Every setting is described by --help.
"""

import sys
from pathlib import Path

import torch

from dit_hf.training.run import main

CONFIGS = Path(__file__).parent / "configs"

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not (arguments and arguments[0].endswith((".yaml", ".yml"))) and "--dataset_name" not in arguments:
        config = CONFIGS / ("emoji_100.yaml" if torch.cuda.is_available() else "emoji_10.yaml")
        print(f"no data set given: taking the settings of {config}")
        arguments.insert(0, str(config))
    main(arguments)
