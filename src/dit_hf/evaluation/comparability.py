"""Warnings for numbers that do not compare: too few images, sizes that differ, images in the order of their classes."""

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .features.statistics import Moments
from .metrics.inception_score import perfect_inception_score

NUM_SHUFFLES = 20  # an order is unusual if all of these do better,
MARGIN = 0.9  # by at least a tenth


def warn_if_singular(name: str, moments: Moments) -> None:
    """Warn if a covariance comes from no more images than it has rows.

    Args:
        name: Name of the set, for the message.
        moments: Moments of the set.
    """
    if moments.num is not None and moments.num <= len(moments.mean):
        warnings.warn(
            f"{moments.num} images in the {name} for {len(moments.mean)} features: the covariance is singular and the "
            "distance far too large; compare it at equal numbers of images only",
            stacklevel=2,
        )


def warn_of_other_sizes(samples: Sequence[tuple[int, int]], reference: Sequence[tuple[int, int]]) -> None:
    """Warn if samples and reference have images of different sizes, which an extractor resizes to one.

    Args:
        samples: Heights and widths of the samples, each size once.
        reference: Heights and widths of the reference, each size once; nothing if they are not known.
    """
    if reference and sorted(samples) != sorted(reference):
        of_samples, of_reference = (
            ", ".join(f"{height} x {width}" for height, width in sorted(sizes)[:3]) for sizes in (samples, reference)
        )
        warnings.warn(
            f"the samples are images of {of_samples} pixels, the reference of {of_reference}: distances then measure "
            "the resizing as well; give both the same size, for example by a resolution to crop to",
            stacklevel=2,
        )


def warn_of_class_order(labels: NDArray[np.integer], split_size: int) -> None:
    """Warn if the splits of the Inception score lack classes, because the images come in the order of their classes.

    Args:
        labels: Class of each image, in the order of the images (N,).
        split_size: Number of images of a split.
    """
    if len(labels) <= split_size:
        return
    best, rng = perfect_inception_score(labels, split_size), np.random.default_rng(0)
    shuffled = [perfect_inception_score(rng.permutation(labels), split_size) for _ in range(NUM_SHUFFLES)]
    if best < MARGIN * min(shuffled):
        warnings.warn(
            f"the images come in the order of their classes: in splits of {split_size} even a perfect classifier gives "
            f"an Inception score of {best:.2f}, and {np.mean(shuffled):.2f} in random order; set inception_score_seed "
            "(--inception-score-seed 0), which permutes the images for the splits",
            stacklevel=2,
        )


def warn_of_missing_classes(labels: NDArray[np.integer], num_images: int) -> None:
    """Warn if the first images hold fewer classes than random ones would, because all come in the order of classes.

    Args:
        labels: Class of each image of the whole set, in the order of the images (N,).
        num_images: Number of images that are taken from the beginning.
    """
    if num_images >= len(labels):
        return
    taken, rng = perfect_inception_score(labels[:num_images], num_images), np.random.default_rng(0)
    chosen = [rng.permutation(labels)[:num_images] for _ in range(NUM_SHUFFLES)]
    if taken < MARGIN * min(perfect_inception_score(part, num_images) for part in chosen):
        warnings.warn(
            f"the first {num_images} of {len(labels)} images hold {len(np.unique(labels[:num_images]))} of "
            f"{len(np.unique(labels))} classes, because the images come in the order of their classes: take all "
            "images, or mix their order",
            stacklevel=2,
        )
