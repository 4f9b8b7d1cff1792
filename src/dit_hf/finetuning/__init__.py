"""Fine-tuning: a trained DiT with another set of classes, another resolution, or an adapter."""

from .classes import carry_classes, match_classes
from .lora import add_lora, load_lora, merge_lora, merged, remove_lora, save_lora
from .resolution import resize_positions

__all__ = [
    "add_lora",
    "carry_classes",
    "load_lora",
    "match_classes",
    "merge_lora",
    "merged",
    "remove_lora",
    "resize_positions",
    "save_lora",
]
