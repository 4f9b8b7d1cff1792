"""Limits of the numbers that a user passes; each refusal names the value, the limit and the remedy."""

import math
from collections.abc import Callable
from typing import Any


def check_count(name: str, value: Any, most: float = math.inf) -> None:
    """Refuse a value that is no whole number in 1..most."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        limit = "" if most == math.inf else f" and at most {most}"
        raise ValueError(f"{name}={value!r}: pass a whole number of at least 1{limit}")


def falling_numbers(name: str, values: Any, convert: Callable[[Any], Any], least: float, most: float) -> list:
    """Return values as a list of numbers, each smaller than the one before; refuse others.

    Args:
        name: Argument that the values were passed as.
        values: Sequence, array or tensor.
        convert: Function that makes a number of a value, or raises TypeError.
        least: Smallest number allowed.
        most: Largest number allowed; infinity itself is not.

    Raises:
        ValueError: If there is no value, or one is no number, outside the limits or not smaller than the one before.
    """
    values = values.tolist() if hasattr(values, "tolist") else values
    try:
        falling = [convert(value) for value in values]
    except TypeError as error:
        raise ValueError(f"{name}={values!r}: pass a list of numbers") from error
    inside = all(least <= value <= most and value < math.inf for value in falling)
    if not falling or not inside or any(a <= b for a, b in zip(falling, falling[1:], strict=False)):
        raise ValueError(f"{name}={values!r}: pass falling numbers in {least:g}..{most:g}, at least one")
    return falling
