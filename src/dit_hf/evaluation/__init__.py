"""How good samples are: pure functions of arrays of images."""

from .nearest import nearest_class

__all__ = ["nearest_class"]
