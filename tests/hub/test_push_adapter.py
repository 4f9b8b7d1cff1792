"""An adapter on the Hub: pushed as its few files, and loaded from there by id."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants

import dit_hf
from dit_hf import DiTPipeline
from dit_hf.finetuning import add_lora, save_lora
from dit_hf.hub.push import push_folder


@pytest.fixture
def adapter(pipeline: DiTPipeline, tmp_path: Path) -> Path:
    model = copy.deepcopy(pipeline.transformer)
    add_lora(model, 2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    save_lora(model, tmp_path / "adapter", {0: "koi", 1: "carp", 2: "eel", 3: "ray"}, "user/base")
    return tmp_path / "adapter"


def test_a_pushed_adapter_loads_by_its_id(hub, pipeline, adapter: Path):
    push_folder(adapter, "user/my-lora")
    names = {"adapter_config.json", "adapter_model.safetensors", "classes.json", "README.md", ".gitattributes"}
    files = hub.repository("user/my-lora").files()
    assert set(files) == names
    loaded, local = copy.deepcopy(pipeline), copy.deepcopy(pipeline)
    loaded.load_lora_weights("user/my-lora", cache_dir=constants.HF_HUB_CACHE)
    local.load_lora_weights(adapter)
    assert loaded.labels["koi"] == 0
    torch.testing.assert_close(loaded.transformer.state_dict(), local.transformer.state_dict(), rtol=0, atol=0)


def test_an_adapters_card_names_base_and_repository(hub, adapter: Path):
    push_folder(adapter, "user/my-lora")
    card = ModelCard.load("user/my-lora")
    assert card.data.base_model == "user/base"
    assert 'from_pretrained("user/base")' in card.text
    assert 'load_lora_weights("user/my-lora")' in card.text


def test_a_folder_of_neither_is_not_pushed(hub, adapter: Path):
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no model_index.json: .* or an adapter's"):
        push_folder(adapter, "user/my-lora")


def test_a_checkpoint_beside_an_adapter_is_not_pushed(hub, adapter: Path):
    torch.save({}, adapter / "optimizer.pt")
    with pytest.raises(ValueError, match="optimizer.pt is not pushed"):
        push_folder(adapter, "user/my-lora")


ORIGIN = """
from dit_hf.training.start import load_origin

origin = load_origin("user/dit-tiny")
trained = origin.trained
print(origin.id2label[1], trained["beta_schedule"], trained["scaling_factor"], origin.model.config.num_classes)
"""


@pytest.mark.slow
def test_a_fine_tuning_starts_from_an_id_on_the_hub(hub, saved: Path, hub_environment: dict[str, str]):
    push_folder(saved, "user/dit-tiny")
    source = Path(dit_hf.__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", ORIGIN],
        env=hub_environment | {"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.stdout.split() == ["goldfish", "linear", "0.18215", "4"], result.stderr
