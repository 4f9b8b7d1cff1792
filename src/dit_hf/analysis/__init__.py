"""Counting, the paper's numbers, and figures from a file of results: what a DiT costs, and what that buys."""

from .flops import Macs, VaeMacs, count_activations, count_gmacs, count_macs, count_parameters, count_vae_macs
from .results import Row, append_rows, read_rows
from .tables import costs, format_results, paper_rows, result_of

__all__ = [
    "Macs",
    "Row",
    "VaeMacs",
    "append_rows",
    "costs",
    "count_activations",
    "count_gmacs",
    "count_macs",
    "count_parameters",
    "count_vae_macs",
    "format_results",
    "paper_rows",
    "read_rows",
    "result_of",
]
