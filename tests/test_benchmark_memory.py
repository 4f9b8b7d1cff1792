"""The benchmark of memory: the bytes that it counts are those that the closed form of the analysis says."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dit_hf import DiTConfig
from dit_hf.analysis import count_activations, count_parameters

FILE = Path(__file__).parents[1] / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    specification = importlib.util.spec_from_file_location("benchmark_memory", FILE)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where its dataclass looks for names
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", ["DiT-S/8", "DiT-S/2"])
def test_bytes_that_a_forward_keeps_are_those_of_the_closed_form(memory, size):
    config = DiTConfig.from_name(size, num_hidden_layers=2)
    in_float32 = memory.saved_bytes(config, bfloat16=False)
    assert in_float32 == pytest.approx(4 * count_activations(config), rel=0.01)  # scalars and labels are of other sizes
    # bfloat16 has two bytes for four; what autocast computes in float32 keeps its four
    assert in_float32 / 2 < memory.saved_bytes(config, bfloat16=True) < in_float32


def test_table_has_a_row_for_each_way_that_grows_with_the_batch(memory, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["memory.py", "--size", "DiT-S/8", "--batches", "1", "64"])
    memory.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows] == ["way", *memory.WAYS]
    assert all(float(row[1]) <= float(row[2]) for row in rows[1:])


def test_training_in_float32_needs_five_times_the_weights_and_the_activations(memory):
    config = DiTConfig.from_name("DiT-S/8")
    expected = (4 + 4 + 8 + 4) * count_parameters(config) + 4 * 2 * count_activations(config)
    assert memory.gibibytes("DiT-S/8", memory.WAYS["train, float32"], 2) * 2**30 == pytest.approx(expected)
