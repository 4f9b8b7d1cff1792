"""Drawing many images from a model, by any number of processes; a run that was killed goes on by the same call."""

from .batches import iterate_batches
from .draws import draw_labels, image_seed
from .from_pipeline import generate_with_pipeline, pipeline_sampler
from .generate import generate_images
from .interpolation import interpolate

__all__ = [
    "draw_labels",
    "generate_images",
    "generate_with_pipeline",
    "image_seed",
    "interpolate",
    "iterate_batches",
    "pipeline_sampler",
]
