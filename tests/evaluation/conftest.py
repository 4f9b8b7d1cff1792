"""What the tests of evaluation share: a tiny extractor with the taps of the Inception network."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from dit_hf.evaluation.features.images import check_batch


class TinyExtractor:
    """Random projections of 4 x 4 thumbnails; as a module of its own it would be anybody's extractor."""

    def __init__(self, name: str = "tiny", seed: int = 0) -> None:
        self.name = name
        self.taps = {"pool": 6, "spatial": 5, "logits": 4}
        self.settings = {"seed": seed}
        rng = np.random.default_rng(seed)
        self.weights = {tap: torch.from_numpy(rng.normal(size=(48, size)) / 7) for tap, size in self.taps.items()}
        self.num_images = 0  # how many it saw

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        self.num_images += len(images)
        x = torch.nn.functional.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).double() / 64, 4).flatten(1)
        return {tap: (x @ weight).abs().float() for tap, weight in self.weights.items()}


@pytest.fixture
def extractor() -> TinyExtractor:
    return TinyExtractor()


@pytest.fixture(scope="session")
def make_extractor() -> type[TinyExtractor]:
    return TinyExtractor


def join_batches(batches) -> tuple[np.ndarray, np.ndarray | None]:
    """All images and labels of a set."""
    parts = [check_batch(batch) for batch in batches]
    labels = None if parts[0][1] is None else np.concatenate([labels for _, labels in parts])
    return np.concatenate([images for images, _ in parts]), labels


@pytest.fixture(scope="session")
def joined() -> Callable[..., tuple[np.ndarray, np.ndarray | None]]:
    return join_batches


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """(230, 8, 8, 3): smooth enough that thumbnails differ."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (230, 4, 4, 3)).repeat(2, 1).repeat(2, 2)
    return (coarse + rng.integers(-20, 21, (230, 8, 8, 3))).clip(0, 255).astype(np.uint8)
