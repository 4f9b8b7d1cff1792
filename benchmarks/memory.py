"""Compute the memory that sampling and training need, in GiB: does it fit my card?

    python benchmarks/memory.py    # XL/2 at batches 1, 8 and 32; seconds on a CPU

Parameters and what the backward pass keeps are counted in closed form; only the share that bfloat16 leaves is measured,
on one block. What libraries hold for themselves (CUDA's context), the VAE and fragmentation come on top. Sampling is
guided, so that a batch has twice as many rows. LoRA is counted without its adapter, which is below 1 % of the weights.
"""

import argparse
import math
from dataclasses import dataclass
from functools import cache

import torch

from dit_hf import DiTConfig, DiTModel
from dit_hf.analysis import count_activations, count_parameters

GIB = 2**30


@dataclass(frozen=True)
class Way:
    """A way to run a model.

    Attributes:
        bytes_per_parameter: Weights and what else is kept for each parameter of the model.
        trains: Whether a backward pass follows.
        bfloat16: Whether products are computed in bfloat16.
        checkpointing: Whether only the input of each block is kept for the backward pass.
    """

    bytes_per_parameter: int
    trains: bool = True
    bfloat16: bool = False
    checkpointing: bool = False


# float32 weights 4, gradients 4, AdamW 8 (2 with states of 8 bits), averaged weights 4
WAYS = {
    "sample, float32": Way(4, trains=False),
    "sample, bfloat16": Way(2, trains=False, bfloat16=True),
    "train, float32": Way(20),
    "train, bf16": Way(20, bfloat16=True),
    "train, bf16, checkpointing": Way(20, bfloat16=True, checkpointing=True),
    "train, bf16, checkpointing, 8-bit AdamW": Way(14, bfloat16=True, checkpointing=True),
    "LoRA, bf16": Way(4, bfloat16=True),
    "LoRA, bf16, checkpointing": Way(4, bfloat16=True, checkpointing=True),
}


def saved_bytes(config: DiTConfig, bfloat16: bool) -> int:
    """Count the bytes an image that a forward keeps for its backward pass, weights and their copies left out."""
    height, width = config.sample_height_width
    saved: dict[int, torch.UntypedStorage] = {}
    model = DiTModel(config).train()
    of_weights = {shape for each in model.parameters() for shape in (each.shape, each.shape[::-1])}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in of_weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    batch = 5  # with which no activation has the shape of a weight
    x, t, y = torch.randn(batch, config.in_channels, height, width), torch.ones(batch), torch.zeros(batch).long()
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model(x, t, y, drop_labels=torch.zeros(batch).bool())
    return sum(storage.nbytes() for storage in saved.values()) // batch


@cache
def share_in_bfloat16(size: str) -> float:
    """Return the share of a block's bytes that autocast leaves, measured on one block of the model's width."""
    config = DiTConfig.from_name(size, num_hidden_layers=1)
    return saved_bytes(config, bfloat16=True) / saved_bytes(config, bfloat16=False)


def gibibytes(size: str, way: Way, batch: int) -> float:
    """Return what one way needs at a batch of images, in GiB."""
    config = DiTConfig.from_name(size)
    share = share_in_bfloat16(size) if way.bfloat16 else 1
    if way.trains:
        values = batch * count_activations(config, checkpointing=way.checkpointing)
    else:  # one block at a time
        depth, width = config.num_hidden_layers, config.hidden_size
        tokens = math.prod(config.sample_height_width) // config.patch_size**2
        values = 2 * batch * (count_activations(config, checkpointing=True) - (depth - 1) * tokens * width)
    return (way.bytes_per_parameter * count_parameters(config) + 4 * share * values) / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="DiT-XL/2", help="Name of one of the paper's models.")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="Numbers of images.")
    arguments = parser.parse_args()
    print(f"GiB for {arguments.size}, computed\n")
    print("| way | " + " | ".join(f"batch {batch}" for batch in arguments.batches) + " |")
    print("|---" * (1 + len(arguments.batches)) + "|")
    for name, way in WAYS.items():
        print(
            f"| {name} | "
            + " | ".join(f"{gibibytes(arguments.size, way, batch):.1f}" for batch in arguments.batches)
            + " |"
        )


if __name__ == "__main__":
    main()
