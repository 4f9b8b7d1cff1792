"""A data set, a VAE and settings small enough for a training of seconds."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import ClassLabel, Dataset, Features, Image
from diffusers import AutoencoderKL
from PIL import Image as PILImage


def striped(label: int, k: int) -> bytes:
    buffer = io.BytesIO()
    image = np.full((16, 16, 3), 255, np.uint8)
    image[:, label * 4 : label * 4 + 4] = [0, 60 * label, 20 * k]
    PILImage.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Accelerate keeps its settings for as long as a process lives."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def write_data(folder: Path, bad_rows: Sequence[int] = ()) -> None:
    """20 images of 4 classes in two shards; in the place of some of them, what is no image."""
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c", "d"])})
    images = [b"no image" if k in bad_rows else striped(k % 4, k // 4) for k in range(20)]
    rows = [{"image": {"bytes": image, "path": None}, "label": k % 4} for k, image in enumerate(images)]
    folder.mkdir()
    for shard in range(2):
        path = folder / f"train-{shard:05d}-of-00002.parquet"
        Dataset.from_list(rows[shard::2], features=features).to_parquet(path)


@pytest.fixture(scope="session")
def three_bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of `tiny`, three of whose images cannot be decoded."""
    folder = tmp_path_factory.mktemp("three_bad") / "data"
    write_data(folder, bad_rows=[2, 9, 15])
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data` (20 images of 4 classes, two shards), `vae` and `tiny.yaml`."""
    folder = tmp_path_factory.mktemp("tiny")
    write_data(folder / "data")
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        mid_block_add_attention=False,
    ).save_pretrained(folder / "vae")
    (folder / "tiny.yaml").write_text(
        """
dataset_name: ./data
vae_name_or_path: ./vae
resolution: 16
model: DiT-S/4
model_overrides: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}
train_batch_size: 6
max_train_steps: 8
learning_rate: 1.0e-3
ema_decay: 0.4
num_jitters: 2
num_threads: 1
dataloader_num_workers: 0
max_grad_norm: 1.0
logging_steps: 1
checkpointing_steps: 4
validation_steps: 8
validation_inference_steps: 2
report_to: none
"""
    )
    return folder
