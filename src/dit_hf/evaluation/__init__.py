"""How good samples are: pure functions of arrays of images or features; and how many samples are drawn."""

from .frechet import frechet_distance
from .from_pipeline import generate_with_pipeline, pipeline_sampler
from .generate import draw_labels, generate_images, iterate_batches
from .nearest import nearest_class

__all__ = [
    "draw_labels",
    "frechet_distance",
    "generate_images",
    "generate_with_pipeline",
    "iterate_batches",
    "nearest_class",
    "pipeline_sampler",
]
