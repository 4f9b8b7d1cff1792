"""A set of tiny grey images in the files of MNIST, and a recipe of seconds."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from dit_hf.study.recipe import Recipe


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
        (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture(scope="session")
def toys(tmp_path_factory) -> Path:
    """Two classes of 12 px: bright on the left, bright on the right."""
    folder, rng = tmp_path_factory.mktemp("toys"), np.random.default_rng(0)
    for prefix, count in (("train", 160), ("t10k", 20)):
        labels = (np.arange(count) % 2).astype(np.uint8)
        images = rng.integers(0, 60, (count, 12, 12), dtype=np.uint8)
        images[labels == 0, :, :6] += 150
        images[labels == 1, :, 6:] += 150
        write_idx(folder, prefix, images, labels)
    return folder


@pytest.fixture
def recipe(toys) -> Recipe:
    return Recipe(
        dataset=str(toys), side=16, depth_divisor=12, width_divisor=16, batch_size=32, warmup_steps=1,
        checkpoints=(32, 64), seeds=(0,), num_samples=8, num_final_samples=10, num_steps=2,
        sampling_models=("S/8",), sampling_steps=(2, 3), num_sampling_samples=9, guidance_models=("S/8",),
        guidance_scales=(2.0,),
    )  # fmt: skip
