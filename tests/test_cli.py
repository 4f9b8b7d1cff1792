"""The command line, run as a user runs it, on a tiny saved pipeline."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from typer.testing import CliRunner

import dit_hf
from dit_hf import cli
from dit_hf.cli.generate import parse_labels
from dit_hf.cli.study import parse_seeds
from dit_hf.conversion import with_scheduler
from dit_hf.flags import in_flags
from dit_hf.generation import image_seed
from dit_hf.sampling.schedulers import SCHEDULERS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a pipeline of 8 x 8 pixels, three classes and no VAE."""
    from diffusers import DDIMScheduler

    config = dit_hf.DiTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=2,
        sample_size=8,
        in_channels=3,
        num_classes=3,
        learn_sigma=False,
    )
    scheduler = DDIMScheduler(clip_sample=False)
    pipeline = dit_hf.DiTPipeline(dit_hf.DiTModel(config), None, scheduler, id2label={0: "cat", 1: "dog", 2: "sea cow"})
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(folder)
    return str(folder)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of `dit-hf ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["dit-hf", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


def test_version_is_the_package_version():
    result = CliRunner().invoke(cli.app, ["--version"])
    assert result.exit_code == 0
    assert result.output == f"dit-hf {dit_hf.__version__}\n"


def test_commands_do_not_speak_of_kernels_that_none_of_them_uses(monkeypatch: pytest.MonkeyPatch, caplog):
    run_main(monkeypatch, "--version")
    # what torchao 0.16 says beside torch 2.13, when PEFT imports it
    logging.getLogger("torchao").warning("Skipping import of cpp extensions due to incompatible torch version 2.13.0")
    logging.getLogger("torchao").warning("a layer was not quantised")
    assert [record.getMessage() for record in caplog.records] == ["a layer was not quantised"]


HEAVY = {"torch", "transformers", "diffusers", "datasets", "accelerate", "huggingface_hub", "numpy", "PIL"}
AS_THE_COMMAND = """
import sys
sys.argv = ["/somewhere/bin/dit-hf", *sys.argv[1:]]
from dit_hf.cli import main
try:
    main()
finally:
    print("modules:", *sys.modules)
"""


def modules_after(code: str, *arguments: str) -> set[str]:
    """Top-level modules that a new interpreter has imported after it ran code which prints them."""
    environment = {**os.environ, "PYTHONPATH": str(Path(dit_hf.__file__).parents[1])}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("modules: ")]
    return {name for name in line.split()[1:] if "." not in name}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], [], ["no-such-command"], ["generate", "--help"], ["generate", "model", "--sed", "1"]],
    ids=" ".join,
)
def test_help_version_and_typing_errors_come_without_heavy_imports(arguments: list[str]):
    assert not HEAVY & modules_after(AS_THE_COMMAND, *arguments)


@pytest.mark.slow
def test_command_that_works_knows_dit_among_the_auto_classes():
    checked = AS_THE_COMMAND.replace(
        "finally:", "finally:\n    from transformers import AutoConfig as A; A.for_model('dit')"
    )
    assert {"torch", "transformers"} <= modules_after(checked, "flops")


@pytest.mark.slow
def test_import_of_the_package_alone_registers_the_auto_classes():
    code = "import sys, dit_hf; from transformers import AutoConfig, AutoModel\n"
    code += "config = AutoConfig.for_model('dit', hidden_size=8, num_attention_heads=2, num_hidden_layers=1)\n"
    code += "print('modules:', type(AutoModel.from_config(config)).__name__)"
    assert modules_after(code) == {"DiTModel"}


@pytest.mark.parametrize("command", [each.name or each.callback.__name__ for each in cli.app.registered_commands])
def test_every_command_has_help_with_an_example(command: str):
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: dit-hf {command} " in result.output


def test_labels_are_ids_and_names():
    assert parse_labels(" 3, sea cow,12,") == [3, "sea cow", 12]
    assert parse_labels("3,10", {"10", "cat"}) == [3, "10"]  # the class that is called 10


def test_digits_that_name_a_class_draw_that_class(model: str, tmp_path: Path):
    pipeline = dit_hf.DiTPipeline.from_pretrained(model)
    digits = dit_hf.DiTPipeline(pipeline.transformer, None, pipeline.scheduler, id2label={0: "0", 1: "10", 2: "2"})
    digits.save_pretrained(tmp_path / "digits")
    common = ["--seed", "5", "--num-inference-steps", "2"]
    for arguments in (["MODEL", "--class-labels", "1"], ["DIGITS", "--class-labels", "10"]):
        folder = str(tmp_path / "digits") if arguments[0] == "DIGITS" else model
        output = str(tmp_path / f"{arguments[0]}.png")
        result = CliRunner().invoke(cli.app, ["generate", folder, *arguments[1:], *common, "--output", output])
        assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "MODEL.png").tobytes() == Image.open(tmp_path / "DIGITS.png").tobytes()
    (tmp_path / "labels.txt").write_text("10\n")
    arguments = ["--labels", str(tmp_path / "labels.txt"), "--npz", str(tmp_path / "one.npz"), *common]
    assert CliRunner().invoke(cli.app, ["generate", str(tmp_path / "digits"), *arguments]).exit_code == 0
    assert np.load(tmp_path / "one.npz")["arr_1"].tolist() == [1]


def test_classes_are_listed_without_loading_the_weights(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    copy = tmp_path / "index-only"
    copy.mkdir()
    (copy / "model_index.json").write_text((Path(model) / "model_index.json").read_text())
    result = CliRunner().invoke(cli.app, ["generate", str(copy), "--list-classes"])
    assert result.output == "   0  cat\n   1  dog\n   2  sea cow\n"


def test_model_without_names_has_no_classes_to_list(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "model_index.json").write_text('{"_class_name": "DiTPipeline"}')
    assert run_main(monkeypatch, "generate", str(tmp_path), "--list-classes") == 1
    assert "has no names of classes: use ids, from 0 on" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, traits in SCHEDULERS.items() if not traits.flow])
def test_scheduler_of_the_option_samples_with_the_betas_of_the_pipeline(model: str, tmp_path: Path, name: str):
    loaded = dit_hf.DiTPipeline.from_pretrained(model)
    changed = with_scheduler(loaded, name)
    assert type(changed.scheduler).__name__ == name
    for field in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type"):
        assert changed.scheduler.config[field] == loaded.scheduler.config[field]
    changed.set_progress_bar_config(disable=True)
    images = changed([1], num_inference_steps=5, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert np.isfinite(images).all()


def test_scheduler_of_flow_matching_samples_a_flow_model_and_no_other(model: str):
    loaded = dit_hf.DiTPipeline.from_pretrained(model)
    with pytest.raises(ValueError, match="'FlowMatchEulerDiscreteScheduler' is no scheduler of diffusers with betas"):
        with_scheduler(loaded, "FlowMatchEulerDiscreteScheduler")
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    trained = dit_hf.DiTPipeline(loaded.transformer, None, flow, prediction_type="flow_prediction")
    changed = with_scheduler(trained, "FlowMatchHeunDiscreteScheduler")
    assert changed.scheduler.config.shift == 3.0
    with pytest.raises(ValueError, match="'DDIMScheduler' is no scheduler of diffusers for flow matching: choose"):
        with_scheduler(trained, "DDIMScheduler")


@pytest.mark.parametrize(
    ("message", "as_flags"),
    [
        ("num_images=0: pass a whole number", "--num-images 0: pass a whole number"),
        ("num_images is missing, see images", "--num-images is missing, see images"),
        ("class_labels=None: pass num_images_per_label", "--class-labels none: pass --num-images-per-label"),
        ("as in vae='my/vae', or pass vae=None", "as in --vae 'my/vae', or pass --vae none"),
        ("labels='x': the labels of labels.txt", "--labels 'x': the labels of labels.txt"),
        ("config.num_images=3 and my_num_images and num_images_seen", None),
        ("learn_sigma=True, out/num_images.txt", None),
        (
            "unknown: choose from fid, num_images, x: set num_images",
            "unknown: choose from fid, num_images, x: set --num-images",
        ),
    ],
)
def test_messages_name_options_as_they_are_typed(message: str, as_flags: str | None):
    options = ["num_images", "num_images_per_label", "class_labels", "vae", "labels"]
    assert in_flags(message, options) == (as_flags or message)


@pytest.mark.parametrize(
    ("arguments", "size", "count"),
    [
        (["--class-labels", "cat"], (8, 8), "1 image"),
        (["--class-labels", "cat,1,sea cow"], (16, 16), "3 images"),  # one place stays white
        (["--class-labels", "cat,1", "--num_images_per_label", "3"], (24, 16), "6 images"),  # one row a class
    ],
)
def test_generate_writes_one_file(model: str, tmp_path: Path, arguments: list[str], size: tuple[int, int], count: str):
    output = tmp_path / "new" / "grid.png"
    steps = ["--num-inference-steps", "2", "--output", str(output)]
    result = CliRunner().invoke(cli.app, ["generate", model, *arguments, *steps])
    assert result.exit_code == 0, result.output
    assert f"wrote {count} to {output}" in result.output
    assert Image.open(output).size == size


def test_generate_draws_many_images_of_labels_in_a_file(model: str, tmp_path: Path):
    import numpy as np
    import torch

    (tmp_path / "labels.txt").write_text("cat\n1\nsea cow\n")
    arguments = ["--labels", str(tmp_path / "labels.txt"), "--num_inference_steps", "2", "--batch_size", "2"]
    arguments += ["--guidance_interval", "0", "0.5"]
    result = CliRunner().invoke(cli.app, ["generate", model, *arguments, "--output_dir", str(tmp_path / "many")])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(cli.app, ["generate", model, *arguments, "--npz", str(tmp_path / "many.npz")])
    assert result.exit_code == 0, result.output
    arrays = np.load(tmp_path / "many.npz")
    assert arrays["arr_1"].tolist() == [0, 1, 2]
    pipeline = dit_hf.DiTPipeline.from_pretrained(model)
    generators = [torch.Generator().manual_seed(image_seed(0, index)) for index in range(3)]
    call = {"num_inference_steps": 2, "guidance_interval": (0, 0.5)}
    expected = pipeline([0, 1], generator=generators[:2], **call).images
    expected += pipeline([2], generator=generators[2:], **call).images
    for index, image in enumerate(expected):
        assert Image.open(tmp_path / "many" / f"{index:06d}.png").tobytes() == image.tobytes()
        assert arrays["arr_0"][index].tobytes() == image.tobytes()


def test_generate_is_the_pipeline_with_the_same_seed(model: str, tmp_path: Path):
    import torch

    output = tmp_path / "out.png"
    arguments = ["--class-labels", "1", "--seed", "5", "--num-inference-steps", "2", "--output", str(output)]
    assert CliRunner().invoke(cli.app, ["generate", model, *arguments]).exit_code == 0
    pipeline = dit_hf.DiTPipeline.from_pretrained(model)
    expected = pipeline([1], num_inference_steps=2, generator=torch.Generator().manual_seed(5)).images[0]
    assert Image.open(output).tobytes() == expected.tobytes()


@pytest.mark.parametrize("policy", [[], ["--position-policy", "interpolate"]], ids=["extend", "interpolate"])
def test_generate_draws_at_another_resolution_as_the_pipeline_does(model: str, tmp_path: Path, policy: list[str]):
    import torch

    arguments = ["--seed", "5", "--num-inference-steps", "2", "--resolution", "12", *policy]
    one, many = ["--class-labels", "1", "--output", str(tmp_path / "a.png")], ["--num-images", "1"]
    many += ["--labels", "balanced", "--npz", str(tmp_path / "a.npz")]
    for kind in (one, many):
        assert CliRunner().invoke(cli.app, ["generate", model, *arguments, *kind]).exit_code == 0
    call = {"height": 12, "width": 12, "position_policy": (policy or ["extend"])[-1], "num_inference_steps": 2}
    pipeline = dit_hf.DiTPipeline.from_pretrained(model)
    expected = pipeline([1], **call, generator=torch.Generator().manual_seed(5)).images[0]
    assert Image.open(tmp_path / "a.png").tobytes() == expected.tobytes()
    assert np.load(tmp_path / "a.npz")["arr_0"].shape == (1, 12, 12, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/folder", "--class-labels", "0"], "/no/such/folder"),
        (["MODEL", "--class-labels", "unicorn"], "unicorn"),
        (["MODEL", "--class-labels", "0, 4"], "--class-labels 4 is outside 0..2, or 3 for no class"),
        (["MODEL", "--class-labels", "0", "--output", "out.xyz"], "no image format"),
        (["MODEL", "--class-labels", "0", "--output", "out.psd"], "no image format that can be written"),
        (
            ["MODEL", "--class-labels", "0", "--num-images", "2"],
            "--num-images counts all images: use --num-images-per-label",
        ),
        (["MODEL", "--num-images-per-label", "2"], "--num-images-per-label needs --class-labels: use --num-images"),
        (["MODEL", "--labels", "random"], "give --output-dir or --npz too"),
        (["MODEL", "--npz", "a.npz", "--output", "a.png"], "--output is for one file"),
        (["MODEL", "--npz", "a.npz", "--output-dir", "a"], "give one of them"),
        (["MODEL", "--npz", "folder", "--num-images", "2"], "must end in .npz"),
        (["MODEL", "--npz", "a.npz"], "--num-images is missing"),
        (["MODEL", "--class-labels", "0", "--scheduler", "DDIM"], "--scheduler DDIM: choose from DDPMScheduler"),
        (["MODEL"], "--class-labels none: the model has 3 classes, pass ids or names"),
        (["MODEL", "--class-labels", "0", "--guidance-scale", "inf"], "--guidance-scale inf: pass a finite number"),
        (["MODEL", "--npz", "a.npz", "--labels", "no-such-file"], "choose from random, balanced, or a text file"),
        (["MODEL", "--class-labels", "0", "--resolution", "9"], "--resolution 9"),
        (["MODEL", "--class-labels", "0", "--position-policy", "extend"], "--position-policy needs --resolution"),
    ],
)
def test_error_is_one_line_and_exit_status_1(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments: list[str], message: str
):
    status = run_main(monkeypatch, "generate", *(model if argument == "MODEL" else argument for argument in arguments))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dit-hf: ")]
    assert status == 1
    assert len(lines) == 1
    assert message in lines[0]


def test_null_class_is_drawn_as_the_pipeline_draws_it(model: str, tmp_path: Path):
    import torch

    output = tmp_path / "out.png"
    arguments = ["--class-labels", "3", "--seed", "5", "--num-inference-steps", "2", "--output", str(output)]
    assert CliRunner().invoke(cli.app, ["generate", model, *arguments]).exit_code == 0
    pipeline = dit_hf.DiTPipeline.from_pretrained(model)
    expected = pipeline(3, num_inference_steps=2, generator=torch.Generator().manual_seed(5)).images[0]
    assert Image.open(output).tobytes() == expected.tobytes()


def test_unknown_option_is_refused(model: str, monkeypatch: pytest.MonkeyPatch):
    assert run_main(monkeypatch, "generate", model, "--no-such-option") == 2


def test_flops_prints_a_table_json_and_the_paper_s_models():
    found = json.loads(CliRunner().invoke(cli.app, ["flops", "DiT-XL/2", "--json"]).output)
    assert found["gmacs"] == pytest.approx(118.64, abs=0.02)
    assert "118.621 GMACs" in CliRunner().invoke(cli.app, ["flops"]).output
    assert len(json.loads(CliRunner().invoke(cli.app, ["flops", "--paper", "--json"]).output)) == 17


def test_flops_of_a_saved_pipeline_are_those_of_its_model(model: str):
    found = json.loads(CliRunner().invoke(cli.app, ["flops", model, "--num-steps", "3", "--json"]).output)
    assert found["parameters"] == dit_hf.DiTPipeline.from_pretrained(model).transformer.num_parameters()
    assert found["gmacs_of_a_sample"] == pytest.approx(3 * found["gmacs"])


def test_table_puts_an_evaluation_under_the_paper_s(tmp_path: Path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"metrics": {"fid": 9.99, "inception_score": 1.5}}))
    lines = CliRunner().invoke(cli.app, ["table", str(file)]).output.splitlines()
    assert lines[-1].split() == ["mine", "9.99", "-", "1.50", "-", "-"]


def test_table_of_a_file_without_metrics_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
):
    (tmp_path / "settings.json").write_text("{}")
    assert run_main(monkeypatch, "table", str(tmp_path / "settings.json")) == 1
    assert "has no metrics: pass a file that dit-hf evaluate --output wrote" in capsys.readouterr().err


def test_seeds_of_a_study_are_whole_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
):
    assert parse_seeds("2, 0") == (2, 0)
    assert run_main(monkeypatch, "study", str(tmp_path), "--seeds", "0;1", "--plan") == 1
    assert "--seeds '0;1': write whole numbers" in capsys.readouterr().err


def test_help_shows_defaults_and_choices_as_they_are_written(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "140")
    generate, convert = (CliRunner().invoke(cli.app, [name, "--help"]).output for name in ("generate", "convert"))
    assert all(f"[default: ({default})]" in generate for default in ("out.png", "1", "32"))
    assert "dit_hf|original|diffusers" in convert


def test_plot_of_no_results_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    assert run_main(monkeypatch, "plot", str(tmp_path / "none.csv")) == 1
    assert "there is no file or folder" in capsys.readouterr().err


def test_training_without_any_setting_says_what_to_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    assert run_main(monkeypatch, "train") == 1
    assert "nothing says what to train on: name a file of settings" in capsys.readouterr().err


def test_generate_draws_without_a_gpu_where_torch_was_built_for_one(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As pip's torch on Linux is: unless asked whether a device is there, torch names the kind it was built for."""
    import torch

    def current_accelerator(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)
    steps = ["--num-inference-steps", "1", "--output", str(tmp_path / "out.png")]
    assert CliRunner().invoke(cli.app, ["generate", model, "--class-labels", "1", *steps]).exit_code == 0
