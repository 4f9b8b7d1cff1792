"""`dit-hf train` and `dit-hf finetune`, and what a wrong setting prints."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fresh_process import dit_hf_command
from PIL import Image

from dit_hf import DiTPipeline, flags
from dit_hf.training.settings import OWN_IMAGES, finetune_arguments, parse_settings
from dit_hf.training.settings.table import TrainSettings

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"


def own_lines(text: str) -> list[str]:
    """What was printed, without what other packages say while they are imported."""
    return [line for line in text.splitlines() if line.strip() and not line.startswith("Skipping import of cpp")]


@pytest.fixture
def photos(tiny: Path, tmp_path: Path) -> Path:
    """Six pictures in two folders."""
    for number in range(6):
        folder = tmp_path / "photos" / ("dog" if number % 2 else "cat")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), (40 * number, 10, 99)).save(folder / f"{number}.png")
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained pipeline of 16 px."""
    from dit_hf.training.run import run

    folder = tmp_path_factory.mktemp("base")
    flags = ["--max_train_steps", "1", "--ema_decay", "0", "--objective", "sample"]
    return run(parse_settings([str(tiny / "tiny.yaml"), "--output_dir", str(folder), *flags]))


def test_the_recipe_for_own_images_is_the_file_s():
    values = yaml.safe_load((CONFIGS / "own_images.yaml").read_text())
    assert values.pop("dataset_name") == "photos"
    assert values.pop("output_dir").startswith("../../out/")
    assert values.pop("init_from") == "../assets/dit-emoji"
    assert values == OWN_IMAGES
    assert OWN_IMAGES["ema_decay"] ** OWN_IMAGES["max_train_steps"] < 1e-3  # nothing of the start remains


def test_a_fine_tuning_takes_the_recipe_and_the_user_s_flags_win(photos: Path):
    settings = parse_settings(finetune_arguments(str(photos), ["--init_from", "a/b", "--max_train_steps", "7"]))
    assert (settings.dataset_name, settings.init_from, settings.output_dir) == (str(photos), "a/b", "out/photos")
    assert settings.max_train_steps == 7
    others = {name: getattr(settings, name) for name in OWN_IMAGES if name != "max_train_steps"}
    assert others == {name: value for name, value in OWN_IMAGES.items() if name != "max_train_steps"}


def test_a_file_replaces_the_recipe(photos: Path, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("init_from: user/dit\nema_decay: 0.5\n")
    settings = parse_settings(finetune_arguments(str(photos), [str(tmp_path / "mine.yaml"), "--seed", "3"]))
    assert (settings.ema_decay, settings.seed, settings.dataset_name) == (0.5, 3, str(photos))
    assert settings.train_batch_size == TrainSettings().train_batch_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--init_from", "a/b"], "nowhere is no folder: pass a folder of images"),
        (["PHOTOS"], "--init_from is missing: name the model to start from"),
        (["PHOTOS", "--init_from", "a/b", "--sed", "1"], "sets '--sed', which is not a setting: '--seed' is"),
    ],
)
def test_a_fine_tuning_without_what_it_needs_is_refused(photos: Path, arguments: list[str], message: str):
    folder, *flags = [str(photos) if argument == "PHOTOS" else argument for argument in arguments]
    with pytest.raises(ValueError, match=message):
        finetune_arguments(folder, flags)


@pytest.mark.slow
def test_a_folder_of_photos_is_learned_by_one_command(photos: Path, base: Path, tmp_path: Path):
    few = ["--max_train_steps", "2", "--ema_decay", "0", "--logging_steps", "1", "--report_to", "none"]
    result = dit_hf_command("finetune", "photos", "--init_from", str(base), *few, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^1 process on cpu, \d+ threads? each, .*, 16 images a step$", result.stderr, re.MULTILINE)
    assert "RANK" not in result.stderr
    out = tmp_path / "out" / "photos"
    pipeline = DiTPipeline.from_pretrained(out / "pipeline")
    assert pipeline.config.id2label == {0: "cat", 1: "dog"}
    assert Image.open(out / "before_after.png").size == (32, 68)  # each image with its name
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["images_seen"] for row in rows] == [16, 32]
    again = dit_hf_command("finetune", "photos", "--init_from", str(base), *few, cwd=tmp_path)
    assert "nothing to do" in again.stderr


@pytest.mark.slow
def test_two_processes_start_without_a_launcher(tiny: Path, tmp_path: Path):
    flags = [str(tiny / "tiny.yaml"), "--output_dir", str(tmp_path / "out"), "--max_train_steps", "2"]
    flags += ["--train_batch_size", "3", "--ema_decay", "0"]
    result = dit_hf_command("train", "--num_processes", "2", *flags)
    assert result.returncode == 0, result.stderr
    assert "[RANK 0] 2 processes on cpu" in result.stdout + result.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["images_seen"] for row in rows] == [6, 12]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [[], ["--num_processes", "2"]], ids=["one", "two"])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rates", "1"], "sets '--learning_rates', which is not a setting: '--learning_rate' is"),
        (["--lr_warmup_steps", "5"], "--lr_warmup_steps 5 has no effect with --lr_scheduler 'constant'"),
    ],
)
def test_a_wrong_setting_is_one_line(tiny: Path, tmp_path: Path, processes: list[str], flags: list[str], message: str):
    result = dit_hf_command("train", *processes, str(tiny / "tiny.yaml"), "--output_dir", str(tmp_path / "out"), *flags)
    assert result.returncode == 1
    (line,) = own_lines(result.stderr)
    assert message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_error_of_the_data_is_one_line_without_a_launcher(tiny: Path, tmp_path: Path):
    shutil.copytree(tiny / "data", tmp_path / "data")
    flags = ["--dataset_name", str(tmp_path / "data"), "--label_column", "class", "--output_dir", str(tmp_path / "out")]
    result = dit_hf_command("train", str(tiny / "tiny.yaml"), *flags)
    assert result.returncode == 1
    assert "has no column 'class'" in own_lines(result.stderr)[-1]
    assert "Traceback" not in result.stderr


FAILING = """
import runpy  # the file alone, because the package imports torch, in each process
end = runpy.run_path({file!r})["exit_with_line"]
end(ValueError("lr_warmup_steps=5 has no effect"), ["lr_warmup_steps"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [["--quiet"], ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]])
def test_launchers_end_with_the_line_of_the_error(tmp_path: Path, launcher: list[str]):
    """As `main` of a training ends. Accelerate's own process adds nothing to one, and the line to its report of two."""
    (tmp_path / "train.py").write_text(FAILING.format(file=flags.__file__))
    ours = {"HF_HOME": str(tmp_path)}  # without a configuration of Accelerate
    command = [sys.executable, "-m", "accelerate.commands.launch", *launcher, str(tmp_path / "train.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, **ours})
    assert result.returncode == 1
    if launcher == ["--quiet"]:
        ours = [line for line in own_lines(result.stderr) if "The following values were not passed" not in line]
        assert "error: --lr_warmup_steps 5 has no effect" in ours
        assert "Traceback" not in result.stderr
    else:
        assert re.search(r"traceback : error: rank \d: --lr_warmup_steps 5 has no effect", result.stderr)
        assert "To enable traceback" not in result.stderr
