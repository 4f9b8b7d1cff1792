"""Batches of prepared samples, and the positions that key the randomness of each sample.

The samples of a training form an endless sequence: the images of epoch 0 in the order of that epoch, then those of
epoch 1 in another order, and so on. The position (epoch, offset) of a sample is its place in that sequence. Batches are
cut from the sequence without regard to epochs. Example: 20 images in batches of 6:

    batch 0: (0, 0) (0, 1) (0, 2) (0, 3) (0, 4) (0, 5)
    batch 3: (0, 18) (0, 19) (1, 0) (1, 1) (1, 2) (1, 3)       two images of epoch 0, four of epoch 1

Legend: B batch, S side of an image, C latent channels, h, w sides of a latent.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Position(NamedTuple):
    """Place of a sample in the endless sequence: the sample number `offset` of an epoch, both counted from 0."""

    epoch: int
    offset: int


BEGINNING = Position(0, 0)


class Skipped(NamedTuple):
    """An image that could not be decoded, and that another image stands in for."""

    key: str  # its row and shard
    reason: str


@dataclass
class ImageBatch:
    """Prepared samples of one process, and what their randomness is keyed by."""

    images: Tensor  # (B, 3, S, S) in [-1, 1]; if `are_moments`, moments of the VAE (B, 2C, h, w)
    class_labels: Tensor  # (B,)
    positions: list[Position]  # of each sample
    identities: list[tuple[int, ...]]  # (shard, row, mirrored, variant): equal identities are equal images
    next_position: Position  # where the next batch begins, over all processes
    skipped: list[Skipped] = field(default_factory=list)  # on this process
    are_moments: bool = False


def merge_parts(parts: list[ImageBatch]) -> ImageBatch:
    """Join the parts of one batch that the workers of a process prepared, in the order of the positions."""
    filled = [part for part in parts if part.positions]
    positions = [position for part in filled for position in part.positions]
    identities = [identity for part in filled for identity in part.identities]
    order = sorted(range(len(positions)), key=positions.__getitem__)
    return ImageBatch(
        images=torch.cat([part.images for part in filled])[order],
        class_labels=torch.cat([part.class_labels for part in filled])[order],
        positions=[positions[k] for k in order],
        identities=[identities[k] for k in order],
        next_position=parts[0].next_position,
        skipped=[skip for part in parts for skip in part.skipped],
        are_moments=parts[0].are_moments,
    )
