"""AdamW with moments of 8 bits: two bytes a parameter instead of eight, by torchao.

Each block of 256 numbers has a scale of its own, and each number is the nearest of 256 levels (Dettmers et al. 2021,
"8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861). Parameters of fewer than 4,096 numbers, or of a
number that 256 does not divide, keep moments of 32 bits. Weights and gradients keep their precision.
"""

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from ..extras import require

BLOCK, SMALLEST = 256, 4096  # numbers of a block, and of the smallest parameter whose moments have 8 bits
PARTS = ("codes", "scale", "qmap")  # the plain tensors of a moment: levels, scales of the blocks, values of the levels
SIGNED = "exp_avg"  # the other moment, of squares, has levels from 0 up


def make_adamw_8bit(
    parameters: Iterable[nn.Parameter], *, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """Make the optimiser.

    On a GPU torchao compiles its step. On a CPU it runs uncompiled, as there may be no compiler of C++.

    Args:
        parameters: What is trained.
        learning_rate: Learning rate.
        betas: Decays of the two moments.
        weight_decay: Weight decay.

    Raises:
        ImportError: If torchao is not installed.
    """
    require("optimizer='adamw_8bit'", "torchao")
    from torchao.optim import AdamW8bit

    trained = list(parameters)
    optimizer = AdamW8bit(trained, lr=learning_rate, betas=betas, weight_decay=weight_decay)
    if all(parameter.device.type == "cpu" for parameter in trained):
        uncompiled = torch.compiler.set_stance("force_eager")(type(optimizer).step)
        optimizer.step = MethodType(uncompiled, optimizer)
    return optimizer


def quantizes(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimiser is one of `make_adamw_8bit`, and has a parameter that is large enough for 8 bits.

    Args:
        optimizer: Any optimiser.
    """
    return type(optimizer).__module__.startswith("torchao.") and any(
        each.numel() >= SMALLEST and each.numel() % BLOCK == 0
        for group in optimizer.param_groups
        for each in group["params"]
    )


def to_plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a parameter with plain tensors only: "exp_avg.codes" and two more for "exp_avg".

    Args:
        state: State as an optimiser holds it.
    """
    plain = {}
    for name, value in state.items():
        parts = {f"{name}.{part}": getattr(value, part) for part in PARTS} if hasattr(value, "codes") else {name: value}
        plain.update(parts)
    return plain


def from_plain(plain: dict[str, Tensor]) -> dict[str, Any]:
    """Return what `to_plain` was given.

    Args:
        plain: State with plain tensors only.
    """
    from torchao.optim.subclass_8bit import OptimState8bit

    state = {}
    for key, value in plain.items():
        name, _, part = key.partition(".")
        if part == "codes":
            state[name] = OptimState8bit(*(plain[f"{name}.{each}"] for each in PARTS), name == SIGNED)
        elif not part:
            state[name] = value
    return state
