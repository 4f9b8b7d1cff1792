"""Trainings killed at any moment and restarted by the same command, bit for bit equal to one that was left alone.

The trainers are real processes with loader workers, forked from one that has imported everything (`trainer.py`).
"""

import hashlib
import json
import random
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the forked processes find the module by its name

import trainer

FAST = ["--checkpointing_steps", "1", "--validation_steps", "50", "--num_jitters", "0"]


def flags(tiny: Path, folder: Path, num_processes: int, steps: int) -> list[str]:
    """Settings of a training that saves at every step, keeps the milestones and two more, with two workers."""
    batch = ["--train_batch_size", str(6 // num_processes), "--max_train_steps", str(steps), "--ema_decay", "0.7"]
    kept = ["--checkpoints_total_limit", "2", "--checkpoints_milestone_steps", "7", "--dataloader_num_workers", "2"]
    return [str(tiny / "tiny.yaml"), "--output_dir", str(folder / "out"), *FAST, *batch, *kept]


def start_all(tiny: Path, folder: Path, num_processes: int, steps: int) -> list:
    port = trainer.free_port() if num_processes > 1 else None
    arguments = flags(tiny, folder, num_processes, steps)
    return [trainer.start(folder / "journal", arguments, rank=rank, port=port) for rank in range(num_processes)]


def finish(processes: list, folder: Path, seconds: float = 120) -> None:
    for rank, process in enumerate(processes):
        process.join(seconds)
        assert process.exitcode == 0, (folder / f"journal.{rank}.out").read_text()[-3000:]


def journal(folder: Path, rank: int = 0) -> list[str]:
    file = folder / f"journal.{rank}"
    return file.read_text().splitlines() if file.exists() else []


def last_line(folder: Path) -> str:
    """The last of a journal, or "" before there is one."""
    file = folder / "journal.0"
    if not file.exists():
        return ""
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - 400))
        return opened.read().decode().rstrip("\n").rpartition("\n")[2]


def is_saving(folder: Path) -> bool:
    return last_line(folder) in ("begin save", "begin delete")


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
    for line in journal(folder, rank):
        if match := re.match(r"samples (\(.*?\)) (.*)", line):
            assert held.setdefault(match[1], match[2]) == match[2]
    return [f"{place} {what}" for place, what in held.items()]


def kill_and_compare(tiny: Path, tmp_path: Path, num_processes: int, num_kills: int, steps: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    finish(start_all(tiny, whole, num_processes, steps), whole)
    rng = random.Random(0)
    in_a_save, kills = 0, 0
    while kills < num_kills:
        saved = journal(killed).count("end save")
        processes = start_all(tiny, killed, num_processes, steps)
        deadline = time.monotonic() + rng.uniform(0, 1)
        while time.monotonic() < deadline and journal(killed).count("end save") == saved:  # else a fast machine is done
            time.sleep(0.002)
        wants_save = kills % 4 > 0  # three of four, as some come too late
        while wants_save and not is_saving(killed) and all(process.is_alive() for process in processes):
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.003 if wants_save else 0.01))  # a save takes a few milliseconds
        alive = [process.is_alive() for process in processes]
        for process in rng.sample(processes, len(processes)):
            process.kill()
        for rank, process in enumerate(processes):
            process.join()
            said = (killed / f"journal.{rank}.out").read_text()[-3000:] if not alive[rank] else ""
            assert alive[rank] or process.exitcode == 0, f"a restart failed: {said}"
        done = max((row["step"] for row in losses(killed)), default=0) if (killed / "out/metrics.jsonl").exists() else 0
        assert done < steps, f"the training ended after {kills} kills: it needs more steps"
        kills += 1
        in_a_save += is_saving(killed)
    finish(start_all(tiny, killed, num_processes, steps), killed)
    assert in_a_save >= num_kills / 2, f"{in_a_save} of {num_kills} kills were within a save or a deletion"
    assert losses(killed) == losses(whole)
    assert last_hashes(killed, steps) == last_hashes(whole, steps)
    for rank in range(num_processes):
        assert samples(killed, rank) == samples(whole, rank)
    kept = sorted(path.name for path in (killed / "out" / "checkpoints").iterdir())
    assert kept == sorted(path.name for path in (whole / "out" / "checkpoints").iterdir())


@pytest.mark.slow
def test_training_killed_25_times_is_bit_for_bit_the_undisturbed_one(tiny: Path, tmp_path: Path):
    kill_and_compare(tiny, tmp_path, num_processes=1, num_kills=25, steps=100)


@pytest.mark.slow
def test_two_processes_killed_5_times_are_bit_for_bit_the_undisturbed_ones(tiny: Path, tmp_path: Path):
    kill_and_compare(tiny, tmp_path, num_processes=2, num_kills=5, steps=24)


@pytest.mark.long
def test_two_processes_killed_25_times_are_bit_for_bit_the_undisturbed_ones(tiny: Path, tmp_path: Path):
    kill_and_compare(tiny, tmp_path, num_processes=2, num_kills=25, steps=100)


@pytest.mark.slow
def test_training_goes_on_alike_from_every_step_of_two_epochs(tiny: Path, tmp_path: Path):
    steps = 7  # of 6 of 20 images an epoch: the last step ends two images into the third
    whole = tmp_path / "whole"
    whole.mkdir()
    every = ["--checkpoints_total_limit", str(steps)]
    process = trainer.start(whole / "journal", [*flags(tiny, whole, 1, steps), *every])
    finish([process], whole)
    for step in range(steps + 1):
        folder = tmp_path / str(step)
        folder.mkdir()
        shutil.copytree(whole / "out", folder / "out")
        for later in range(step + 1, steps + 1):
            shutil.rmtree(folder / "out" / "checkpoints" / f"step-{later:08d}")
        finish([trainer.start(folder / "journal", [*flags(tiny, folder, 1, steps), *every])], folder)
        assert losses(folder) == losses(whole)
        assert last_hashes(folder, steps) == last_hashes(whole, steps)
        assert samples(folder, 0) == samples(whole, 0)[step:]
