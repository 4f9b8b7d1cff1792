"""The benchmark of runtimes: a row for each runtime, whose error is that of its number format."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import DDIMScheduler
from sampling_parts import tiny_pipeline

from dit_hf import DiTPipeline

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def runtimes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With a tiny pipeline in the place of the paper's models."""
    monkeypatch.setenv("DIT_HF_EXPORTS", "")  # what the script sets ends with the test
    monkeypatch.syspath_prepend(FOLDER)  # where it finds its neighbour
    specification = importlib.util.spec_from_file_location("benchmark_runtimes", FOLDER / "runtimes.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "make_on_cpu", lambda name: tiny_pipeline())
    return module


def printed_rows(text: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "| tiny" in line]
    return {cells[2]: cells for cells in lines}


@pytest.mark.parametrize("package", ["torchao", "openvino"])
def test_error_of_a_row_is_that_of_its_number_format(runtimes, package, monkeypatch, capsys):
    pytest.importorskip(package)
    monkeypatch.setattr(runtimes, "STEPS", {1: 1})
    only = {"torchao": ["eager", "torchao int8"], "openvino": ["openvino"]}[package]
    monkeypatch.setitem(runtimes.ROWS, "torchao int8 compiled", runtimes.ROWS["torchao int8"])  # compiling takes long
    monkeypatch.setattr(sys, "argv", ["", "--rounds", "1", "--sizes", "tiny", "--batches", "1", "--only", *only])
    runtimes.main()
    rows = printed_rows(capsys.readouterr().out)
    assert list(rows) == [row for row in runtimes.ROWS if row == runtimes.EAGER or row.startswith(tuple(only))]
    # a unit in the last place is 2^-24 in float32, 2^-9 in bfloat16; int8 has 127 steps up to the largest number
    bounds = {"float32": (0, 1e-5), "bfloat16": (2**-12, 0.1), "int8": (2**-12, 0.2)}
    for row, cells in rows.items():
        low, high = bounds[row.split()[1]]
        assert low <= float(cells[5]) <= high, row
        assert float(cells[3].split()[0]) > 0
    assert float(rows[runtimes.EAGER][5]) == 0


def test_missing_package_is_named_under_the_table(runtimes, monkeypatch, capsys):
    monkeypatch.setattr(runtimes, "STEPS", {1: 1})
    monkeypatch.setitem(runtimes.PACKAGES, "openvino", "no_such_package")
    monkeypatch.setattr(runtimes, "describe_machine", lambda: "")
    monkeypatch.setattr(
        sys, "argv", ["", "--rounds", "1", "--sizes", "tiny", "--batches", "1", "--only", "openvino float32"]
    )
    runtimes.main()
    assert "openvino float32: not run, since the package no_such_package is not installed" in capsys.readouterr().out


def test_compiled_row_compiles_its_blocks_and_eager_does_not(runtimes):
    compiled: list[bool] = []
    for row in ("eager float32", "compiled float32"):
        pipe: DiTPipeline = runtimes.ROWS[row](tiny_pipeline())
        compiled.append(all(block._compiled_call_impl is not None for block in pipe.transformer.blocks))
        assert pipe.transformer.dtype == torch.float32
    assert compiled == [False, True]


def test_images_of_each_row_are_compared_with_those_of_eager_float32(runtimes, monkeypatch, capsys):
    monkeypatch.setattr(runtimes, "shipped", lambda: tiny_pipeline(scheduler=DDIMScheduler(clip_sample=False)))
    monkeypatch.setattr(runtimes, "features", lambda images: images.reshape(len(images), -1).astype(float))
    monkeypatch.setattr(sys, "argv", ["", "--sizes", "--images", "4", "--only", "eager"])
    runtimes.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| eager")]
    assert [row[0] for row in rows] == ["eager float32", "eager bfloat16"]
    assert [float(cell) for cell in rows[0][1:]] == [0, 0]
    assert all(float(cell) > 0 for cell in rows[1][1:])
