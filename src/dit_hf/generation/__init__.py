"""Drawing many images from a pipeline, over any number of processes, resumable."""

from .from_pipeline import generate_with_pipeline, pipeline_sampler
from .generate import draw_labels, generate_images, iterate_batches

__all__ = ["draw_labels", "generate_images", "generate_with_pipeline", "iterate_batches", "pipeline_sampler"]
