"""The benchmark of storages: bytes as counted by hand, and a row of cells for each storage."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from dit_hf import DiTPipeline

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def quantization(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("torchao")
    monkeypatch.syspath_prepend(FOLDER)  # where it finds its neighbour
    specification = importlib.util.spec_from_file_location("benchmark_quantization", FOLDER / "quantization.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    return module


def test_bytes_of_a_storage_are_those_of_its_numbers(quantization, tiny_model):
    model = tiny_model()
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    assert quantization.stored_mebibytes(model) == 4 * sum(sizes.values()) / 2**20
    quantization.STORAGES["int8 weights, torchao"](model)
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    rows = sum(model.get_parameter(name).shape[0] for name in linears)  # each has a scale and a zero point
    plain = 4 * sum(size for name, size in sizes.items() if name not in linears)
    expected = plain + sum(sizes[name] for name in linears)
    assert expected < quantization.stored_mebibytes(model) * 2**20 <= expected + 16 * rows


def test_table_has_a_row_for_each_storage(quantization, tiny_model, monkeypatch, capsys):
    def load(storage: str) -> DiTPipeline:
        model = tiny_model(in_channels=3, num_classes=100, learn_sigma=False)
        quantization.STORAGES[storage](model)
        scheduler = DPMSolverMultistepScheduler.from_config(DDIMScheduler(clip_sample=False).config)
        pipe = DiTPipeline(model, None, scheduler)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    monkeypatch.setattr(quantization, "load", load)
    monkeypatch.setattr(quantization, "features", lambda images: images.reshape(len(images), -1)[:, :8].astype(float))
    monkeypatch.setattr(sys, "argv", ["quantization.py", "--num_images", "4", "--rounds", "1"])
    quantization.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows] == ["weights", *quantization.STORAGES]
    assert {len(row) for row in rows} == {5}
    assert rows[1][3] == "0.000"
