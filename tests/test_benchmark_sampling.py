"""The benchmarks of sampling: what is raced draws the same images, and each row has the cells that its table names."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dit_hf import DiTConfig, DiTModel

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def sampling(monkeypatch) -> ModuleType:
    """With a tiny model, and without the processes that look for the peak of memory."""
    module = load("sampling")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "sample_size": 8}

    def make_model(name: str) -> DiTModel:
        torch.manual_seed(0)
        model = DiTModel(DiTConfig(**sizes, timestep_freq_shift=1.0, mlp_norm_eps=1e-6)).eval()
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        return model

    monkeypatch.setattr(module, "make_model", make_model)
    monkeypatch.setattr(module, "peak_memory", lambda *arguments: "1")
    return module


@pytest.mark.parametrize("batch", [1, 8])
def test_row_has_a_ratio_for_each_rival(sampling, capsys, batch):
    sampling.same_mathematics("tiny", batch, rounds=2, compiled=False)
    [row] = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["tiny", str(batch)]
    assert cells[4:6] == ["-", "-"]  # not compiled
    assert len(cells) == 9
    assert all(float(cell.split()[0]) > 0 for cell in (*cells[2:4], cells[6]))


@pytest.mark.parametrize("rival", ["plain_loop", "call"])
def test_rivals_that_draw_something_else_are_not_raced(sampling, monkeypatch, rival):
    honest, calls = getattr(sampling, rival), []

    def other(*arguments, **settings):
        calls.append(1)
        return honest(*arguments, **settings) + (0.01 if len(calls) == 1 else 0)

    monkeypatch.setattr(sampling, rival, other)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        sampling.same_mathematics("tiny", 1, rounds=1, compiled=False)


def test_caches_are_told_with_their_counts(monkeypatch, capsys):
    caches = load("caches")
    monkeypatch.setattr(caches, "STEPS", 6)
    monkeypatch.setattr(sys, "argv", ["caches.py", "--rounds", "1"])
    monkeypatch.setattr(caches, "LABELS", ["tulip"])
    caches.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ") and "Config" in line]
    evaluations = {row.split("|")[1].strip(): float(row.split("|")[2]) for row in rows}
    assert evaluations["PyramidAttentionBroadcastConfig(2)"] == 6  # it leaves attention out, not the MLP
    assert evaluations["TaylorSeerCacheConfig(cache_interval=5)"] < 6
    assert len(rows) == 11


def test_inversion_comes_nearer_to_the_image_with_more_steps(monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", ["inversion.py", "--steps", "5", "25"])
    load("inversion").main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    few, many = (float(row[1].removesuffix(" dB")) for row in rows)
    assert [row[0] for row in rows] == ["5", "25"]
    assert many > few + 3
    assert all(float(row[2]) > 10 for row in rows)  # of a model that predicts x_0
