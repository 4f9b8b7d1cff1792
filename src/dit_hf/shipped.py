"""Where the shipped model lies: in the installed package `dit-hf-emoji`, or in the checkout of this code."""

import importlib.util
from pathlib import Path

DISTRIBUTION = "dit_hf_emoji"
IN_CHECKOUT = Path(__file__).parents[2] / "examples" / "assets" / "dit-emoji"


def shipped_model() -> Path:
    """Return the folder of the shipped model, a DiT of three hundred emoji, for `DiTPipeline.from_pretrained`.

    Raises:
        FileNotFoundError: If neither the package `dit-hf-emoji` is installed nor this code runs from a checkout.
    """
    spec = importlib.util.find_spec(DISTRIBUTION)
    installed = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    for folder in (*installed, IN_CHECKOUT):
        if (folder / "model_index.json").is_file():
            return folder
    raise FileNotFoundError(
        "the shipped model is a package of its own, dit-hf-emoji, which is not installed: in a checkout of dit-hf "
        "install the folder ./examples/assets by pip, or install the wheel dit_hf_emoji-*.whl that `make build` writes"
    )
