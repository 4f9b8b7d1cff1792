"""What a training does when a step goes wrong, and what it keeps when one goes well."""

import json
import os
import re
import signal
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dit_hf.diffusion import HybridLoss
from dit_hf.training.processes.signals import Preempted, StopRequest
from dit_hf.training.run import run
from dit_hf.training.settings import parse_settings
from dit_hf.training.trainer import Trainer


def train(tiny: Path, output_dir: Path, *flags: str) -> None:
    run(parse_settings([str(tiny / "tiny.yaml"), "--output_dir", str(output_dir), *flags]))


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def spoil(monkeypatch: pytest.MonkeyPatch, bad_steps: set[int], value: float) -> None:
    """Multiply the loss of some steps, which makes its gradient as bad."""
    count = 0
    forward = HybridLoss.__call__

    def spoiled(self, *args, **kwargs):
        nonlocal count
        count += 1
        losses = forward(self, *args, **kwargs)
        return {name: term * value for name, term in losses.items()} if count in bad_steps else losses

    monkeypatch.setattr(HybridLoss, "__call__", spoiled)


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_step_that_is_not_finite_changes_nothing_and_is_counted(tiny: Path, tmp_path: Path, monkeypatch, value, caplog):
    flags = ("--checkpointing_steps", "1", "--checkpoints_total_limit", "8")
    with monkeypatch.context() as patched:
        spoil(patched, {3, 4, 6}, value)
        train(tiny, tmp_path, *flags)
    rows = metrics(tmp_path)
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert [row["loss"] is None for row in rows] == [False, False, True, True, False, True, False, False]
    for name in ("model", "ema"):
        before, after, later = (
            load_file(tmp_path / f"checkpoints/step-0000000{step}/{name}.safetensors") for step in (2, 4, 5)
        )
        torch.testing.assert_close(after, before, rtol=0, atol=0)
        assert not torch.equal(later["final_layer.linear.weight"], after["final_layer.linear.weight"])
        assert all(weight.isfinite().all() for weight in later.values())


@pytest.mark.slow
def test_images_that_were_skipped_are_counted_once_and_across_a_restart(tiny: Path, three_bad: Path, tmp_path: Path):
    flags = ("--dataset_name", str(three_bad), "--max_bad_images", "0.15", "--ema_decay", "0.01")
    flags += ("--validation_steps", "100", "--checkpointing_steps", "2")
    train(tiny, tmp_path / "whole", *flags)
    train(tiny, tmp_path / "stopped", *flags, "--max_train_steps", "2")
    progress = json.loads((tmp_path / "stopped/checkpoints/step-00000002/progress.json").read_text())["progress"]
    train(tiny, tmp_path / "stopped", *flags)
    counts = [row["images_skipped"] for row in metrics(tmp_path / "whole")]
    assert counts[3:] == [3] * 5  # an epoch has 20 images, a step 6
    assert counts == sorted(counts) == [row["images_skipped"] for row in metrics(tmp_path / "stopped")]
    assert 3 > len(progress["bad_images"]) == counts[1] > 0
    rows = {"row 1 of train-00000-of-00002.parquet", "row 4 of train-00001-of-00002.parquet"}
    rows |= {"row 7 of train-00001-of-00002.parquet"}
    assert progress["bad_images"].keys() <= rows
    assert set(progress["bad_images"].values()) == {"8 bytes of no known image format"}
    other = ("--dataset_name", str(tiny / "data"), "--allow_config_change", "--max_train_steps", "9")
    train(tiny, tmp_path / "stopped", *flags, *other)
    assert metrics(tmp_path / "stopped")[-1]["images_skipped"] == 0  # of other data


@pytest.mark.slow
def test_too_many_bad_steps_end_the_run_with_step_rank_samples_and_checkpoint(tiny: Path, tmp_path: Path, monkeypatch):
    spoil(monkeypatch, {5, 6, 7}, float("nan"))
    message = (
        r"step 7 was skipped: the loss on ranks \[0\] is not finite; loss=nan, \(epoch, offset\) on rank 0: "
        r"\(1, 16\), \(1, 17\), .*in a row: lower --learning_rate.*newest checkpoint is that of step 4"
    )
    with pytest.raises(FloatingPointError, match=message):
        train(tiny, tmp_path, "--max_skipped_steps", "3")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    train(tiny, tmp_path)  # the same command goes on: it was a fault of the moment
    assert metrics(tmp_path)[-1]["step"] == 8


