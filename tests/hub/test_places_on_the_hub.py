"""A name such as `user/dit`: a folder here, or a repository on the Hub, for everything that takes one."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api

from dit_hf import DiTModel, DiTPipeline
from dit_hf.conversion import convert, from_diffusers
from dit_hf.data.sources import open_images
from dit_hf.demo.space import push_space
from dit_hf.evaluation.features.extractors import DINOv2Extractor
from dit_hf.hub.push import push_folder
from dit_hf.training.origin import load_origin, read_vae_config
from dit_hf.training.techniques.encoders import load_encoder

WARNING = "is taken from the Hub: the folder user here does not hold it"
ENTRY_POINTS: dict[str, Callable] = {  # each takes a name, and is named by what it looks for
    "a pipeline": DiTPipeline.from_pretrained,
    "init_from": load_origin,
    "convert": lambda name: convert(DiTPipeline, name, "converted"),
    "a model": lambda name: DiTModel.from_pretrained(name, subfolder="transformer"),
    "an autoencoder": lambda name: read_vae_config(name, None),
    "an autoencoder of a checkpoint": lambda name: DiTPipeline.from_pretrained("model.pt", vae=name),
    "a model of diffusers": from_diffusers,
    "a model of a Space": lambda name: push_space(name, "user/space"),
    "an adapter": lambda name: DiTPipeline.from_pretrained("saved").load_lora_weights(name),
    "an encoder": load_encoder,
    "an extractor": DINOv2Extractor,
    "a data set": open_images,
}


@pytest.fixture
def here(tmp_path: Path, saved: Path, monkeypatch) -> Path:
    """A folder that holds a pipeline, a file of weights, and a folder `user` that is called like an account."""
    (tmp_path / "user" / "other").mkdir(parents=True)
    (tmp_path / "model.pt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("entry_point", ENTRY_POINTS.values(), ids=ENTRY_POINTS)
def test_name_without_folder_and_repository_is_told_with_what_lies_here(hub, here: Path, entry_point, monkeypatch):
    kind = "data set" if entry_point is open_images else "model"
    told = f"there is no file or folder user/oter: {here}/user holds other"
    with pytest.raises((ValueError, OSError), match=f"{told}; the Hub has no {kind} of this name either"):
        entry_point("user/oter")
    with pytest.raises((ValueError, OSError), match="there is no file or folder usr/dit: .* holds .*user"):
        entry_point("usr/dit")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises((ValueError, OSError), match=f"{told}; the cache has no {kind} .* as HF_HUB_OFFLINE is set"):
        entry_point("user/oter")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setattr(hf_api.api, "endpoint", "http://127.0.0.1:9")
    with pytest.raises((ValueError, OSError), match=f"{told}; the Hub, .* cannot be reached .ConnectError.") as error:
        entry_point("user/oter")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a pipeline", "init_from", "convert", "a model"])
def test_repository_beside_a_folder_like_its_account_is_taken_and_told(hub, here: Path, name: str, monkeypatch):
    push_folder(here / "saved", "user/dit")
    with pytest.warns(UserWarning, match=f"user/dit {WARNING}"):
        ENTRY_POINTS[name]("user/dit")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # now it is in the cache
    (here / "converted").exists() and (here / "converted").rename("converted before")
    with pytest.warns(UserWarning, match=f"user/dit {WARNING}"):
        ENTRY_POINTS[name]("user/dit")


def test_data_set_beside_a_folder_like_its_account_is_taken_and_told(pushed_images, here: Path):
    with pytest.warns(UserWarning, match=f"user/images {WARNING}"):
        assert open_images("user/images").classes.names == ["a", "b"]


def test_folder_is_taken_before_a_repository_of_its_name(hub, here: Path):
    push_folder(here / "saved", "user/dit")
    (here / "saved").rename(here / "user" / "dit")
    asked = len(hub.log)
    for name in ("a pipeline", "init_from", "a model"):
        ENTRY_POINTS[name]("user/dit")
    assert len(hub.log) == asked
