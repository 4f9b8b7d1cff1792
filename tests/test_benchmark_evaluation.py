"""The benchmark of evaluation: what is timed beside each other gives the same numbers, and each has its row."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "evaluation.py"
SIZES = (300, 200)


@pytest.fixture
def benchmark(monkeypatch) -> ModuleType:
    """At toy size."""
    specification = importlib.util.spec_from_file_location("benchmark_evaluation", FILE)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    for name, size in (("D", 32), ("K", 10), ("BATCH", 128), ("PRODUCT", 512)):
        monkeypatch.setattr(module, name, size)
    return module


def test_plain_versions_compute_the_same(benchmark):
    pairs = [
        ("fid_and_score", "plain_fid_and_score", {"rel": 1e-5}),  # plain moments are those of numpy in float32
        ("exact", "plain_precision_recall", {"abs": 0.01}),  # in float32 a point or two may change sides
        ("exact", "adm_float16", {"abs": 0.03}),
    ]
    for ours, other, tolerance in pairs:
        found, expected = (getattr(benchmark, name)(*SIZES)[0]() for name in (ours, other))
        assert tuple(found) == pytest.approx(expected, **tolerance)
        assert min(found) > 0
    assert found.precision < 1 > found.recall


def test_operations_are_those_of_the_blocks(benchmark):
    """One block holds each side at this size: with the symmetric ones whole, as many as without symmetry."""
    assert benchmark.exact(*SIZES)[1] == benchmark.adm_float16(*SIZES)[1] == 2 * 32 * (300**2 + 200**2 + 300 * 200)


def test_each_measurement_has_a_row(benchmark):
    for name in benchmark.OURS | benchmark.PLAIN:
        cells = [cell.strip() for cell in benchmark.measure(name, *SIZES).strip("|").split("|")]
        assert len(cells) == 8
        assert cells[0] == name
        assert re.fullmatch(r"\d+\.\d{4}, \d+\.\d{4}", cells[1])
        assert all(cells[4:6]) != ("FID" in name)  # the share of the product's rate
        assert 0.05 < float(cells[7]) < 8  # GiB
