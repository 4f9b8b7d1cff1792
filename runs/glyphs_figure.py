"""Draw samples of the four blocks below the letters of a font.

python runs/glyphs_figure.py out/study-glyphs/samples docs/images/study/glyphs.png
"""

import sys
from pathlib import Path

import numpy as np
from glyphs import FONT_SIZE, LETTERS, draw, find_fonts
from matplotlib.figure import Figure
from PIL import ImageFont

SHOWN = "358ABDGHMQSWadegkmqtwΓΔΞΦαδηξρωДИУ"  # among the first hundred letters, whose samples a study keeps
BLOCKS = {
    "adaln_zero": "adaLN-Zero",
    "adaln": "adaLN",
    "cross_attention": "cross-attention",
    "in_context": "in-context",
}
FILE = "XL-4-{block}-seed0-64000-steps20-cfg1.npz"


def main(samples: Path, output: Path) -> None:
    """Write the figure: a row of a font, and a row of each block."""
    labels = [LETTERS.index(letter) for letter in SHOWN]
    font = next(file for file in find_fonts() if file.name == "DejaVuSans.ttf")
    drawn = [np.pad(draw(letter, ImageFont.truetype(str(font), FONT_SIZE)), 2) for letter in SHOWN]
    rows = {"a font": np.hstack(drawn)}
    for block, name in BLOCKS.items():
        images = np.load(samples / FILE.format(block=block))["arr_0"][..., 0]  # (100, S, S)
        rows[name] = np.hstack(list(images[labels]))
    figure = Figure(figsize=(16, 3), layout="tight")
    for axis, (name, row) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        axis.imshow(row, cmap="gray")
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
