"""What the tests share: the golden files, outputs of the original implementation with random weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

from dit_hf import DiTConfig, DiTModel

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


def make_config(**fields) -> DiTConfig:
    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "sample_size": 8, "num_classes": 10}
    return DiTConfig(**{**small, **fields})


def make_model(seed: int = 0, **fields) -> DiTModel:
    torch.manual_seed(seed)
    model = DiTModel(make_config(**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def make_inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4, 8, 8, generator=generator)
    return x, torch.tensor([999, 500, 3, 0][:batch]), torch.tensor([7, 10, 2, 0][:batch])


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., DiTConfig]:
    """A function that makes a small configuration, of the fields given."""
    return make_config


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., DiTModel]:
    """A function that makes a small model in evaluation mode, in which no weight is zero, so that every one matters."""
    return make_model


@pytest.fixture(scope="session")
def tiny_inputs() -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A function that makes latents, timesteps and labels for such a model."""
    return make_inputs


# Files that take minutes. A worker runs a file whole, so that one of them begun last would keep the other worker idle.
LONGEST_FILES = ("test_examples.py", "test_kill.py", "test_notebooks.py", "test_processes.py", "test_signals.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow tests first, and of them the longest files first, so that the workers end together."""
    items.sort(key=lambda item: (item.get_closest_marker("slow") is None, item.path.name not in LONGEST_FILES))
