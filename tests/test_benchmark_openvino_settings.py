"""The benchmark of OpenVINO's settings: a row for each, which computes what eager torch does."""

import importlib.util
import sys
from pathlib import Path

import pytest
from sampling_parts import tiny_model

FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_each_setting_has_a_row_that_computes_what_torch_does(monkeypatch, capsys):
    pytest.importorskip("openvino")
    monkeypatch.syspath_prepend(FOLDER)  # where it finds its neighbours
    specification = importlib.util.spec_from_file_location("benchmark_settings", FOLDER / "openvino_settings.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "make_model", lambda name: tiny_model())
    monkeypatch.setattr(sys, "argv", ["", "--sizes", "tiny", "--rounds", "1"])
    module.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| tiny")]
    assert [row[2] for row in rows] == ["eager", *module.SETTINGS]
    assert all(0 < float(row[6]) < 1e-5 for row in rows[1:])  # float32, summed in another order
    [share] = [line.split()[3] for line in lines if "products take" in line]
    assert 0 < int(share.rstrip("%")) <= 100
