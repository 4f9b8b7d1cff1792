"""An adapter on the Hub: pushed as its few files, and loaded from there by id."""

import copy
import re
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from fresh_process import SOURCE, run_script
from huggingface_hub import ModelCard, constants
from PIL import Image
from safetensors.torch import load_file
from warm_process import run_warm

from dit_hf import DiTPipeline
from dit_hf.finetuning import add_lora, save_lora
from dit_hf.hub.push import push_folder
from dit_hf.training.run import run
from dit_hf.training.settings import parse_settings


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


def test_an_adapters_card_has_what_a_reader_needs(pipeline, tmp_path):
    model = copy.deepcopy(pipeline.transformer)
    add_lora(model, 2, alpha=4)
    names = {0: "koi", 1: "carp", 2: "Smith, John", 3: "Smith, Jane"}
    save_lora(model, tmp_path / "adapter", names, "user/base", license="apache-2.0")
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    data = card.data.to_dict()
    assert {
        "license": "apache-2.0",
        "base_model": "user/base",
        "base_model_relation": "adapter",
    }.items() <= data.items()
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    count = sum(tensor.numel() for tensor in weights.values())
    for row in ("rank | 2", "alpha | 4", "classes | 4", f"parameters of the adapter | {count:,}"):
        assert f"| {row} |" in card.text
    assert "[user/base](https://huggingface.co/user/base)" in card.text
    assert 'class_labels=["' in card.text
    assert '"Smith"' not in card.text  # two classes have that name
    with pytest.raises(ValueError, match="did you mean 'apache-2.0'"):
        save_lora(model, tmp_path / "wrong", names, "user/base", license="Apache 2.0")


def test_an_adapter_of_a_local_model_says_so(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline.save_pretrained("my/dit")  # which is written as an id would be
    model = copy.deepcopy(pipeline.transformer)
    add_lora(model, 2)
    save_lora(model, tmp_path / "adapter", None, "my/dit")
    card = ModelCard.load(tmp_path / "adapter" / "README.md")
    assert card.data.get("base_model") is None
    assert "my/dit" not in card.content
    assert "trained on a local model that is not on the Hub: put the path of that model where" in card.text
    assert "The author has not stated a licence" in card.text
    assert "class_labels=[2]" in card.text  # the classes have no names


@pytest.mark.slow
def test_snippet_of_an_adapters_card_runs_as_printed(hub, saved, adapter, hub_environment, tmp_path):
    push_folder(saved, "user/base")
    push_folder(adapter, "user/my-lora")
    (snippet,) = re.findall(r"```python\n(.*?)```", ModelCard.load("user/my-lora").text, re.DOTALL)
    (tmp_path / "snippet.py").write_text(snippet)
    result = run_script(tmp_path / "snippet.py", cwd=tmp_path, environment=hub_environment)
    assert result.returncode == 0, result.stderr[-3000:]
    with Image.open(tmp_path / "sample.png") as image:
        assert image.size == (16, 16)


def test_a_folder_of_neither_is_not_pushed(hub, adapter: Path):
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no model_index.json: .* or an adapter's"):
        push_folder(adapter, "user/my-lora")


def test_a_checkpoint_beside_an_adapter_is_not_pushed(hub, adapter: Path):
    torch.save({}, adapter / "optimizer.pt")
    with pytest.raises(ValueError, match="optimizer.pt is not pushed"):
        push_folder(adapter, "user/my-lora")


ORIGIN = """
from dit_hf.training.origin import load_origin

origin = load_origin("user/dit-tiny")
trained = origin.trained
print(origin.id2label[1], trained["beta_schedule"], origin.vae["scaling_factor"], origin.model.config.num_classes)
"""


@pytest.mark.slow
def test_a_fine_tuning_starts_from_an_id_on_the_hub(hub, saved: Path, hub_environment: dict[str, str]):
    push_folder(saved, "user/dit-tiny")
    result = run_warm(ORIGIN, environment=hub_environment | {"PYTHONPATH": SOURCE})
    assert result.stdout.split() == ["goldfish", "linear", "0.18215", "4"], result.stderr


@pytest.mark.slow
def test_a_training_pushes_its_adapter_at_checkpoints_and_at_the_end(hub, pipeline: DiTPipeline, tmp_path: Path):
    for parameter in pipeline.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # a final layer of zeros would give no gradient
    pipeline.save_pretrained(saved := tmp_path / "saved")
    for name in ("koi", "carp"):
        (tmp_path / "fish" / name).mkdir(parents=True)
        for shade in (40, 200):
            Image.new("RGB", (16, 16), (shade, 0, 0)).save(tmp_path / "fish" / name / f"{shade}.png")
    AcceleratorState._reset_state(reset_partial_state=True)
    settings = {
        "init_from": saved, "dataset_name": tmp_path / "fish", "output_dir": tmp_path / "out", "lora_rank": 2,
        "train_batch_size": 2, "max_train_steps": 3, "checkpointing_steps": 2, "ema_decay": 0.0, "report_to": "none",
        "validation_inference_steps": 2, "dataloader_num_workers": 0, "num_threads": 1, "push_to_hub": True,
        "hub_model_id": "user/my-lora",
    }  # fmt: skip
    run(parse_settings([text for name, value in settings.items() for text in (f"--{name}", str(value))]))
    commit, messages = hub.repository("user/my-lora").refs["main"], []
    while commit is not None:
        messages.append(commit.message)
        commit = commit.parent
    assert messages[:2] == ["End of training", "Step 2"]
    assert "model_index.json" not in hub.repository("user/my-lora").files()
    adapted = DiTPipeline.from_pretrained(saved)
    adapted.load_lora_weights("user/my-lora", cache_dir=constants.HF_HUB_CACHE)
    assert adapted.config.id2label == {0: "carp", 1: "koi"}
