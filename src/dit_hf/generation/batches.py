"""N images from any sampler, batch by batch. Batch p always holds the images p B ... (p + 1) B - 1, whoever draws it.

Legend: N images, B images of a batch, H and W their height and width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .draws import image_seed

Sampler = Callable[[list[int] | None, list[torch.Generator]], np.ndarray]
"""Function from the labels of a batch (None without classes) and one generator per image to uint8 (B, H, W, 3)."""


def check_draws(num_images: int, labels: Sequence[int] | None, seed: int, batch_size: int) -> None:
    """Check the arguments of `iterate_batches`.

    Raises:
        ValueError: If a number is below its limit, or if there is not one label for each image.
    """
    for name, value, least in (("num_images", num_images, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}: pass a whole number of at least {least}")
    if labels is not None and len(labels) != num_images:
        raise ValueError(f"{len(labels)} labels for num_images={num_images}: pass one for each image")


def indices_of_batch(number: int, num_images: int, batch_size: int) -> range:
    """Return the numbers of the images of a batch; the last batch may be smaller."""
    return range(number * batch_size, min((number + 1) * batch_size, num_images))


def iterate_batches(
    sample: Sampler,
    num_images: int,
    *,
    labels: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    batches: Iterable[int] | None = None,
) -> Iterator[np.ndarray]:
    """Draw the images batch by batch, uint8 (B, H, W, 3), and keep none.

    Args:
        sample: Function that draws one batch.
        num_images: Number of images N.
        labels: Class of each image, or None for an unconditional model.
        seed: Seed of the run, from which each image's own generator is made.
        batch_size: Number of images of a batch B; the last batch may be smaller.
        batches: Numbers of the batches to draw; None draws all.

    Raises:
        ValueError: If an argument is outside its limits, or if `sample` returns anything but uint8 (B, H, W, 3).
    """
    check_draws(num_images, labels, seed, batch_size)
    for number in range(-(-num_images // batch_size)) if batches is None else batches:
        indices = indices_of_batch(number, num_images, batch_size)
        generators = [torch.Generator().manual_seed(image_seed(seed, index)) for index in indices]
        images = sample(None if labels is None else [labels[index] for index in indices], generators)
        _check_images(images, len(indices))
        yield images


def _check_images(images: Any, num_images: int) -> None:
    dtype, shape = getattr(images, "dtype", None), tuple(getattr(images, "shape", ()))
    if dtype != np.uint8 or len(shape) != 4 or shape[0] != num_images or shape[-1] != 3:
        returned = f"{dtype} {shape}" if shape else type(images).__name__
        raise ValueError(f"sample returned {returned}: it must return uint8 ({num_images}, H, W, 3)")
