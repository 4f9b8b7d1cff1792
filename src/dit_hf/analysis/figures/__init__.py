"""Figures from files of numbers: the paper's, from the results of a study."""

from .draw import FIGURES, draw_all

__all__ = ["FIGURES", "draw_all"]
