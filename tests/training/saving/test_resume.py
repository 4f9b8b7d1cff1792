"""Which checkpoint a run goes on from, and what it refuses to go on with."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))  # the forked processes find the module by its name

import trainer

from dit_hf.files import sha256_of_file
from dit_hf.training.run import run
from dit_hf.training.settings import TrainSettings, changed_settings, parse_settings


def train(tiny: Path, output_dir: Path, *flags: str) -> None:
    fast = ["--checkpointing_steps", "1", "--max_train_steps", "4", "--ema_decay", "0.1"]
    run(parse_settings([str(tiny / "tiny.yaml"), "--output_dir", str(output_dir), *fast, *flags]))


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train(tiny, folder, "--checkpoints_total_limit", "4")
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copied"))


@pytest.mark.slow
def test_step_that_is_asked_for_is_gone_back_to_and_what_came_after_is_kept_aside(tiny: Path, copied: Path):
    before = losses(copied)
    with pytest.warns(UserWarning, match="step-00000003 is after step 2 and was moved"):
        train(tiny, copied, "--resume_from_checkpoint", "2")
    assert losses(copied) == before
    assert sorted(path.name for path in (copied / "checkpoints" / "abandoned").iterdir()) == [
        "step-00000003-0",
        "step-00000004-0",
    ]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("7", "there is no .*step-00000007; the steps of this run are: 1, 2, 3, 4"),
        ("3", r"step-00000003 is damaged \(model.safetensors is missing\): choose another"),
        ("nowhere/step-00000003", "there is no nowhere/step-00000003"),
    ],
)
def test_step_that_is_asked_for_is_never_replaced_by_another(tiny: Path, copied: Path, wanted: str, message: str):
    (copied / "checkpoints" / "step-00000003" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=message):
        train(tiny, copied, "--resume_from_checkpoint", wanted)
    assert steps(copied) == [1, 2, 3, 4]


@pytest.mark.slow
def test_checkpoint_of_another_run_begins_a_new_folder_but_hides_no_checkpoint(
    tiny: Path, trained: Path, tmp_path: Path
):
    flags = ("--resume_from_checkpoint", str(trained / "checkpoints" / "step-00000002"))
    train(tiny, tmp_path / "branch", *flags)
    assert losses(tmp_path / "branch") == losses(trained)[2:]
    assert steps(tmp_path / "branch") == [3, 4][-3:]
    with pytest.raises(ValueError, match="is of another run, and .* has checkpoints of its own, up to step 4"):
        train(tiny, tmp_path / "branch", *flags)


@pytest.mark.slow
def test_change_that_is_allowed_takes_effect(tiny: Path, copied: Path):
    changed = ("--learning_rate", "0.05", "--adam_beta1", "0.5", "--max_train_steps", "5")
    with pytest.raises(ValueError, match=r"learning_rate was 0.001 and is 0.05; adam_beta1 was 0.9 and is 0.5"):
        train(tiny, copied, *changed)
    train(tiny, copied, *changed, "--allow_config_change")
    rows = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows] == [1e-3] * 4 + [0.05]
    weights = [load_file(copied / f"checkpoints/step-0000000{step}/model.safetensors") for step in (4, 5)]
    moved = max((weights[1][name] - weights[0][name]).abs().max() for name in weights[0])
    assert moved > 0.03


@pytest.mark.slow
def test_average_of_another_decay_is_refused_unless_a_change_is_allowed(tiny: Path, copied: Path):
    more = ("--extra_ema_decays", "0.05", "--max_train_steps", "5")
    with pytest.raises(ValueError, match=r"extra_ema_decays was None and is \[0.05\]"):
        train(tiny, copied, *more)
    with pytest.warns(UserWarning, match=r"ema_0.05.safetensors is missing: this average starts from"):
        train(tiny, copied, *more, "--allow_config_change")
    assert (copied / "checkpoints" / "step-00000005" / "ema_0.05.safetensors").is_file()


@pytest.mark.slow
def test_images_of_a_step_may_be_divided_otherwise(tiny: Path, copied: Path, trained: Path):
    shutil.rmtree(copied / "checkpoints" / "step-00000004")
    shutil.rmtree(copied / "checkpoints" / "step-00000003")
    train(tiny, copied, "--train_batch_size", "2", "--gradient_accumulation_steps", "3")
    np.testing.assert_allclose(losses(copied), losses(trained), rtol=1e-4)  # sums in another order


@pytest.mark.parametrize("world_size", range(1, 17))
def test_only_the_images_of_a_step_count_over_any_number_of_processes(world_size: int):
    before = vars(TrainSettings(train_batch_size=720720))
    share = TrainSettings(train_batch_size=720720 // world_size)
    assert changed_settings(before, share, 1, world_size) == {}
    assert changed_settings(before, TrainSettings(train_batch_size=720720), 1, world_size) == (
        {"images a step": (720720, 720720 * world_size)} if world_size > 1 else {}
    )


def test_run_that_is_done_has_nothing_to_do(tiny: Path, copied: Path, caplog):
    before = (copied / "metrics.jsonl").read_bytes()
    train(tiny, copied)
    assert (copied / "metrics.jsonl").read_bytes() == before
    assert steps(copied) == [1, 2, 3, 4]


@pytest.mark.slow
def test_longer_run_goes_on_from_the_end_of_an_epoch(tiny: Path, tmp_path: Path):
    flags = ("--train_batch_size", "10", "--ema_decay", "0.01")  # two steps an epoch of 20
    train(tiny, tmp_path / "whole", *flags)
    train(tiny, tmp_path / "parts", *flags, "--max_train_steps", "2")
    train(tiny, tmp_path / "parts", *flags)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


@pytest.mark.slow
def test_precision_of_the_launcher_is_compared(tiny: Path, tmp_path: Path):
    journal, bf16 = tmp_path / "journal", {"ACCELERATE_MIXED_PRECISION": "bf16"}  # as `accelerate launch` sets it
    command = [str(tiny / "tiny.yaml"), "--output_dir", str(tmp_path / "out"), "--max_train_steps", "4"]
    trainer.finish([trainer.start(journal, command, **bf16)], journal)
    assert yaml.safe_load((tmp_path / "out" / "settings.yaml").read_text())["mixed_precision"] == "bf16"
    longer = [*command, "--max_train_steps", "5"]
    trainer.finish([trainer.start(journal, longer)], journal, code=1)
    assert "mixed_precision was 'bf16' and is 'no'" in trainer.output(journal)
    trainer.finish([trainer.start(journal, longer, **bf16)], journal)
    trainer.finish([trainer.start(journal, [*longer, "--max_train_steps", "6", "--allow_config_change"])], journal)
    assert len(losses(tmp_path / "out")) == 6


@pytest.mark.slow
def test_checkpoint_without_a_recorded_precision_goes_on(tiny: Path, copied: Path):
    file = copied / "checkpoints" / "step-00000004" / "progress.json"
    content = json.loads(file.read_text())
    content["settings"]["mixed_precision"] = None  # as it was before the launcher's was recorded
    file.write_text(json.dumps(content))
    manifest = copied / "checkpoints" / "step-00000004" / "manifest.json"
    entries = json.loads(manifest.read_text())
    entries["files"]["progress.json"] = {"bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
    manifest.write_text(json.dumps(entries))
    train(tiny, copied, "--max_train_steps", "5")
    assert steps(copied)[-1] == 5
