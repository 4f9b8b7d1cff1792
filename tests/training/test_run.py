"""Whole runs of seconds: what they write, how they go on, and how many processes they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))  # the forked processes find the module by its name

import trainer

from dit_hf import DiTPipeline
from dit_hf.training.loop import StepRecord
from dit_hf.training.observer import Observer
from dit_hf.training.reporting.previews import NAME_HEIGHT, Previews, named, save_grid
from dit_hf.training.run import run
from dit_hf.training.settings import parse_settings

TRAIN = Path(__file__).parents[2] / "examples" / "train_dit.py"


@pytest.mark.slow
def test_preview_is_drawn_from_the_averaged_weights(finished: Path):
    pipeline = DiTPipeline.from_pretrained(finished / "pipeline")
    pipeline.transformer.load_state_dict(load_file(finished / "checkpoints" / "step-00000008" / "ema.safetensors"))
    previews = Previews(finished, guidance_scale=4.0, num_inference_steps=2, seed=0)
    save_grid(previews.draw(pipeline), finished / "again.png", previews.names(pipeline))
    expected = np.array(Image.open(finished / "again.png"))
    np.testing.assert_array_equal(np.array(Image.open(finished / "previews" / "step-00000008.png")), expected)


def test_preview_has_the_name_of_each_class_below_its_image():
    image = Image.new("RGB", (64, 64), "white")
    picture = np.array(named(image, "frog"))
    assert picture.shape == (64 + NAME_HEIGHT, 64, 3)
    assert (picture[:64] == 255).all()
    assert (picture[64:] < 128).any()  # black letters


def train(tiny: Path, output_dir: Path, *flags: str, observer: Observer | None = None) -> Path:
    return run(parse_settings([str(tiny / "tiny.yaml"), "--output_dir", str(output_dir), *flags]), observer=observer)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_speed(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert train(tiny, folder) == folder / "pipeline"
    return folder


def test_run_writes_what_its_user_looks_for(finished: Path):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*")}
    assert names >= {
        "settings.yaml",
        "metrics.jsonl",
        "status.json",
        "loss.png",
        "samples.png",
        "previews/step-00000008.png",
        "checkpoints/step-00000004/manifest.json",
        "checkpoints/step-00000008/manifest.json",
        "pipeline/model_index.json",
        "pipeline/README.md",
        "pipeline/samples.png",
        "pipeline/loss.png",
    }
    assert json.loads((finished / "status.json").read_text())["state"] == "finished"
    for picture in finished.rglob("*.png"):
        assert np.array(Image.open(picture)).std() > 0


def test_metrics_have_a_row_a_logged_step(finished: Path):
    rows = metrics(finished)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["images_seen"] for row in rows] == [6 * step for step in range(1, 9)]
    assert rows[-1]["epoch"] == 2  # 48 of 20 images an epoch
    for row in rows:
        assert row["loss"] == pytest.approx(row["mse"] + row["vb"], rel=1e-5)
        assert row["learning_rate"] == 1e-3
        assert row["grad_norm"] > 0
        assert row["images_per_second"] > 0


def test_pipeline_holds_the_averaged_weights_and_samples_by_name(finished: Path):
    pipeline = DiTPipeline.from_pretrained(finished / "pipeline")
    ema = load_file(finished / "checkpoints" / "step-00000008" / "ema.safetensors")
    torch.testing.assert_close(pipeline.transformer.state_dict(), ema, rtol=0, atol=0)
    assert pipeline.scheduler.config.variance_type == "learned_range"
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(class_labels=["b"], num_inference_steps=2).images[0].size == (16, 16)


def test_same_command_goes_on_bit_for_bit_and_then_finds_nothing_to_do(tiny: Path, tmp_path: Path, finished: Path):
    class Killed(Exception):
        pass

    class KillAfterStep6(Observer):  # after the checkpoint of step 4
        def on_step(self, record: StepRecord) -> None:
            if record.step == 6:
                raise Killed

    with pytest.raises(Killed):
        train(tiny, tmp_path, observer=KillAfterStep6())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # torn
    train(tiny, tmp_path)
    assert without_speed(metrics(tmp_path)) == without_speed(metrics(finished))
    for name in ("model", "ema"):
        file = Path("checkpoints") / "step-00000008" / f"{name}.safetensors"
        torch.testing.assert_close(load_file(tmp_path / file), load_file(finished / file), rtol=0, atol=0)

    before = metrics(tmp_path)
    train(tiny, tmp_path)
    assert metrics(tmp_path) == before


def test_other_settings_are_refused_by_name_when_a_run_goes_on(tiny: Path, finished: Path):
    with pytest.raises(ValueError, match="learning_rate was 0.001 and is 0.01"):
        train(tiny, finished, "--learning_rate", "0.01")
    assert json.loads((finished / "status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objective", "epsilons"], "objective='epsilons' is unknown"),
        (["--objective", "flow", "--beta_start", "0.5"], "beta_start=0.5 has no effect on objective='flow'"),
        (["--resolution", "15"], "no multiple of 2"),
        (["--label_column", "class"], "no column 'class'"),
        (["--validation_labels", "4"], r"validation_labels has 4: the model has the classes 0\.\.3"),
        (["--validation_inference_steps", "2000"], "validation_inference_steps=2000 is above"),
        (["--model_overrides", "{hidden"], "no JSON object"),
        (["--model_overrides", "[1]"], r"\[1\]' is no JSON object"),
        (["--max_grad_norm", "0"], "max_grad_norm=0.0"),
        (["--report_to", "tensorbord"], "report_to='tensorbord' is unknown: choose one of none, "),
        (["--report_to", "dvclive"], "'dvclive' is not installed: run `pip install dvclive`, or choose one of none, "),
        (["--model", "DiT-M/2"], "unknown size 'DiT-M/2'"),
    ],
)
def test_wrong_settings_are_refused_before_the_first_step(tiny: Path, tmp_path: Path, flags: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        train(tiny, tmp_path / "out", *flags)
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.slow
def test_too_slow_an_average_is_warned_of(tiny: Path, tmp_path: Path):
    with pytest.warns(UserWarning, match=r"ema_decay=0.9999 keeps 100.0% of the fresh weights after 1 steps"):
        train(tiny, tmp_path, "--ema_decay", "0.9999", "--max_train_steps", "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "scheduler"),
    [
        ("sample", "DPMSolverMultistepScheduler"),
        ("v_prediction", "DPMSolverMultistepScheduler"),
        ("flow", "FlowMatchEulerDiscreteScheduler"),
        ("flow_sample", "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_each_objective_saves_the_scheduler_that_samples_it(tiny: Path, tmp_path: Path, objective: str, scheduler: str):
    pipeline = DiTPipeline.from_pretrained(train(tiny, tmp_path, "--objective", objective, "--max_train_steps", "1"))
    assert type(pipeline.scheduler).__name__ == scheduler
    assert pipeline.config.prediction_type == {"flow": "flow_prediction"}.get(objective, objective)
    assert not pipeline.transformer.config.learn_sigma


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--gradient_checkpointing"],
        ["--dataloader_num_workers", "2"],
        ["--train_batch_size", "3", "--gradient_accumulation_steps", "2"],
        ["--cache_latents", "100"],
    ],
    ids=lambda flags: flags[0],
)
def test_what_saves_memory_or_time_changes_no_loss(tiny: Path, tmp_path: Path, finished: Path, flags: list[str]):
    train(tiny, tmp_path, *flags)
    losses = [[row["loss"] for row in metrics(folder)] for folder in (tmp_path, finished)]
    np.testing.assert_allclose(*losses, rtol=1e-4)  # sums in another order


@pytest.mark.long
def test_compiled_blocks_change_no_loss_and_no_name_of_a_weight(tiny: Path, tmp_path: Path, finished: Path):
    import torch._dynamo.utils

    train(tiny, tmp_path, "--torch_compile", "--max_train_steps", "3", "--ema_decay", "0.05")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    losses = [[row["loss"] for row in metrics(folder)][:3] for folder in (tmp_path, finished)]
    np.testing.assert_allclose(*losses, rtol=1e-3)  # fused operations round otherwise
    names = [
        set(load_file(folder / "checkpoints" / f"step-0000000{step}" / "model.safetensors"))
        for folder, step in ((tmp_path, 3), (finished, 8))
    ]
    assert names[0] == names[1]


@pytest.mark.slow
def test_bf16_trains_like_float32(tiny: Path, tmp_path: Path, finished: Path):
    train(tiny, tmp_path, "--mixed_precision", "bf16")
    losses = [[row["loss"] for row in metrics(folder)] for folder in (tmp_path, finished)]
    np.testing.assert_allclose(*losses, rtol=2e-2)  # bf16 has 8 bits
    assert losses[0] != losses[1]
    weights = load_file(tmp_path / "checkpoints" / "step-00000008" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}  # master weights


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{"num_classes": 0}, {"class_dropout_prob": 0.0}])
def test_models_without_a_null_class_train_too(tiny: Path, tmp_path: Path, overrides: dict):
    overrides = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **overrides}
    flags = ("--model_overrides", json.dumps(overrides), "--max_train_steps", "2", "--ema_decay", "0.01")
    pipeline = DiTPipeline.from_pretrained(train(tiny, tmp_path, *flags))
    assert not pipeline.transformer.config.has_null_class
    assert Image.open(tmp_path / "samples.png").size == ((64, 64) if overrides.get("num_classes") == 0 else (32, 60))


def test_loss_that_is_not_finite_ends_the_run_and_is_not_saved(tiny: Path, tmp_path: Path, monkeypatch):
    from dit_hf.diffusion import HybridLoss

    monkeypatch.setattr(HybridLoss, "_bound", lambda *arguments: torch.full((6,), float("nan")))
    message = "step 3 was skipped: the loss on ranks .0. is not finite; loss=nan, .*in a row: lower --learning_rate"
    with pytest.raises(FloatingPointError, match=message):
        train(tiny, tmp_path, "--max_skipped_steps", "3")
    assert not (tmp_path / "checkpoints").exists()


def test_another_number_of_images_a_step_is_refused_when_a_run_goes_on(tiny: Path, finished: Path):
    with pytest.raises(ValueError, match="images a step was 6 and is 12"):
        train(tiny, finished, "--train_batch_size", "12")


def launch(tiny: Path, output_dir: Path, *launcher: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in ("MASTER_ADDR", "WORLD_SIZE")}
    command = [sys.executable, "-m", *launcher, str(TRAIN), str(tiny / "tiny.yaml"), "--output_dir", str(output_dir)]
    return subprocess.run([*command, *flags], capture_output=True, text=True, timeout=600, env=environment)


@pytest.mark.long
def test_two_processes_train_on_the_batches_of_one(tiny: Path, tmp_path: Path, finished: Path):
    torchrun = ("torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(trainer.free_port()))
    result = launch(tiny, tmp_path, *torchrun, flags=("--train_batch_size", "3"))
    assert result.returncode == 0, result.stderr
    assert "2 processes on cpu" in result.stderr + result.stdout
    rows, alone = metrics(tmp_path), metrics(finished)
    assert [row["images_seen"] for row in rows] == [row["images_seen"] for row in alone]
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in alone], rtol=1e-4)
    file = Path("checkpoints") / "step-00000008" / "ema.safetensors"
    torch.testing.assert_close(load_file(tmp_path / file), load_file(finished / file), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_launcher_that_starts_fewer_processes_than_asked_for_is_refused(tiny: Path, tmp_path: Path):
    accelerate = ("accelerate.commands.launch", "--num_processes", "2", "--cpu")
    result = launch(tiny, tmp_path, *accelerate)
    assert result.returncode != 0
    assert "1 process started where 2 or more were asked for: use `torchrun" in result.stderr


@pytest.mark.slow
def test_accelerate_launch_uses_all_cores(tiny: Path, tmp_path: Path):
    accelerate = ("accelerate.commands.launch", "--num_processes", "1", "--cpu")
    result = launch(tiny, tmp_path, *accelerate, flags=("--num_threads", "0", "--max_train_steps", "1"))
    assert result.returncode == 0, result.stderr
    assert f"{len(os.sched_getaffinity(0))} threads each" in result.stderr + result.stdout
