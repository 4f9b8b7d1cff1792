"""The benchmark of the roofline: it counts what the closed forms count, and puts every operator into a part."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from sampling_parts import tiny_pipeline

from dit_hf.analysis import count_macs

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def roofline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With a tiny pipeline in the place of the paper's models, and small arrays."""
    monkeypatch.syspath_prepend(FOLDER)  # where it finds its neighbours
    specification = importlib.util.spec_from_file_location("benchmark_roofline", FOLDER / "roofline.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "make_pipelines", lambda name: (tiny_pipeline(), None))
    monkeypatch.setattr(module, "SIDE", 32)
    monkeypatch.setattr(module, "SIZES_MIB", (0.25, 1))
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_are_those_of_the_closed_form(roofline, dtype):
    """A guided step has two rows, and a conditioning each for the label and the null class."""
    pipe = tiny_pipeline().to(dtype)
    operators = roofline.watch(pipe, batch=1, num_steps=3, rounds=1)
    macs = count_macs(pipe.transformer.config)
    counted = {part: sum(each.flops for each in operators if each.part == part) for part in roofline.PARTS}
    assert counted["attention"] == 3 * 2 * 2 * macs.attention
    assert counted["products"] == 3 * 2 * 2 * (macs.total - macs.attention)
    assert counted["element-wise"] == 0
    assert all(each.seconds > 0 and each.before >= 0 for each in operators)


def test_least_time_is_that_of_the_slower_of_products_and_memory(roofline):
    memory = {4.0: 2.0, 100.0: 1.0}  # bytes -> bytes a second
    for flops, moved, expected in ((30, 4, 3), (10, 4, 2), (0, 5, 5), (0, 200, 200)):
        assert roofline.least_seconds(roofline.Operator("products", flops, moved, 0, 0), 10, memory) == expected


def test_table_has_a_row_for_each_part(roofline, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", "--sizes", "tiny", "--rounds", "1", "--steps", "1"])
    roofline.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[-2:]] == ["tiny, float32", "tiny, bfloat16"]  # page faults
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| tiny")]
    parts = [*roofline.PARTS, "Python and dispatch", "together"]
    assert [row[1:3] for row in rows] == [[dtype, part] for dtype in ("float32", "bfloat16") for part in parts]
    assert all(float(row[3]) >= 0 for row in rows)
