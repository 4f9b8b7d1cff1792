"""The class of each image as a whole number, from what a file holds: whole numbers, digits, or names of classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def number_labels(labels: Sequence[Any], source: str) -> tuple[NDArray[np.int64], list[str] | None]:
    """Return labels as whole numbers, and the names of the classes if the labels are names.

    Names are numbered in their order, as `datasets` numbers the folders of an image folder: the labels "dog", "cat",
    "dog" become 1, 0, 1 with the names "cat", "dog". If all labels are digits, such as "3", they are numbers.

    Args:
        labels: Label of each image (N,).
        source: Name of the file that holds the labels, for messages.

    Raises:
        ValueError: If the labels are neither whole numbers from 0 on nor names.
    """
    kinds = {type(label) for label in labels}
    if kinds == {str} and not all(label.isdecimal() for label in labels):
        class_names = sorted(set(labels))
        number_of = {name: number for number, name in enumerate(class_names)}
        return np.array([number_of[label] for label in labels]), class_names
    if (
        kinds <= {int, float}
        and not all(float(label).is_integer() for label in labels)
        or not kinds <= {int, float, str}
    ):
        types = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise ValueError(f"{source}: labels of type {types}: give a whole number or a name for each image")
    if len(kinds) > 1 and str in kinds:
        raise ValueError(f"{source}: some labels are numbers and some are names: give one of the two for all images")
    numbers = np.array([int(label) for label in labels], dtype=np.int64)
    if len(numbers) and numbers.min() < 0:
        raise ValueError(f"{source}: label {numbers.min()}: classes are numbered from 0 on, leave such labels out")
    return numbers, None
