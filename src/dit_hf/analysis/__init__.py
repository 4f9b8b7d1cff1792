"""What a DiT costs and what the cost buys: counts in closed form, the paper's numbers, and figures from results."""

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
