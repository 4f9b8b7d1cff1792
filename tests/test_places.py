"""What a name of a model means, and what is said where it can only be a mistake."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dit_hf import DiTModel, DiTPipeline
from dit_hf.analysis.tables import read_config, read_vae_config
from dit_hf.cli import app
from dit_hf.conversion import convert
from dit_hf.places import check_model_source, check_pipeline_source, is_path
from dit_hf.training.origin import check_vae_name, load_origin

NAMES = {  # name -> whether it can only be a path, where a folder "out" is there and nothing else
    "facebook/DiT-XL-2-256": False, "user/my.model_1": False, "out/photos": False, "out": True, "photos": True,
    "./photos": True, "~/photos": True, "/photos": True, "a/b/c": True, "user/my model": True, "user/model.pt": True,
    "user/a--b": True, "user/a..b": True, "model.safetensors": True, "": True, "user/": True,
}  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_paths_are_told_from_repositories(name: str, expected: bool, tmp_path: Path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_path(name) == expected
    assert not is_path("mnist", may_be_one_word=True)
    assert is_path("my photos", may_be_one_word=True)


@pytest.fixture
def places(tmp_path: Path, monkeypatch) -> Path:
    """One folder of each kind that is taken for a pipeline by mistake."""
    for name in (
        "training/pipeline/model_index.json", "training/pipeline/vae/config.json", "training/settings.yaml",
        "training/pipeline/transformer/model.safetensors", "training/status.json",
        "training/checkpoints/step-00000010/manifest.json", "begun/status.json", "begun/settings.yaml",
        "adapter/adapter_config.json", "many/one/model_index.json", "many/two/model_index.json", "other/notes.txt",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


MISTAKES = {
    "trainin": "there is no file or folder trainin: .* holds training",
    "training/pipelin": "there is no file or folder training/pipelin: .*training holds pipeline",
    "./nowhere/at/all": "there is no file or folder ./nowhere/at/all",
    "training": "is the folder of a training: pass its pipeline, training/pipeline",
    "begun": "is the folder of a training that has saved no pipeline yet: see `dit-hf status begun`",
    "training/checkpoints": "pass its pipeline, training/pipeline",
    "training/checkpoints/step-00000010": "pass its pipeline, training/pipeline",
    "training/pipeline/transformer": "is a part of a pipeline: pass training/pipeline",
    "training/pipeline/model_index.json": "is a file of a pipeline: pass its folder, training/pipeline",
    "training/pipeline/transformer/model.safetensors": "is a file of a pipeline: pass its folder, training/pipeline",
    "training/settings.yaml": "is no checkpoint: pass the folder of a pipeline",
    "adapter": "is an adapter: pass the model that it was trained for, then call load_lora_weights",
    "many": "pass many/one or many/two",
    "other": "other has no model_index.json, but notes.txt: pass a folder that save_pretrained wrote",
    "empty": "empty has no model_index.json, as it is empty",
}
ENTRY_POINTS = {
    "DiTPipeline": DiTPipeline.from_pretrained,
    "train --init_from": load_origin,
    "convert": lambda name: convert(DiTPipeline, name, "converted"),
    "the check": check_pipeline_source,
}


@pytest.mark.parametrize("entry_point", ENTRY_POINTS.values(), ids=ENTRY_POINTS)
def test_each_mistake_is_answered_with_what_to_pass_instead(entry_point, places: Path):
    for name, message in MISTAKES.items():
        with pytest.raises(ValueError, match=message) as caught:
            entry_point(name)
        assert "Repo id" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_models_and_autoencoders_are_asked_for_by_their_folder(places: Path):
    for check in (check_model_source, DiTModel.from_pretrained, check_vae_name):
        for name in ("trainin", "training", "empty", "other", "training/pipeline/transformer/model.safetensors"):
            with pytest.raises(ValueError, match=re.escape(name)):
                check(name)
    for read in (read_config, read_vae_config):
        with pytest.raises(ValueError, match="pass its pipeline, training/pipeline"):
            read("training")
        with pytest.raises(ValueError, match="there is no file or folder DiT-XL/3"):
            read("DiT-XL/3")
    check_vae_name("training/pipeline")  # a pipeline brings one
    with pytest.raises(ValueError, match="many has no config.json|holds some: pass many/one or many/two"):
        check_model_source("many")


COMMANDS = {
    "generate": ("generate", "{}", "--class-labels", "1"),
    "evaluate": ("evaluate", "--model", "{}", "--reference", "reference.npz", "--num-images", "2"),
    "convert": ("convert", "{}", "converted"),
    "flops": ("flops", "{}"),
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_commands_answer_a_mistyped_path_and_the_folder_of_a_training(words: tuple[str, ...], places: Path):
    (places / "reference.npz").touch()
    for name in ("training", "trainin"):
        result = CliRunner().invoke(app, [word.format(name) for word in words])
        assert isinstance(result.exception, ValueError)
        assert re.search(MISTAKES[name], str(result.exception))


def test_commands_that_need_an_autoencoder_say_how_a_checkpoint_gets_one(places: Path):
    (places / "model.pt").touch()
    result = CliRunner().invoke(app, ["generate", "model.pt", "--class-labels", "1"])
    assert "run `dit-hf convert model.pt FOLDER --vae stabilityai/sd-vae-ft-ema`" in str(result.exception)


def test_plot_and_study_name_a_file_that_is_missing(places: Path):
    for words in (["plot", "result.csv"], ["study", "out", "--recipe", "result.csv"]):
        result = CliRunner().invoke(app, words)
        assert "there is no file or folder result.csv" in str(result.exception)
