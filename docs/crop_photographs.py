"""Make the folder of the picture in your_images.md: twenty square pieces of each of three photographs.

    pip install scikit-image
    python docs/crop_photographs.py

The photographs come with scikit-image, free of copyright (CC0 or public domain). The folder is called `photos`.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = {"cat": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}
NUM_PIECES = 20


def crop(photograph: Image.Image, folder: Path, generator: np.random.Generator) -> None:
    """Write squares of 60 to 100 % of the shorter side, from anywhere in the photograph."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_PIECES):
        side = int(min(photograph.size) * generator.uniform(0.6, 1))
        left = int(generator.integers(0, photograph.width - side + 1))
        top = int(generator.integers(0, photograph.height - side + 1))
        photograph.crop((left, top, left + side, top + side)).save(folder / f"{number}.png")


if __name__ == "__main__":
    package = find_spec("skimage")
    if package is None or package.origin is None:
        sys.exit("error: the photographs are in scikit-image, which is not installed: pip install scikit-image")
    seeded = np.random.default_rng(0)
    for name, file in PHOTOGRAPHS.items():
        with Image.open(Path(package.origin).parent / "data" / file) as opened:
            crop(opened.convert("RGB"), Path("photos") / name, seeded)
