"""Packaging of the shipped model as `dit-hf-emoji`: `dit_hf.shipped_model()` finds its folder once it is installed."""

from setuptools import setup

PARTS = ("", "scheduler", "transformer", "vae")

setup(
    name="dit-hf-emoji",
    version="0.1.0",
    description="The small DiT of three hundred emoji that dit-hf ships: weights, settings and the code that loads them",
    license_expression="Apache-2.0 AND CC-BY-4.0",
    license_files=["emoji/LICENSE.md"],
    packages=[".".join(filter(None, ("dit_hf_emoji", part))) for part in PARTS],
    package_dir={"dit_hf_emoji": "dit-emoji"},
    package_data={"": ["*.json", "*.md", "*.safetensors"]},
    python_requires=">=3.11",
)
