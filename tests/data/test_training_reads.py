"""Whole trainings on what the data room offers: latents made beforehand, a new class set, a pinned version."""

import importlib.util
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState
from datasets import ClassLabel, Dataset, Features, Image
from diffusers import AutoencoderKL
from PIL import Image as PILImage

from dit_hf import DiTPipeline
from dit_hf.training.run import run
from dit_hf.training.settings import parse_settings

EXAMPLE = Path(__file__).parents[2] / "examples" / "extract_latents.py"


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def picture(label: int, k: int) -> dict:
    image = np.full((16, 16, 3), 255, np.uint8)
    image[:, label * 4 : label * 4 + 4] = [0, 60 * label, 20 * k]
    return PILImage.fromarray(image)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images of 4 classes in two shards, a VAE, and settings of five steps."""
    folder = tmp_path_factory.mktemp("reads")
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog", "lion", "wolf"])})
    rows = [{"image": picture(k % 4, k // 4), "label": k % 4} for k in range(20)]
    (folder / "data").mkdir()
    for shard in range(2):
        path = folder / "data" / f"train-{shard:05d}-of-00002.parquet"
        Dataset.from_list(rows[shard::2], features=features).to_parquet(path)
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
    ).save_pretrained(folder / "vae")
    settings = {
        "dataset_name": "./data", "vae_name_or_path": "./vae", "resolution": 16, "model": "DiT-S/4",
        "train_batch_size": 6, "model_overrides": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        "max_train_steps": 5,
        "learning_rate": 1e-3, "ema_decay": 0.2, "num_threads": 1, "dataloader_num_workers": 0, "logging_steps": 1,
        "checkpointing_steps": 5, "validation_steps": 5, "validation_inference_steps": 2, "report_to": "none",
    }  # fmt: skip
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings))
    return folder


def train(folder: Path, output_dir: Path, *flags: str) -> list[float]:
    run(parse_settings([str(folder / "tiny.yaml"), "--output_dir", str(output_dir), *flags]))
    return [json.loads(line)["loss"] for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def extract(folder: Path, output_dir: Path, **changes) -> None:
    specification = importlib.util.spec_from_file_location("extract_latents", EXAMPLE)
    example = importlib.util.module_from_spec(specification)
    sys.modules["extract_latents"] = example
    specification.loader.exec_module(example)
    known = {"dataset_name": str(folder / "data"), "vae_name_or_path": str(folder / "vae"), "resolution": 16}
    example.run(example.ExtractSettings(output_dir=str(output_dir), num_workers=1, **(known | changes)))
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_training_on_latents_has_the_losses_of_training_on_images(folder: Path, tmp_path: Path):
    extract(folder, tmp_path / "latents")
    card = (tmp_path / "latents" / "README.md").read_text()
    assert "20 images of 16\npx, and for their mirror images, as float16" in card
    assert str(folder) not in card + (tmp_path / "latents" / "latents.json").read_text()
    images = train(folder, tmp_path / "a")
    latents = train(folder, tmp_path / "b", "--dataset_name", str(tmp_path / "latents"))
    np.testing.assert_allclose(latents, images, rtol=1e-3)  # float16 has 11 bits
    assert latents != images
    extract(folder, tmp_path / "int8", dtype="int8")
    np.testing.assert_allclose(
        train(folder, tmp_path / "c", "--dataset_name", str(tmp_path / "int8")), images, rtol=2e-2
    )

    with pytest.raises(ValueError, match="latents are of 16 px, not 32"):
        train(folder, tmp_path / "d", "--dataset_name", str(tmp_path / "latents"), "--resolution", "32")
    torch.manual_seed(1)
    AutoencoderKL.from_config(AutoencoderKL.load_config(folder / "vae")).save_pretrained(tmp_path / "other vae")
    flags = ("--dataset_name", str(tmp_path / "latents"), "--vae_name_or_path", str(tmp_path / "other vae"))
    with pytest.raises(ValueError, match="made by the VAE local .* not by this one"):
        train(folder, tmp_path / "d", *flags)
    assert not (tmp_path / "d" / "checkpoints").exists()


def test_new_class_set_reaches_the_pipeline(folder: Path, tmp_path: Path):
    (tmp_path / "map.json").write_text(json.dumps({"cat": "felid", "lion": "felid", "wolf": "canid"}))
    train(folder, tmp_path / "out", "--label_map_file", str(tmp_path / "map.json"))
    pipeline = DiTPipeline.from_pretrained(tmp_path / "out" / "pipeline")
    assert pipeline.transformer.config.num_classes == 2
    assert pipeline.get_label_ids(["canid", "felid"]) == [1, 0]


def status(output_dir: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_version_of_the_data_is_recorded_and_a_change_is_refused(folder: Path, tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    for path in (folder / "data").iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    train(folder, tmp_path / "out", "--dataset_name", str(data), "--max_train_steps", "2")
    recorded = yaml.safe_load((tmp_path / "out" / "settings.yaml").read_text())["dataset_revision"]
    assert recorded.startswith("files-")
    train(folder, tmp_path / "out", "--dataset_name", str(data), "--max_train_steps", "3")  # goes on
    (data / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(ValueError, match=f"have changed since .*: dataset_revision was {recorded} and is files-"):
        train(folder, tmp_path / "out", "--dataset_name", str(data))


@pytest.mark.slow
def test_run_goes_on_with_changed_photographs_if_that_is_allowed_but_not_with_other_classes(
    folder: Path, tmp_path: Path, caplog
):
    photos, out = tmp_path / "photos", tmp_path / "out"
    for label in range(2):
        (photos / "ab"[label]).mkdir(parents=True)
        for k in range(7):
            picture(label, k % 5).save(photos / "ab"[label] / f"{k}.png")
    flags = ("--dataset_name", str(photos), "--random_flip", "false")
    with caplog.at_level(logging.INFO, "dit_hf"):
        train(folder, out, *flags, "--max_train_steps", "3")  # 18 of 14 images: in epoch 1
    assert f"{photos}: 14 images of 2 classes: a 7, b 7" in caplog.text
    assert status(out) == [0, 0, 1]
    picture(1, 4).save(photos / "b" / "0.png")
    picture(0, 4).save(photos / "a" / "new.png")
    with pytest.raises(
        ValueError, match="Put the files back, go on with the new ones from the next epoch by --allow"
    ) as error:
        train(folder, out, *flags, "--max_train_steps", "4")
    assert f"--init_from {out}/pipeline --output_dir NEW" in str(error.value)
    train(folder, out, *flags, "--max_train_steps", "4", "--allow_config_change")
    assert status(out) == [0, 0, 1, 2]
    train(folder, out, *flags, "--max_train_steps", "5")  # the new files are those of the run now
    (photos / "a").rename(photos / "c")
    for allowed in ((), ("--allow_config_change",)):
        with pytest.raises(ValueError, match="was trained on other classes than .* has now .*--init_from"):
            train(folder, out, *flags, "--max_train_steps", "6", *allowed)
    run(
        parse_settings(
            [str(folder / "tiny.yaml"), "--output_dir", str(tmp_path / "new"), "--init_from", f"{out}/pipeline", *flags]
        )
    )
