"""How many samples are drawn, and how good they are: metrics of arrays, and one pass over images that feeds all."""

from .adm import npz_batches
from .evaluate import METRICS, Evaluation, MetricSettings, evaluate, measure
from .extractors import DINOv2Extractor, Extractor, InceptionExtractor
from .features import Features, extract
from .frechet import class_frechet_distances, frechet_distance, frechet_distance_of_rows
from .from_pipeline import generate_with_pipeline, pipeline_sampler
from .generate import draw_labels, generate_images, iterate_batches
from .images import ImageBatches, array_batches, folder_batches, row_batches
from .inception_score import InceptionScoreSums, inception_score
from .kernel_distance import kernel_distance, polynomial_mmd
from .nearest import nearest_class
from .precision_recall import density_coverage, precision_recall
from .reference import Reference, load_reference, make_reference
from .statistics import GaussianStatistics, Moments

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
    "draw_labels",
    "evaluate",
    "extract",
    "folder_batches",
    "frechet_distance",
    "frechet_distance_of_rows",
    "generate_images",
    "generate_with_pipeline",
    "inception_score",
    "iterate_batches",
    "kernel_distance",
    "load_reference",
    "make_reference",
    "measure",
    "nearest_class",
    "npz_batches",
    "pipeline_sampler",
    "polynomial_mmd",
    "precision_recall",
    "row_batches",
]
