"""A DiT of four named classes with weights that are not zero anywhere, alone and as a pipeline."""

from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler

from dit_hf import DiTConfig, DiTModel, DiTPipeline

NAMES = {0: "tench, Tinca tinca", 1: "crane", 2: "goldfish", 3: "crane"}


def make_model(**fields: object) -> DiTModel:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "sample_size": 8, "num_classes": 4}
    model = DiTModel(DiTConfig(**{**small, **fields}))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def build() -> Callable[..., DiTModel]:
    return make_model


@pytest.fixture
def pipeline() -> DiTPipeline:
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    pipe = DiTPipeline(make_model(), None, scheduler, id2label=NAMES)
    pipe.set_progress_bar_config(disable=True)
    return pipe
