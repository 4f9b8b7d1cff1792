"""Letters of the names in previews: a font that has them all, or else words for those that no font here has."""

import functools
import unicodedata
from pathlib import Path

import matplotlib
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

JOINERS = ("Cf", "Mn", "Zs", "Cc")  # categories of Unicode without a shape of their own: joiners, accents, spaces


def written(name: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return the text to draw for a name, and a font that has its letters.

    Pillow's own font has the letters of English only, and draws a box for any other. matplotlib's has most alphabets.
    For a name with other letters, such as Chinese or emoji, the fonts of the machine are searched. If none has them,
    an emoji is called by its name in Unicode, and a letter by its number: "frog face", "U+732B".

    Args:
        name: Name of a class.
        size: Height of the letters in pixels.
    """
    for file in (_bundled(), *_installed()) if _letters(name) - _letters_of(_bundled()) else (_bundled(),):
        if _letters(name) <= _letters_of(file) and (font := _load(file, size)) is not None:
            return name, font
    font = _load(_bundled(), size)
    assert font is not None, "matplotlib comes with its font"
    return " ".join("".join(_spelled(letter, _letters_of(_bundled())) for letter in name).split()), font


def _letters(name: str) -> frozenset[int]:
    return frozenset(ord(letter) for letter in name if unicodedata.category(letter) not in JOINERS)


def _spelled(letter: str, known: frozenset[int]) -> str:
    category = unicodedata.category(letter)
    if ord(letter) in known and category not in ("Cf", "Cc"):
        return letter
    if category in JOINERS:
        return " " if category == "Zs" else ""
    words = unicodedata.name(letter, "").lower() if category.startswith("S") else ""
    return f" {words or f'U+{ord(letter):04X}'} "


def _bundled() -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@functools.cache
def _installed() -> tuple[str, ...]:
    """Return the fonts of this machine, but for those that have a box for everything."""
    return tuple(sorted(file for file in findSystemFonts() if "lastresort" not in Path(file).name.lower()))


@functools.cache
def _letters_of(file: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(file).get_charmap())
    except (OSError, RuntimeError):  # no font after all
        return frozenset()


def _load(file: str, size: int) -> ImageFont.FreeTypeFont | None:
    """Return a font, or None if it has other sizes only, as fonts of coloured pictures do."""
    try:
        return ImageFont.truetype(file, size)
    except OSError:
        return None
