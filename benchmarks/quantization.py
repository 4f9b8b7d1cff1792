"""Measure what the shipped model loses and gains when its weights are stored in fewer bits.

    python benchmarks/quantization.py               # minutes on a CPU; needs torchao

Each row is the same model with other storage, drawing the same classes from the same noise. Two distances say what is
lost, both in the features of EfficientNet-lite0. "per image" is the mean distance of an image to the one that float32
draws from the same noise, as a share of the mean distance between two images of a class: 0 is the same image, 1 another
image of the class. The Fréchet distance compares the sets. A speed is the median over the rounds, with the lowest and
the highest.
"""

import argparse
import platform
from collections.abc import Callable

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.hooks import apply_layerwise_casting
from runtimes import draw
from sampling import ASSETS, features, race, ratio
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

from dit_hf import DiTModel, DiTPipeline
from dit_hf.evaluation import frechet_distance

CALL = {"num_inference_steps": 20, "guidance_scale": 2.0}


def cast_layers(model: DiTModel) -> None:
    """Store the weights of layers in 8-bit floats, and cast each layer while it computes."""
    apply_layerwise_casting(model, storage_dtype=torch.float8_e4m3fn, compute_dtype=model.dtype)


STORAGES: dict[str, Callable[[DiTModel], object]] = {
    "float32": lambda model: None,
    "float32, other noise": lambda model: None,
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "float8 storage, layerwise casting": cast_layers,
    "int8 weights, torchao": lambda model: quantize_(model, Int8WeightOnlyConfig()),
    "int8 weights and activations, torchao": lambda model: quantize_(model, Int8DynamicActivationInt8WeightConfig()),
}


def load(storage: str) -> DiTPipeline:
    """Load the shipped pipeline with another storage of its transformer's weights."""
    pipe = DiTPipeline.from_pretrained(ASSETS / "dit-emoji")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    STORAGES[storage](pipe.transformer)
    return pipe


def stored_mebibytes(model: DiTModel) -> float:
    """Count the bytes of a model's weights, in MiB."""

    def num_bytes(weight: torch.Tensor) -> int:
        if not hasattr(weight, "__tensor_flatten__"):
            return weight.nbytes
        return sum(num_bytes(getattr(weight, name)) for name in weight.__tensor_flatten__()[0])

    return sum(num_bytes(weight) for weight in model.parameters()) / 2**20


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the covariance of features (N, F)."""
    return features.mean(0), np.cov(features, rowvar=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=200, help="Number of images for the distances; even.")
    parser.add_argument("--rounds", type=int, default=5, help="Number of rounds for the speeds.")
    arguments = parser.parse_args()
    print(f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    pipes = {storage: load(storage) for storage in STORAGES}
    drawn = {
        storage: features(draw(pipe, arguments.num_images, seed=int("other noise" in storage)))
        for storage, pipe in pipes.items()
    }
    exact = drawn["float32"]
    unit = np.linalg.norm(exact[::2] - exact[1::2], axis=1).mean()
    calls = {storage: lambda pipe=pipe: pipe(0, **CALL) for storage, pipe in pipes.items() if "noise" not in storage}
    seconds = race(calls, arguments.rounds)
    print("| weights | MiB | speed | per image | Fréchet distance |\n" + "|---" * 5 + "|")
    for storage, pipe in pipes.items():
        speed = ratio(seconds["float32"], seconds[storage]) if storage in seconds else "-"
        per_image = np.linalg.norm(drawn[storage] - exact, axis=1).mean() / unit
        distance = frechet_distance(*moments(exact), *moments(drawn[storage]))
        print(f"| {storage} | {stored_mebibytes(pipe.transformer):.1f} | {speed} | {per_image:.3f} | {distance:.0f} |")


if __name__ == "__main__":
    main()
