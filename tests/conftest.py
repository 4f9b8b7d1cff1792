"""What the tests share: the golden files, outputs of the original implementation with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# `pytest --hypothesis-profile=long` is run by hand
settings.register_profile(
    "suite", max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.register_profile("long", settings.get_profile("suite"), max_examples=10_000)
settings.load_profile("suite")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden(golden_dir: Path) -> dict[str, torch.Tensor]:
    """Inputs and outputs of the original DiT whose weights are `dit_p2_c4.safetensors`."""
    with np.load(golden_dir / "dit_p2_c4.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that two workers end together."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
