"""A local Hub that the clients in this process are turned to, and a pipeline small enough to push."""

import importlib.util
import io
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from diffusers import AutoencoderKL, DDPMScheduler
from huggingface_hub import close_session, constants, hf_api
from PIL import Image as PILImage

from dit_hf import DiTConfig, DiTModel, DiTPipeline

TESTS = Path(__file__).parents[1]


def load_local_hub():
    """The module `local_hub`, which lies beside the tests and not on the path."""
    spec = importlib.util.spec_from_file_location("local_hub", TESTS / "local_hub.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["local_hub"] = module
    spec.loader.exec_module(module)
    return module


LocalHub = load_local_hub().LocalHub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["LocalHub"]:
    """A fresh Hub whose user "user" is logged in here, with an empty cache; 0.01 s between tries.

    It answers when the machine lets it, so the client waits as long as for a hang. The session of the client ends with
    the Hub: its connections, and a time-out that a test or a retry has set, would stay for the next one.
    """
    with LocalHub() as local:
        monkeypatch.setenv("HF_TOKEN", local.add_user("user"))
        monkeypatch.setattr(constants, "ENDPOINT", local.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", local.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", local.STALL_SECONDS)
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", local.STALL_SECONDS)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(hf_api.api, "endpoint", local.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # its client, made for an older Hub
        sleep = time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
        close_session()
        yield local
        close_session()


@pytest.fixture(scope="session")
def pipeline() -> DiTPipeline:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        mid_block_add_attention=False,
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "sample_size": 8, "num_classes": 4}
    names = {0: "tench, Tinca tinca", 1: "goldfish", 2: "crane", 3: "crane"}  # ImageNet has two
    scheduler = DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace", clip_sample=False)
    made = DiTPipeline(DiTModel(DiTConfig(**sizes)), vae, scheduler, id2label=names)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def saved(pipeline: DiTPipeline, tmp_path: Path) -> Path:
    pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def hub_environment(hub: "LocalHub", tmp_path: Path) -> dict[str, str]:
    """The environment of a process that knows no Hub but this one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "HF_"))}
    ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    ours |= {name: str(hub.STALL_SECONDS) for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")}
    return environment | ours | {"HF_TOKEN": os.environ["HF_TOKEN"], "OMP_NUM_THREADS": "1"}


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pushed_images(hub: "LocalHub", monkeypatch: pytest.MonkeyPatch):
    """Twelve images of two classes in two shards, pushed by datasets."""
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.url)
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    rows = [{"image": {"bytes": png(20 * k), "path": None}, "label": k % 2} for k in range(12)]
    images = Dataset.from_list(rows, features=features)
    DatasetDict(train=images).push_to_hub("user/images", num_shards={"train": 2}, private=True)
    return hub.repository("user/images", "datasets")
