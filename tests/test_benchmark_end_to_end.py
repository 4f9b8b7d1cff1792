"""The benchmark of whole images: a row for each way, and seconds that are scaled as the page says."""

import importlib.util
import sys
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest
from sampling_parts import tiny_pipeline

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def end_to_end(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With a tiny pipeline in the place of both models."""
    monkeypatch.setenv("DIT_HF_EXPORTS", "")  # what the script sets ends with the test
    monkeypatch.syspath_prepend(FOLDER)  # where it finds its neighbours
    specification = importlib.util.spec_from_file_location("benchmark_end_to_end", FOLDER / "end_to_end.py")
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, specification.name, module)
    specification.loader.exec_module(module)
    for name in module.MODELS:
        monkeypatch.setitem(module.MODELS, name, tiny_pipeline)
    return module


def test_seconds_of_fewer_steps_are_multiplied_and_those_of_the_decoder_are_added(end_to_end):
    ways = {label: way for label, way in end_to_end.WAYS.items() if way.dtype is None and way.num_steps == 20}
    pipes = {None: tiny_pipeline()}
    schedulers = end_to_end.schedulers_of(pipes[None], ways)
    ticks = count()
    clock = lambda: float(next(ticks))  # noqa: E731  one second passes between two readings
    assert end_to_end.measure(pipes, ways, schedulers, None, clock) == dict.fromkeys(ways, 1)
    assert end_to_end.measure(pipes, ways, schedulers, 4, clock) == dict.fromkeys(ways, 20 / 4 * 1 + 1)


def test_decoder_is_timed_once_a_round_and_runtime(end_to_end, monkeypatch):
    timed = []
    monkeypatch.setattr(end_to_end, "seconds_of_decoder", lambda pipe, clock: timed.append(pipe) or 0.0)
    ways = {label: way for label, way in end_to_end.WAYS.items() if way.dtype is None}
    pipe = tiny_pipeline()
    end_to_end.measure({None: pipe}, ways, end_to_end.schedulers_of(pipe, ways), 2, lambda: 0.0)
    assert timed == [pipe]


def test_fast_preset_runs_three_quarters_of_the_forwards(end_to_end):
    """20 steps that are all guided are 40 forwards; of 20 whose middle half is guided, 30."""
    forwards = {}
    for label in ("20 steps of DPM-Solver++", "fast preset"):
        way, pipe, rows = end_to_end.WAYS[label], tiny_pipeline(), []
        pipe.transformer.register_forward_pre_hook(lambda module, inputs, rows=rows: rows.append(len(inputs[0])))
        scheduler = end_to_end.schedulers_of(pipe, {label: way})[label]
        end_to_end.sample(pipe, way, scheduler, way.num_steps, "latent")()
        forwards[label] = sum(rows)
    assert forwards == {"20 steps of DPM-Solver++": 40, "fast preset": 30}


def test_table_has_a_row_for_each_way_of_torch_and_names_a_missing_package(end_to_end, monkeypatch, capsys):
    monkeypatch.setattr(end_to_end, "is_installed", lambda row: False)
    monkeypatch.setattr(sys, "argv", ["", "--models", "DiT-S/2", "--rounds", "1", "--steps", "4"])
    end_to_end.main()
    printed = capsys.readouterr().out
    rows = [line.split("|")[2].strip() for line in printed.splitlines() if line.startswith("| DiT-S/2")]
    assert rows == [label for label, way in end_to_end.WAYS.items() if way.dtype is None]
    assert printed.strip().endswith("openvino: not run, since the package openvino is not installed")
