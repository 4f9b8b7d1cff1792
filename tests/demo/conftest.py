"""A small pipeline with names, and its page on a server of its own."""

from collections.abc import Iterator

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from gradio_client import Client
from PIL import Image

from dit_hf import DiTConfig, DiTModel, DiTPipeline
from dit_hf.demo.limits import Limits
from dit_hf.demo.page import build_page
from dit_hf.demo.server import serve

NAMES = {0: "cat", 1: "dog", 2: "crane, bird", 3: "crane, machine"}
LIMITS = Limits(max_steps=60, max_images=4, max_waiting=24)


MOST_PIXELS = Image.MAX_IMAGE_PIXELS


@pytest.fixture(autouse=True)
def bound_of_pillow() -> Iterator[None]:
    """Give Pillow's bound back, which `serve` lowers, for the tests of other folders."""
    yield
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS


def make_pipeline() -> DiTPipeline:
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "sample_size": 8}
    model = DiTModel(DiTConfig(num_classes=4, learn_sigma=False, **small)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    scheduler = DDPMScheduler(clip_sample=False)
    return DiTPipeline(model, vae, scheduler, id2label=NAMES)


@pytest.fixture(scope="session")
def pipeline() -> DiTPipeline:
    pipeline = make_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def address(pipeline: DiTPipeline) -> Iterator[str]:
    page = build_page(pipeline, "user/tiny", LIMITS)
    _, url, _ = serve(page, LIMITS, prevent_thread_lock=True, quiet=True)
    yield url
    page.close()


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    client = Client(address, verbose=False)
    yield client
    client.close()
