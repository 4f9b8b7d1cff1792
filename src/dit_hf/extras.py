"""Packages that only some purposes need: whether they are installed, and the sentence that says how to install them.

The command names the packages, not an extra of this package: `pip install peft` is right in a checkout and for an
installed package alike; `pip install "dit-hf[lora]"` is wrong in the one, and `pip install ".[lora]"` in the other.

This file travels to the Hub as a part of `pipeline_dit.py`.
"""

import importlib.util

# Module -> its package on PyPI. setup.py declares them as extras.
PACKAGES = {
    "deepspeed": "deepspeed", "gradio": "gradio", "onnx": "onnx", "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript", "openvino": "openvino", "peft": "peft", "pillow_heif": "pillow-heif",
    "torchao": "torchao",
}  # fmt: skip


def is_installed(module: str) -> bool:
    """Return whether a module can be imported."""
    return importlib.util.find_spec(module) is not None


def how_to_install(*packages: str) -> str:
    """Return what to do about missing packages: "run `pip install onnx onnxscript`".

    Args:
        *packages: Names on PyPI, with a version if one is needed: "openvino>=2025.4".
    """
    names = [f"'{package}'" if set(package) & set("<>=![") else package for package in packages]
    return f"run `pip install {' '.join(names)}`"


def require(purpose: str, *modules: str) -> None:
    """Refuse to go on without modules of `PACKAGES`.

    Args:
        purpose: What needs them, as the message begins: "the demo".
        *modules: Modules, all of which are needed.

    Raises:
        ImportError: If one is missing; the message says how to install those that are.
    """
    missing = [PACKAGES[module] for module in modules if not is_installed(module)]
    if missing:
        what = (
            f"package {missing[0]}, which is" if len(missing) == 1 else f"packages {' and '.join(missing)}, which are"
        )
        raise ImportError(f"{purpose} needs the {what} not installed: {how_to_install(*missing)}")
