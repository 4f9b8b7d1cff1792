"""Techniques: changes of the training that no objective and no model needs to know, one file each.

To add one, write its file as `min_snr.py` is written, and name it in the table below. Its settings then are flags and
keys of a YAML file, compared as a training resumes, and shown on cards, as all settings are.
"""

from .block_calls import changed_blocks, recorded_blocks
from .layer_sync import LayerSync
from .min_snr import MinSNR
from .repa import RepresentationAlignment
from .technique import ForwardPass, Technique, Techniques
from .tread import Tread

# In this order, each stands around the blocks as those before it have changed them.
TECHNIQUES: dict[str, type[Technique]] = {
    "tread": Tread,  # first, so that the others find all tokens after a block
    "layer_sync": LayerSync,
    "min_snr": MinSNR,
    "repa": RepresentationAlignment,
}

__all__ = [
    "TECHNIQUES",
    "ForwardPass",
    "LayerSync",
    "MinSNR",
    "RepresentationAlignment",
    "Technique",
    "Techniques",
    "Tread",
    "changed_blocks",
    "recorded_blocks",
]
