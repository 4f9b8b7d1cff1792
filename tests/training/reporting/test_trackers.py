"""What wandb and trackio have stored after a training that was started twice; neither needs a network."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the forked processes find the module by its name

import trainer


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not importlib.util.find_spec(package), reason=f'{package} is of the extra "trackers"')


def train_twice(tiny: Path, folder: Path, tracker: str, **environment: str) -> dict[int, float]:
    """Train four steps, then four more; the losses."""
    for steps in "48":
        flags = ["--output_dir", str(folder / "out"), "--report_to", tracker, "--max_train_steps", steps]
        command = [str(tiny / "tiny.yaml"), *flags, "--validation_steps", "4"]
        trainer.finish([trainer.start(folder / "journal", command, **environment)], folder / "journal")
    rows = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


def read_wandb(file: Path) -> Iterator[bytes]:
    """The records of a file of wandb, which has LevelDB's form: blocks of 32 KiB of chunks after a header."""
    data, position, record = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        record += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.mark.slow
@needs("wandb")
def test_wandb_has_losses_pictures_and_one_run_of_two_starts(tiny: Path, tmp_path: Path):
    losses = train_twice(tiny, tmp_path, "wandb", WANDB_MODE="offline")
    from wandb.proto.wandb_internal_pb2 import Record

    ids, stored, pictures = set(), {}, set()
    for file in (tmp_path / "out" / "logs" / "wandb").glob("offline-run-*/*.wandb"):
        for record in map(Record.FromString, read_wandb(file)):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add((record.run.project, record.run.display_name, record.run.run_id))
            if kind == "history":
                items = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
                stored[record.history.step.num] = float(items["loss"])
                pictures |= {record.history.step.num} if "preview.filenames" in items else set()
    assert ids == {("dit", "out", (tmp_path / "out" / "logs" / "run_id").read_text())}
    assert stored == losses
    assert pictures == {4, 8}
    assert len(list((tmp_path / "out" / "logs" / "wandb").glob("offline-*/files/media/*/preview_8_*"))) == 4


@pytest.mark.slow
@needs("trackio")
def test_trackio_has_losses_pictures_and_one_run_of_two_starts(tiny: Path, tmp_path: Path):
    losses = train_twice(tiny, tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    import sqlite3

    with sqlite3.connect(tmp_path / "trackio" / "dit.db") as database:
        rows = database.execute("select run_name, step, metrics, run_id from metrics").fetchall()
    name = f"out-{(tmp_path / 'out' / 'logs' / 'run_id').read_text()}"
    assert {row[0] for row in rows} == {name}
    assert len({row[3] for row in rows}) == 1
    logged = [(step, json.loads(metrics)) for _, step, metrics, _ in rows]
    assert {step: row["loss"] for step, row in logged if "loss" in row} == losses
    pictures = {step: row["preview"]["file_path"] for step, row in logged if "preview" in row}
    assert pictures.keys() == {4, 8}
    assert all((tmp_path / "trackio" / "media" / path).is_file() for path in pictures.values())
