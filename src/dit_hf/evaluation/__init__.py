"""How good samples are: pure functions of arrays of images or features."""

from .frechet import frechet_distance
from .nearest import nearest_class

__all__ = ["frechet_distance", "nearest_class"]
