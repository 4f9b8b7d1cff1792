"""The command line `dit-hf`: parse the arguments, call the other rooms, print the result."""

from . import generate, demo, train, status, convert, export, evaluate, flops, study, plot  # noqa: I001  each adds its commands, in the order of the help
from .entry import app, main

__all__ = [
    "app",
    "convert",
    "demo",
    "evaluate",
    "export",
    "flops",
    "generate",
    "main",
    "plot",
    "status",
    "study",
    "train",
]
