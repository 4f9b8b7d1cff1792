"""Figures from files of numbers: the paper's from the results of a study, and trainings side by side."""

from .draw import FIGURES, draw_all
from .runs import compare_runs

__all__ = ["FIGURES", "compare_runs", "draw_all"]
