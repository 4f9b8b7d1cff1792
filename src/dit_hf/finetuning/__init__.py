"""Fine-tuning: a trained DiT with another set of classes, at another resolution, or with adapters."""

from .adapters import (
    active_adapters,
    delete_adapters,
    disable_adapters,
    enable_adapters,
    load_lora,
    loaded_adapters,
    merge_lora,
    merged,
    remove_lora,
    set_adapters,
    unmerge_lora,
)
from .classes import carry_classes, match_classes
from .lora import add_lora, save_lora
from .resolution import resize_positions

__all__ = [
    "active_adapters",
    "add_lora",
    "carry_classes",
    "delete_adapters",
    "disable_adapters",
    "enable_adapters",
    "load_lora",
    "loaded_adapters",
    "match_classes",
    "merge_lora",
    "merged",
    "remove_lora",
    "resize_positions",
    "save_lora",
    "set_adapters",
    "unmerge_lora",
]
