"""Save a trained pipeline as the shipped one: its weights as they are, its own guidance, and the code that loads it.

The folder of the shipped model then loads with and without this package. Its card, README.md, stays as it is.

Example:
    python examples/ship_dit.py out/emoji-300/pipeline
    python examples/ship_dit.py    # renews the code and the settings of the shipped model itself
"""

import argparse
from pathlib import Path

from dit_hf import DiTPipeline

SHIPPED = Path(__file__).parent / "assets" / "dit-emoji"
GUIDANCE_SCALE = 2.0  # the best row of the card's table


def ship(source: Path, folder: Path = SHIPPED) -> None:
    """Save the pipeline of a folder in another, or in the same folder."""
    pipeline = DiTPipeline.from_pretrained(source, guidance_scale=GUIDANCE_SCALE)
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", default=SHIPPED, help="Folder of a pipeline.")
    ship(parser.parse_args().source)
