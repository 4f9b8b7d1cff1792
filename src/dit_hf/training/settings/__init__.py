"""The settings of a training. One row states everything about a setting; see `row.py`."""

from .compare import changed_settings, images_a_step
from .parse import parse_settings, read_yaml
from .row import row, rows
from .table import TrainSettings, card_names

__all__ = [
    "TrainSettings",
    "card_names",
    "changed_settings",
    "images_a_step",
    "parse_settings",
    "read_yaml",
    "row",
    "rows",
]
