"""Write letters of many fonts as a data set of 200 classes, in files as MNIST has them.

    python runs/glyphs.py out/glyphs

The study of the four blocks on these images asks whether the number of classes decides the order of the blocks, since
Fashion-MNIST has only ten. A class is one letter or digit; its images are that letter in each installed font that has
all 200, white on black. Every eighth font is held out for the test split.

Needs `fc-list` (Debian's package fontconfig) and fonts, here those of Debian's packages fonts-dejavu, -liberation,
-freefont-ttf, -noto-core, -noto-extra, -roboto-unhinted, -open-sans, -inter, -jetbrains-mono, -firacode, -hack,
-linuxlibertine, -cmu and -paratype.
"""

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Greek and Cyrillic letters that look like Latin ones, such as the capital Alpha, are left out.
LETTERS = (
    "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπρςστφψω"
    "БДЖЗИЙЛУФЦЧШЩЪЫЬЭЮЯбвгджзийклмнптфцчшщъыьэюя"
    "ÀÁÂÃÄÅÇÈÉÊËÌÍÎÏÑÒÓÔÕÖØÙÚÛÜÝàáâãäåæçèéêëìíîïñòóôõöøùúûüýÿßĀāĂăĄąĆć"
)
SIDE, FONT_SIZE, HELD_OUT = 28, 20, 8


def find_fonts() -> list[Path]:
    """Return the files of the installed fonts that have all letters, in the order of their names."""
    charset = " ".join(f"{ord(letter):x}" for letter in LETTERS)
    listed = subprocess.run(["fc-list", f":charset={charset}", "file"], capture_output=True, text=True, check=True)
    files = {Path(line.strip().rstrip(":")) for line in listed.stdout.splitlines()}
    return sorted(file for file in files if file.suffix in {".ttf", ".otf"})


def draw(letter: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """Draw a letter in the middle of a line, so that capitals stay larger than small letters; (SIDE, SIDE) uint8."""
    image = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(image).text((SIDE / 2, SIDE * 0.76), letter, fill=255, font=font, anchor="ms")
    return np.array(image)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array of uint8 in MNIST's format: its number of dimensions, its shape, and its bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def main(folder: Path) -> None:
    """Draw all letters in all fonts and write both splits."""
    folder.mkdir(parents=True, exist_ok=True)
    fonts = find_fonts()
    for split, chosen in (
        ("train", [font for number, font in enumerate(fonts) if number % HELD_OUT]),
        ("t10k", fonts[::HELD_OUT]),
    ):
        loaded = [ImageFont.truetype(str(file), FONT_SIZE) for file in chosen]
        images = np.stack([draw(letter, font) for font in loaded for letter in LETTERS])  # (N, SIDE, SIDE)
        labels = np.tile(np.arange(len(LETTERS), dtype=np.uint8), len(loaded))  # (N,)
        write_idx(folder / f"{split}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", labels)
        print(f"{split}: {len(images):,} images of {len(LETTERS)} classes from {len(loaded)} fonts")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
