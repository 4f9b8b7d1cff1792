"""The benchmark of compiling: each way has a row and computes the block's output."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sampling_parts import tiny_model

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With a tiny model in the place of the paper's, and a backend that runs graphs as they are."""
    monkeypatch.syspath_prepend(FOLDER)  # where it finds its neighbours
    specification = importlib.util.spec_from_file_location("benchmark_compiling", FOLDER / "compiling.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "make_model", lambda name: tiny_model())
    monkeypatch.setattr(module, "BACKEND", "eager")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # what the script sets ends with the test
    return module


@pytest.mark.slow
def test_each_way_has_a_row_and_is_compiled_twice(compiling, monkeypatch, capsys):
    compiled = []
    compile_block = torch.compile
    monkeypatch.setattr(
        compiling.torch, "compile", lambda *args, **how: compiled.append(1) or compile_block(*args, **how)
    )
    monkeypatch.setattr(sys, "argv", ["", "--sizes", "tiny", "--dtypes", "float32", "--rounds", "1"])
    compiling.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [row[2] for row in rows] == ["products and attention", "eager", *compiling.WAYS]
    assert len(compiled) == 2 * len(compiling.WAYS)
    assert rows[1][6] == "1.00"
    assert all(float(row[5]) >= 0 for row in rows)


def test_a_way_that_computes_something_else_is_not_timed(compiling, monkeypatch):
    monkeypatch.setattr(compiling.torch, "compile", lambda block, **how: lambda *args: 1.01 * block(*args))
    with pytest.raises(AssertionError, match="compiled: relative error 1.0e-02"):
        compiling.compare("tiny", "float32", 1)