@pytest.mark.slow
def test_out_of_memory_names_the_step_and_what_to_change(tiny: Path, tmp_path: Path, monkeypatch):
    forward = HybridLoss.__call__

    def hungry(self, model, x_0, **kwargs):
        if (tmp_path / "checkpoints" / "step-00000004").exists():
            torch.empty(10**15)
        return forward(self, model, x_0, **kwargs)

    monkeypatch.setattr(HybridLoss, "__call__", hungry)
    message = r"out of memory in step 5, latents \(6, 4, 8, 8\) on cpu: lower --train_batch_size .* set --gradient"
    with pytest.raises(MemoryError, match=message + ".*that of step 4"):
        train(tiny, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (ValueError("shard 7 is gone"), ValueError, "shard 7 is gone$"),
        (OSError(5, "Input/output error"), OSError, ".*Input/output error$"),
        (
            tarfile.ReadError("unexpected end of data"),
            OSError,
            r"the data cannot be read after .* \(1, 16\): ReadError",
        ),
        (MemoryError("64 GB"), MemoryError, r"out of memory in step 7, .* that of step 6\. 64 GB"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_last_step_is_saved_when_the_data_end_with_any_error(
    tiny: Path, tmp_path: Path, monkeypatch, error: Exception, expected: type, message: str
):
    from dit_hf.data.streaming import ImageStream

    whole = ImageStream.batches

    def broken(self, is_stopped):
        for number, batch in enumerate(whole(self, is_stopped), 1):
            if number > 6:
                raise error
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(ImageStream, "batches", broken)
        with pytest.raises(expected, match=message):
            train(tiny, tmp_path)
    assert (tmp_path / "checkpoints" / "step-00000006" / "manifest.json").exists()
    assert re.match(message, json.loads((tmp_path / "status.json").read_text())["reason"])
    train(tiny, tmp_path)  # the same command goes on
    assert metrics(tmp_path)[-1]["step"] == 8


@pytest.mark.slow
def test_losses_of_the_quarters_of_the_timesteps_make_the_loss(tiny: Path, tmp_path: Path):
    train(tiny, tmp_path, "--max_train_steps", "1", "--train_batch_size", "1", "--ema_decay", "0.01")
    (row,) = metrics(tmp_path)
    quarters = [row[f"loss_quartile_{number}"] for number in (1, 2, 3, 4)]
    assert [quarter for quarter in quarters if quarter is not None] == [pytest.approx(row["loss"], rel=1e-5)]


@pytest.mark.slow
def test_best_samples_keep_their_checkpoint(tiny: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "measure.py").write_text(
        "values = iter([5.0, 2.0, 3.0, 4.0])\n"
        "def distance(images):\n"
        "    assert len(images) == 4 and images[0].size == (16, 16)\n"
        "    return next(values)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "measure", raising=False)
    flags = ("--validation_steps", "2", "--checkpointing_steps", "3", "--checkpoints_total_limit", "1")
    train(tiny, tmp_path / "out", *flags, "--validation_distance", "measure:distance")
    assert json.loads((tmp_path / "out" / "best.json").read_text()) == {"step": 4, "distance": 2.0}
    kept = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000008"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "distances.jsonl").read_text().splitlines()]
    assert [(row["step"], row["distance"]) for row in rows] == [(2, 5.0), (4, 2.0), (6, 3.0), (8, 4.0)]


@pytest.mark.slow
def test_distance_that_fails_is_told_and_left_out(tiny: Path, tmp_path: Path, monkeypatch, caplog):
    (tmp_path / "measure.py").write_text(
        "values = iter([float('nan'), 1 / 4])\ndef distance(images):\n    return next(values)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "measure", raising=False)
    flags = ("--validation_steps", "2", "--max_train_steps", "6", "--validation_distance", "measure:distance")
    train(tiny, tmp_path / "out", *flags)
    assert "the distance of step 2 is nan: it is left out" in caplog.text
    assert "no distance of step 6: StopIteration()" in caplog.text
    (row,) = (tmp_path / "out" / "distances.jsonl").read_text().splitlines()
    assert json.loads(row) == {"step": 4, "distance": 0.25}


def test_push_that_runs_is_left_where_it_is_when_the_run_is_asked_to_stop():
    class Slow:
        is_busy = True

    with StopRequest() as stop:
        work = Trainer(*[None] * 3, stop, *[None] * 2, Slow(), None, None, None, None)
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Preempted, match="during a push"):
            work.wait_for_push()
    assert stop.received == signal.SIGUSR1


def test_distance_that_cannot_be_imported_is_refused(tiny: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="validation_distance='no_module:f' is not found"):
        train(tiny, tmp_path, "--validation_distance", "no_module:f")


@pytest.mark.slow
def test_pictures_and_numbers_reach_tensorboard(tiny: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny, tmp_path, "--report_to", "tensorboard", "--max_train_steps", "2", "--ema_decay", "0.01")
    events = EventAccumulator(str(tmp_path / "logs" / "dit")).Reload()
    assert {"loss", "grad_norm", "images_per_second"} <= set(events.Tags()["scalars"])
    assert "preview" in events.Tags()["images"][0]


@pytest.mark.slow
def test_tensorboard_has_each_step_once_after_a_run_went_back(tiny: Path, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = ("--report_to", "tensorboard", "--max_train_steps", "4", "--checkpointing_steps", "2")
    train(tiny, tmp_path, *flags)
    train(tiny, tmp_path, *flags, "--resume_from_checkpoint", "2")
    events = EventAccumulator(str(tmp_path / "logs" / "dit")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


def test_metrics_that_cannot_be_written_end_nothing(tiny: Path, tmp_path: Path, monkeypatch, caplog):
    opened = Path.open

    def full(self, mode="r", *args, **kwargs):
        if self.name == "metrics.jsonl" and "a" in mode:
            raise OSError(28, "No space left on device")
        return opened(self, mode, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        with pytest.raises((FileNotFoundError, IndexError)):  # the loss curve has no rows
            train(tiny, tmp_path)
    assert (tmp_path / "checkpoints" / "step-00000008" / "manifest.json").exists()
