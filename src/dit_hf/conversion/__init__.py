"""Weights of DiT from and to the original's checkpoints and diffusers' form."""

from .diffusers_format import from_diffusers, to_diffusers
from .folders import convert
from .original import from_original, to_original
from .pipelines import load_pipeline
from .schedulers import with_scheduler
from .stock_pipeline import save_for_diffusers
from .stored import CheckpointError

__all__ = [
    "CheckpointError",
    "convert",
    "from_diffusers",
    "from_original",
    "load_pipeline",
    "save_for_diffusers",
    "to_diffusers",
    "to_original",
    "with_scheduler",
]
