"""The benchmark of data: each way reads the same photos, and has a row."""

import importlib.util
import json
import sys
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "data.py"


@pytest.fixture
def data(monkeypatch) -> ModuleType:
    """With photos of a few pixels, in batches of four."""
    specification = importlib.util.spec_from_file_location("benchmark_data", FILE)
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    photo = module.photo
    monkeypatch.setattr(module, "photo", lambda seed: photo(seed, 40, 30))
    monkeypatch.setattr(module, "BATCH", 4)
    return module


def test_parquet_and_tar_hold_the_same_photos(data, tmp_path):
    data.write_photos(tmp_path / "photos", 8)
    sources = [data.open_parquet(tmp_path / "photos"), data.open_tar(tmp_path / "photos")]
    read = [
        {(rows.read(k), rows.labels[k]) for part in range(source.num_parts) for rows in source.read_part(part)
         for k in range(len(rows))}
        for source in sources
    ]  # fmt: skip
    assert read[0] == read[1] == {(data.photo(k), k % 2) for k in range(8)}


def test_each_way_has_a_row(data, monkeypatch, capsys):
    """The clock moves on by a second at each look, so that a way of two seconds reads a batch or two."""
    ticks = count()
    monkeypatch.setattr(data.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(data.os, "sched_getaffinity", lambda process: {0})
    monkeypatch.setattr(
        sys, "argv", ["data.py", "--images", "8", "--rounds", "1", "--seconds", "2", "--resolution", "16"]
    )
    data.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ways = [row["way"] for row in rows if "way" in row]
    assert ways[1:3] == ["stream of images, parquet", "stream of images, tar"]
    assert len(ways) == 6
    assert all(row["per_core"] > 0 for row in rows if "way" in row)
    assert rows[-1]["latents / images"] > 0
