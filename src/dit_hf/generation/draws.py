"""What is random about an image besides its model: the seed of its noise, and its class.

Both depend on the run's seed and the image's number k alone. Neither the number of processes nor an interruption nor
the number of images changes them.
"""

from functools import cache

import numpy as np

LABEL_STREAM = 1  # keeps the draws of labels apart from the other uses of a seed
MASK_32_BITS = 0xFFFFFFFF


def _mix(word: int) -> int:
    """Map 32 bits to 32 bits, one to one, so that each bit depends on all others: MurmurHash3's finaliser."""
    for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
        word = ((word ^ word >> shift) * multiplier) & MASK_32_BITS
    return word ^ word >> 16


@cache
def _keys(seed: int) -> list[int]:
    return np.random.SeedSequence(seed).generate_state(2, np.uint32).tolist()


def image_seed(seed: int, index: int) -> int:
    """Return the seed of an image's own generator.

    torch's CPU generator keeps 32 bits of a seed. If the seeds were hashes of 32 bits, two of 100,000 images would more
    likely than not start from the same noise. Here the seed is a permutation of the index, so no two images share one.

    Args:
        seed: Seed of the run, at least 0.
        index: Number k of the image, 0..2^32 - 1.
    """
    first, second = _keys(seed)
    return _mix(_mix(index ^ first) ^ second)


def draw_labels(scheme: str, num_images: int, num_classes: int, seed: int = 0) -> list[int]:
    """Choose a class for each image.

    Args:
        scheme: `random` draws each class with the same probability; `balanced` takes 0, 1, ... in turn.
        num_images: Number of images.
        num_classes: Number of classes.
        seed: Seed of the run; only for `random`.

    Raises:
        ValueError: If the scheme is unknown, or if there are no classes.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes}: the model is unconditional, there are no labels to draw")
    if scheme == "random":
        return np.random.default_rng((seed, LABEL_STREAM)).integers(num_classes, size=num_images).tolist()
    if scheme == "balanced":
        return (np.arange(num_images) % num_classes).tolist()
    raise ValueError(f"labels={scheme!r}: choose from random, balanced")
