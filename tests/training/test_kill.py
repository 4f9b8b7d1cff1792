"""Trainings killed at any moment and restarted by the same command, bit for bit equal to one that was left alone.

The trainers are real processes with loader workers, forked from one that has imported everything (`trainer.py`).
"""

import hashlib
import json
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the forked processes find the module by its name

import trainer

# What one save and the deletion after it do, in order: the rename of the folder makes the checkpoint, the next one
# takes the old checkpoint away.
FILES = ["model.safetensors", "ema.safetensors", "optimizer.pt", "progress.json", "manifest.json"]
SAVE = ["create step", *(f"write {file}" for file in FILES), *(f"flush {file}" for file in sorted(FILES))]
SAVE += ["flush step", "rename step", "flush checkpoints"]
OPERATIONS = [*SAVE, "rename step", "flush checkpoints", "delete step"]


def flags(tiny: Path, folder: Path, num_processes: int, steps: int, limit: int = 2) -> list[str]:
    """Settings of a training that saves at every step, keeps the milestones and the newest, with two workers."""
    batch = ["--train_batch_size", str(6 // num_processes), "--max_train_steps", str(steps), "--ema_decay", "0.7"]
    saving = ["--checkpointing_steps", "1", "--validation_steps", "50", "--num_jitters", "0"]
    kept = ["--checkpoints_total_limit", str(limit), "--checkpoints_milestone_steps", "7"]
    return [str(tiny / "tiny.yaml"), "--output_dir", str(folder / "out"), *batch, *saving, *kept] + [
        "--dataloader_num_workers",
        "2",
    ]


def start_all(tiny: Path, folder: Path, num_processes: int, steps: int, limit: int = 2, **events) -> list:
    folder.mkdir(exist_ok=True)
    port = trainer.free_port() if num_processes > 1 else None
    arguments = flags(tiny, folder, num_processes, steps, limit)
    return [
        trainer.start(folder / "journal", arguments, rank=rank, port=port, events=events)
        for rank in range(num_processes)
    ]


def train_whole(tiny: Path, folder: Path, *settings: int) -> Path:
    trainer.finish(start_all(tiny, folder, *settings), folder / "journal")
    return folder


def losses(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def last_hashes(folder: Path, steps: int) -> dict[str, str]:
    newest = folder / "out" / "checkpoints" / f"step-{steps:08d}"
    files = ["model.safetensors", "ema.safetensors"]
    return {name: hashlib.sha256((newest / name).read_bytes()).hexdigest() for name in files}


def samples(folder: Path, rank: int) -> list[str]:
    """What each batch held, in order; a step that was done again after a kill must have held the same."""
    held: dict[str, str] = {}
    for line in trainer.lines(folder / "journal", rank):
        if match := re.match(r"samples (\(.*?\)) (.*)", line):
            assert held.setdefault(match[1], match[2]) == match[2]
    return [f"{place} {batch}" for place, batch in held.items()]


def assert_equal(killed: Path, whole: Path, steps: int, num_processes: int = 1) -> None:
    assert losses(killed) == losses(whole)
    assert last_hashes(killed, steps) == last_hashes(whole, steps)
    for rank in range(num_processes):
        assert samples(killed, rank) == samples(whole, rank)
    kept = [sorted(path.name for path in (folder / "out" / "checkpoints").iterdir()) for folder in (killed, whole)]
    assert kept[0] == kept[1]


def operations(folder: Path) -> list[str]:
    """Operations on the disk since the last start of the trainer, without the numbers in names."""
    journal = trainer.lines(folder / "journal")
    last_start = max(number for number, line in enumerate(journal) if line.startswith("pid"))
    disk = [line.removeprefix("disk ") for line in journal[last_start:] if line.startswith("disk ")]
    return [re.sub(r"\.?step-.*", "step", line) for line in disk]


@pytest.mark.slow
def test_kill_before_each_operation_of_a_save_and_of_a_deletion_changes_nothing(tiny: Path, tmp_path: Path):
    steps = 9  # one more than the kills from the first rename on, which leave a new checkpoint each, and the first step
    whole = train_whole(tiny, tmp_path / "whole", 1, steps, 1)
    assert operations(whole)[len(SAVE) :][: len(OPERATIONS)] == OPERATIONS  # of the second step: the first deletes none
    killed = train_whole(tiny, tmp_path / "killed", 1, 1, 1)
    for number, operation in enumerate(OPERATIONS, 1):
        (process,) = start_all(tiny, killed, 1, steps, 1, kill_at=number)
        trainer.finish([process], killed / "journal", code=-signal.SIGKILL)
        assert operations(killed)[number - 1 :] == [operation]  # died before it
    trainer.finish(start_all(tiny, killed, 1, steps, 1), killed / "journal")
    assert_equal(killed, whole, steps)


def kill_at_random(tiny: Path, tmp_path: Path, num_processes: int, num_kills: int, steps: int) -> None:
    """Kill so often, each time after a number of events drawn at random, wherever the trainers are by then."""
    whole = train_whole(tiny, tmp_path / "whole", num_processes, steps)
    killed, rng = tmp_path / "killed", random.Random(0)
    for _ in range(num_kills):
        before, events = len(trainer.lines(killed / "journal")), rng.randrange(120)
        processes = start_all(tiny, killed, num_processes, steps)

        def is_due(processes=processes, goal=before + events) -> bool:
            return len(trainer.lines(killed / "journal")) >= goal or not all(each.is_alive() for each in processes)

        trainer.wait_until(is_due, f"{events} events")
        time.sleep(rng.uniform(0, 0.01))
        was_alive = [process.is_alive() for process in processes]
        for process in rng.sample(processes, num_processes):
            process.kill()
        for rank, process in enumerate(processes):
            process.join()
            assert was_alive[rank] or process.exitcode == 0, trainer.output(killed / "journal", rank)
    trainer.finish(start_all(tiny, killed, num_processes, steps), killed / "journal")
    assert_equal(killed, whole, steps, num_processes)


@pytest.mark.slow
def test_training_killed_at_random_is_bit_for_bit_the_undisturbed_one(tiny: Path, tmp_path: Path):
    kill_at_random(tiny, tmp_path, num_processes=1, num_kills=8, steps=30)


@pytest.mark.slow
def test_two_processes_killed_at_random_are_bit_for_bit_the_undisturbed_ones(tiny: Path, tmp_path: Path):
    kill_at_random(tiny, tmp_path, num_processes=2, num_kills=4, steps=16)


@pytest.mark.long
@pytest.mark.parametrize("num_processes", [1, 2])
def test_training_killed_50_times_is_bit_for_bit_the_undisturbed_one(tiny: Path, tmp_path: Path, num_processes: int):
    kill_at_random(tiny, tmp_path, num_processes, num_kills=50, steps=200)


@pytest.mark.slow
def test_training_goes_on_alike_from_every_step_of_two_epochs(tiny: Path, tmp_path: Path):
    steps = 7  # of 6 of 20 images an epoch: the last step ends two images into the third
    whole = train_whole(tiny, tmp_path / "whole", 1, steps, steps)
    for step in range(steps + 1):
        folder = tmp_path / str(step)
        shutil.copytree(whole / "out", folder / "out")
        for later in range(step + 1, steps + 1):
            shutil.rmtree(folder / "out" / "checkpoints" / f"step-{later:08d}")
        train_whole(tiny, folder, 1, steps, steps)
        assert losses(folder) == losses(whole)
        assert last_hashes(folder, steps) == last_hashes(whole, steps)
        assert samples(folder, 0) == samples(whole, 0)[step:]
