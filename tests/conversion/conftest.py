"""What the tests of conversion share: the golden weights as a model, and what makes a tiny one."""

from pathlib import Path

import pytest
import torch

from dit_hf import DiTConfig, DiTModel
from dit_hf.conversion import from_original

HEADS = {"num_attention_heads": 4}  # of the golden model: no shape tells it


@pytest.fixture
def golden_file(golden_dir: Path) -> Path:
    return golden_dir / "dit_p2_c4.safetensors"


@pytest.fixture
def golden_model(golden_file: Path) -> DiTModel:
    return from_original(golden_file, **HEADS)


@pytest.fixture
def make_model():
    """A model with weights that are nowhere zero."""

    def make(**config) -> DiTModel:
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "sample_size": 4, "num_classes": 3}
        model = DiTModel(DiTConfig(**{**sizes, **config})).eval()
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        return model

    return make
