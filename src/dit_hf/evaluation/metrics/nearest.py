"""The class of the nearest drawing, for small sets of drawings: a check that a person would recognise the samples.

Legend: N images, K classes, M references of a class, S the side of an image.
"""

import numpy as np
from numpy.typing import NDArray

UNRECOGNISED = -1


def nearest_class(
    images: NDArray[np.uint8], references: NDArray[np.uint8], sharpness: tuple[float, float] = (0.5, 2.0)
) -> NDArray[np.int64]:
    """Return the class of the drawing that is nearest in pixels, or -1 for an image that is no clean drawing.

    The nearest drawing alone would accept the blurred mean of a class. Therefore the gradient energy of an image,
    divided by that of its nearest drawing, must lie within `sharpness`: a blur has too little of it, noise too much.

    Args:
        images: Images uint8 (N, S, S, 3).
        references: Drawings of each class (K, M, S, S, 3), mirrored and jittered as the samples may be.
        sharpness: Lowest and highest ratio of the gradient energies.

    Returns:
        Classes 0..K-1, or -1 (N,).

    Raises:
        ValueError: If images and drawings differ in size.
    """
    if images.shape[1:] != references.shape[2:]:
        raise ValueError(
            f"images of shape {images.shape[1:]} cannot be compared with {references.shape[2:]}: resize them"
        )
    num_references = references.shape[1]
    x = images.reshape(len(images), -1).astype(np.float32) / 255  # (N, 3SS)
    squared_distances = []
    for drawings in references:  # a class at a time, because all of them as floats would fill a gigabyte
        r = drawings.reshape(num_references, -1).astype(np.float32) / 255  # (M, 3SS)
        squared_distances.append((r**2).sum(1) - 2 * x @ r.T)  # (N, M), up to a constant of each image
    nearest = np.concatenate(squared_distances, axis=1).argmin(1)  # (N,)

    flat_references = references.reshape(-1, *references.shape[2:])
    ratio = gradient_energy(images) / gradient_energy(flat_references[nearest])  # (N,)
    is_clean = (ratio >= sharpness[0]) & (ratio <= sharpness[1])
    return np.where(is_clean, nearest // num_references, UNRECOGNISED)


def gradient_energy(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the sum of the squared differences of neighbouring pixels (N,) of images (N, S, S, 3)."""
    x = images.astype(np.float32) / 255
    return sum((np.diff(x, axis=axis) ** 2).sum((1, 2, 3), dtype=np.float64) for axis in (1, 2)) + 1e-9
