"""The benchmark of training: its trainers do the same work, so that their times can be compared."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dit_hf import DiTConfig

FILE = Path(__file__).parents[1] / "benchmarks" / "training.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    specification = importlib.util.spec_from_file_location("benchmark_training", FILE)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def test_trainers_take_the_same_steps(benchmark: ModuleType, monkeypatch):
    monkeypatch.setattr(benchmark, "LEARNING_RATE", 1e-2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "sample_size": 8, "num_classes": 4}
    config = DiTConfig(**sizes, **benchmark.AS_DIFFUSERS)
    weights, batches = benchmark.make_weights(config), benchmark.make_batches(config, 4, 3, CPU)
    answers = {}
    for name in ("plain", "dit-hf", "diffusers"):
        trainer = benchmark.TRAINERS[name](config, weights, CPU)
        benchmark.check_same_outputs({"plain": benchmark.plain(config, weights, CPU), name: trainer}, batches[0])
        for batch in batches:
            trainer.step(batch)
        with torch.no_grad():
            drawn = batches[0].draws
            arguments = (batches[0].x_0, drawn.timestep, batches[0].class_labels, drawn.drop_labels)
            answers[name] = trainer.predict(*arguments)
    torch.testing.assert_close(
        answers["dit-hf"], answers["plain"], rtol=1e-3, atol=1e-3
    )  # Adam's first steps are signs
    # diffusers' copies of the embedders, one a block, do not stay equal; the first step is the same
    assert (answers["diffusers"] - answers["plain"]).abs().mean() < 0.2 * answers["plain"].std()


def test_table_has_a_row_for_each_trainer(benchmark: ModuleType, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "peak_memory", lambda *arguments: 2**30)
    benchmark.compare("tiny", 2, ["plain", "dit-hf", "dit-hf bf16"], rounds=1, steps=1, device=CPU)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["plain", "dit-hf", "dit-hf bf16"]
    assert "1.000 (1.000 to 1.000)" in lines[2]
    assert "1.00 GiB" in lines[3]


def test_answers_that_differ_are_not_timed(benchmark: ModuleType):
    config = benchmark.config_of("tiny")
    weights, (batch,) = benchmark.make_weights(config), benchmark.make_batches(config, 2, 1, CPU)
    other = {**weights, "final_layer.linear.bias": weights["final_layer.linear.bias"] + 1}
    trainers = {name: benchmark.plain(config, each, CPU) for name, each in (("a", weights), ("b", other))}
    with pytest.raises(AssertionError, match="not close"):
        benchmark.check_same_outputs(trainers, batch)
