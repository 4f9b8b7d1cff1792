"""The settings of a training. One row states everything about a setting; see `setting_row.py`."""

from ..setting_row import row, rows
from .compare import changed_settings, images_a_step
from .model_fields import DECIDED, ModelFields
from .own_images import OWN_IMAGES, finetune_arguments
from .parse import parse_settings, read_yaml
from .table import TrainSettings, all_rows, card_names

__all__ = [
    "DECIDED",
    "OWN_IMAGES",
    "ModelFields",
    "TrainSettings",
    "all_rows",
    "card_names",
    "changed_settings",
    "finetune_arguments",
    "images_a_step",
    "parse_settings",
    "read_yaml",
    "row",
    "rows",
]
