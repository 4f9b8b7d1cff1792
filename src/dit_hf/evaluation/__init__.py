"""How good samples are: metrics that are functions of arrays, and one pass over images that gives all of them features.

`evaluate` does the whole. `features/` turns images into features and statistics, `metrics/` turns those into numbers.
"""

from .evaluate import evaluate, measure
from .features.adm import npz_batches
from .features.extract import extract
from .features.extractors import DINOv2Extractor, Extractor, InceptionExtractor
from .features.features import Features
from .features.folder import folder_batches
from .features.images import ImageBatches, array_batches, row_batches
from .features.reference import Reference, load_reference, make_reference
from .features.statistics import GaussianStatistics, Moments
from .metric_table import METRICS, MetricSettings
from .metrics.frechet import class_frechet_distances, frechet_distance, frechet_distance_of_rows
from .metrics.inception_score import InceptionScoreSums, inception_score
from .metrics.kernel_distance import kernel_distance, polynomial_mmd
from .metrics.nearest import nearest_class
from .metrics.precision_recall import density_coverage, precision_recall
from .result import Evaluation

__all__ = [
    "METRICS",
    "DINOv2Extractor",
    "Evaluation",
    "Extractor",
    "Features",
    "GaussianStatistics",
    "ImageBatches",
    "InceptionExtractor",
    "InceptionScoreSums",
    "MetricSettings",
    "Moments",
    "Reference",
    "array_batches",
    "class_frechet_distances",
    "density_coverage",
    "evaluate",
    "extract",
    "folder_batches",
    "frechet_distance",
    "frechet_distance_of_rows",
    "inception_score",
    "kernel_distance",
    "load_reference",
    "make_reference",
    "measure",
    "nearest_class",
    "npz_batches",
    "polynomial_mmd",
    "precision_recall",
    "row_batches",
]
