"""A tensor that is still in its file: its shape and dtype are known, its values are read when they are wanted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint that is damaged, hostile, or of another model; the message names the key or the reason."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Args:
        shape: Shape of the tensor.
        dtype: Data type of the tensor.
        read: Function that reads the tensor into memory of its own.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


def readable(key: Any) -> str:
    """Return a key of a dictionary for a message: a hostile file may hold one of many lines, or without an end."""
    return " ".join(key.split())[:80] if isinstance(key, str) else f"a key of type {type(key).__name__}"


def stored(tensor: Tensor) -> StoredTensor:
    """Give a tensor in memory the form of one in a file; reading it makes a copy."""
    return StoredTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor.detach().clone().contiguous())
