"""`dit-hf extract`: settings and errors of an extraction; what it writes is tested in `data/test_extract.py`."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from fresh_process import dit_hf_command
from PIL import Image

from dit_hf.data.sources import open_images
from dit_hf.extraction import ExtractSettings, main, parse_settings


@pytest.fixture
def photos(tmp_path: Path, monkeypatch) -> Path:
    """Three images of two classes and a VAE that shrinks them by 2."""
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (90, 120, 30)).save(tmp_path / "photos" / name)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4), norm_num_groups=4, latent_channels=2,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "training" / "pipeline").mkdir(parents=True)
    (tmp_path / "training" / "pipeline" / "model_index.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FLAGS = ["--vae_name_or_path", "vae", "--resolution", "16", "--num_workers", "1"]


@pytest.mark.slow
def test_command_writes_latents_that_a_training_reads(photos: Path):
    done = dit_hf_command("extract", "photos", *FLAGS, "--output_dir", "out")
    assert done.returncode == 0, done.stderr[-2000:]
    source = open_images("out")
    assert source.classes.names == ["cat", "dog"]
    assert source.latents.shape == (4, 8, 8)
    assert '"num_images": 3' in done.stdout
    assert 'load_dataset("data set", split="train"' in (photos / "out" / "README.md").read_text()
    done = dit_hf_command("extract", "photos", "--dtyp", "int8")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1, "dit-hf: the command line sets '--dtyp', which is not a setting: --dtype is",
    )  # fmt: skip


MISTAKES = {
    "a VAE that is not there": (["photos", "--vae_name_or_path", "va"], "no file or folder va: .* holds .*vae"),
    "the folder of a training": (["photos", "--vae_name_or_path", "training"], "pass its pipeline, training/pipeline"),
    "images that are not there": (["photo", *FLAGS], "there is no file or folder photo: .* holds .*photos"),
    "a resolution that does not fit": (
        ["photos", *FLAGS[:2], "--resolution", "15"], "--resolution 15 is no multiple of 2.*: take 14 or 16",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_each_mistake_is_one_line(arguments: list[str], message: str, photos: Path):
    with pytest.raises(SystemExit, match=message) as caught:
        main(["--dataset_name", *arguments, "--output_dir", "out"])
    assert "\n" not in str(caught.value)


def test_settings_are_checked():
    assert parse_settings(["--dataset_name", "a", "--mirror", "false"]) == ExtractSettings(
        dataset_name="a", mirror=False
    )
    for arguments, message in (
        ([], "dataset_name is missing"),
        (["--dataset_name", "a", "--dtype", "int4"], "dtype='int4' is unknown: choose one of float16, int8"),
        (["--dataset_name", "a", "--resolution", "x"], "argument --resolution: invalid int value: 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_settings(arguments)
