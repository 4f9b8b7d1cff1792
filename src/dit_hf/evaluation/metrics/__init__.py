"""Metrics: pure functions of arrays of features. None of them knows a model, an image or a file."""

from .frechet import class_frechet_distances, frechet_distance, frechet_distance_of_rows
from .inception_score import InceptionScoreSums, inception_score
from .kernel_distance import kernel_distance, polynomial_mmd
from .nearest import nearest_class
from .precision_recall import density_coverage, precision_recall

__all__ = [
    "InceptionScoreSums",
    "class_frechet_distances",
    "density_coverage",
    "frechet_distance",
    "frechet_distance_of_rows",
    "inception_score",
    "kernel_distance",
    "nearest_class",
    "polynomial_mmd",
    "precision_recall",
]
