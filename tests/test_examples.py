"""The examples, run as a user runs them, and the weights that the repository ships."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import AutoencoderKL
from fresh_process import run_script
from packaging.requirements import Requirement
from PIL import Image

from dit_hf import DiTPipeline

EXAMPLES = Path(__file__).parents[1] / "examples"
ASSETS = EXAMPLES / "assets"


@pytest.mark.parametrize("name", ["train_dit.py", "evaluate_dit.py"])
def test_header_of_a_script_asks_for_what_the_package_offers_and_needs(name: str):
    """The pattern of the block is the one that PEP 723 prints as its reference implementation."""
    block = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    [match] = [match for match in re.finditer(block, (EXAMPLES / name).read_text()) if match["type"] == "script"]
    header = tomllib.loads("".join(line[2:] for line in match["content"].splitlines(keepends=True)))
    setup = (EXAMPLES.parent / "setup.py").read_text()
    extras = re.search(r"^EXTRAS = (\{.*?^\})", setup, re.MULTILINE | re.DOTALL)[1]
    [requirement] = map(Requirement, header["dependencies"])
    assert f'name="{requirement.name}"' in setup
    assert requirement.extras <= ast.literal_eval(extras).keys()
    assert re.search(r'python_requires="(.*)"', setup)[1] == header["requires-python"]


def load_example(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def test_training_takes_the_emoji_only_where_no_data_set_is_named():
    with_settings = load_example("train_dit").with_settings
    for arguments in (["--dataset_name", "photos"], ["--dataset_name=photos"], ["mine.yaml"]):
        assert with_settings(arguments) == arguments
    assert Path(with_settings(["--seed", "1"])[0]).name.startswith("emoji_")
    assert with_settings(["--seed", "1"])[1:] == ["--seed", "1"]


@pytest.mark.slow
def test_shipped_vae_rebuilds_drawings_it_has_not_seen():
    train_vae = load_example("train_vae")
    validation = train_vae.load_split(train_vae.VAESettings(), "validation")
    vae = AutoencoderKL.from_pretrained(ASSETS / "vae-emoji")
    assert validation.shape == (302, 3, 64, 64)
    decibel = train_vae.psnr(train_vae.reconstruct(vae, validation), validation)
    train = train_vae.load_split(train_vae.VAESettings(), "train")
    linear = train_vae.psnr(train_vae.pca_reconstruction(train, validation, 4, 4), validation)
    assert linear == pytest.approx(23.41, abs=0.01)
    assert decibel >= 29
    assert decibel >= linear + 5
    assert decibel == pytest.approx(31.65, abs=0.05)  # what its card says


@pytest.mark.slow
def test_shipped_vae_scales_latents_to_unit_deviation():
    train_vae = load_example("train_vae")
    images = train_vae.load_split(train_vae.VAESettings(), "validation")
    vae = AutoencoderKL.from_pretrained(ASSETS / "vae-emoji")
    measured = train_vae.measure_scaling_factor(vae, images)
    assert vae.config.scaling_factor == pytest.approx(measured, rel=0.05)  # measured on the training images


def test_psnr_and_patch_pca_of_known_images():
    train_vae = load_example("train_vae")
    black, grey = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.full((2, 3, 8, 8), 51, dtype=torch.uint8)
    assert train_vae.psnr(black, grey) == pytest.approx(20 * 0.69897, abs=1e-3)  # 20 log10(255 / 51)
    images = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    every_number_kept = train_vae.pca_reconstruction(images, images, downsampling=4, num_components=48)
    assert torch.equal(every_number_kept, images)


def test_shipped_files_are_as_small_as_promised():
    def megabytes(folder: str) -> float:
        return sum(path.stat().st_size for path in (ASSETS / folder).rglob("*") if path.is_file()) / 1e6

    assert megabytes("emoji") < 12
    assert megabytes("vae-emoji") < 4
    assert megabytes("dit-emoji") < 34  # the DiT's 30 and the VAE's 2.6, which makes the pipeline complete


@pytest.mark.slow
def test_shipped_model_draws_what_it_is_asked_for():
    demo = load_example("demo")
    pipeline = DiTPipeline.from_pretrained(ASSETS / "dit-emoji")
    pipeline.set_progress_bar_config(disable=True)
    names = demo.read_classes("classes_300.txt")
    assert demo.score(pipeline, names, 150)[0].recognised >= 142
    as_called_without_settings = {"guidance_scale": 4.0, "num_inference_steps": 25}
    assert demo.score(pipeline, names, 50, **as_called_without_settings)[0].recognised >= 43


@pytest.mark.slow
def test_three_classes_are_learned_from_scratch(tmp_path: Path):
    """The first three of the demo's ten classes by its recipe, in a fifth of its steps; the demo has its own test."""
    demo = load_example("demo")
    names = demo.read_classes("classes_10.txt")[:3]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    few = ["--class_names_file", str(tmp_path / "classes.txt"), "--max_train_steps", "80", "--lr_warmup_steps", "10"]
    demo.train(tmp_path / "out", *few, "--ema_decay", "0.91", "--num_threads", "1")
    pipeline = DiTPipeline.from_pretrained(tmp_path / "out" / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert demo.score(pipeline, names, 30)[0].recognised >= 29


@pytest.mark.slow
def test_training_without_a_data_set_takes_the_embedded_one_and_tracks_it(tmp_path: Path):
    few = ["--max_train_steps", "2", "--ema_decay", "0.01", "--logging_steps", "1", "--num_threads", "1"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", str(EXAMPLES / "train_dit.py")]
    result = subprocess.run([*launch, "--output_dir", str(tmp_path), *few], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "emoji_10.yaml" in result.stdout or torch.cuda.is_available()
    assert list((tmp_path / "logs").rglob("events.out.tfevents*"))
    assert DiTPipeline.from_pretrained(tmp_path / "pipeline").get_label_ids("frog") == [0]


@pytest.mark.slow
def test_new_classes_are_learned_and_old_ones_kept_from_a_handful_of_images(tmp_path: Path):
    example = load_example("finetune_dit")
    few = ["--output_dir", str(tmp_path), "--report_to", "none", "--num_threads", "1", "--max_train_steps", "120"]
    adapter = ["--lora_rank", "16", "--learning_rate", "3e-3", "--ema_decay", "0.9", "--seed", "1"]
    adapter += ["--train_batch_size", "16"]
    scores = example.main([*few, *adapter], new_classes=["blue heart", "alien"], num_old=8)
    assert scores["new"][0] == 0
    assert scores["new"][1] >= 7  # of 10
    assert scores["old"][1] >= scores["old"][0] - 2  # of 8
    assert Image.open(tmp_path / "before_after.png").size == (2 * 64, 5 * (64 + 14))  # 14 pixels for the names
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 2e6
    assert DiTPipeline.from_pretrained(tmp_path / "pipeline").get_label_ids(["frog", "alien"]) == [19, 300]


@pytest.mark.long
def test_demo_shows_both_models_and_what_was_measured(tmp_path: Path):
    subprocess.run([sys.executable, str(EXAMPLES / "demo.py"), "--output_dir", str(tmp_path)], check=True)
    text = (tmp_path / "README.md").read_text()
    shipped, trained = map(int, re.findall(r"(\d+) of \d+ samples nearest to their own class", text))
    assert shipped >= 285
    assert trained >= 95
    assert json.loads((tmp_path / "training" / "metrics.jsonl").read_text().splitlines()[-1])["step"] <= 400
    for picture, size in (("shipped.png", (1280, 960)), ("trained.png", (640, 640))):
        assert f"]({picture})" in text
        assert Image.open(tmp_path / picture).size == size
    assert (tmp_path / "training" / "loss.png").is_file()


@pytest.mark.slow
def test_train_vae_saves_a_vae_with_its_report(tmp_path: Path):
    few = ["--max_train_steps", "2", "--validation_steps", "2", "--resolution", "32"]
    run_script(EXAMPLES / "train_vae.py", "--output_dir", str(tmp_path), *few).check_returncode()
    report = json.loads((tmp_path / "report.json").read_text())
    vae = AutoencoderKL.from_pretrained(tmp_path)
    assert vae.config.scaling_factor == pytest.approx(report["scaling_factor"])
    train_vae = load_example("train_vae")
    settings = train_vae.VAESettings(resolution=32)
    train, validation = (train_vae.load_split(settings, split) for split in ("train", "validation"))
    linear = train_vae.psnr(train_vae.pca_reconstruction(train, validation, 4, 4), validation)
    assert report["psnr_patch_pca_db"] == pytest.approx(linear, abs=0.01)
    assert Image.open(tmp_path / "reconstructions.png").size == (320, 256)


@pytest.mark.slow
def test_shipped_model_is_measured_beside_real_drawings(tmp_path: Path):
    few = ["--num_images", "20", "--num_inference_steps", "2", "--num_jitters", "0", "--output_dir", str(tmp_path)]
    card = tmp_path / "README.md"
    card.write_text((ASSETS / "dit-emoji" / "README.md").read_text())
    result = run_script(EXAMPLES / "evaluate_emoji.py", *few, "--card", str(card))
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("20 images, features of efficientnet-lite0") == 4
    assert "FID" not in result.stdout
    distance = json.loads((tmp_path / "model.json").read_text())["metrics"]["fd"]
    assert f"| fd | {round(distance, 4)} |" in card.read_text()
    # without jitters, "the same drawings" are the reference's
    assert (
        json.loads((tmp_path / "the same drawings, jittered otherwise.json").read_text())["metrics"]["precision"] == 1
    )
