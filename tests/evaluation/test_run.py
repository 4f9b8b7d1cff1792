"""`dit-hf evaluate` as a user runs it, on a tiny pipeline and an extractor in a file of one's own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from huggingface_hub import ModelCard
from PIL import Image

from dit_hf import DiTConfig, DiTModel, DiTPipeline, cli
from dit_hf.cli.evaluate import METRIC_NAMES
from dit_hf.evaluation import METRICS, load_reference, run
from dit_hf.evaluation.sources import SourceOptions, open_batches
from dit_hf.generation import draw_labels

TINY = f"{Path(__file__).with_name('conftest.py')}:TinyExtractor"


def test_metrics_of_the_command_are_those_of_the_table():
    assert METRIC_NAMES == tuple(METRICS)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "sample_size": 8, "in_channels": 3}
    transformer = DiTModel(DiTConfig(**sizes, patch_size=2, num_classes=3, learn_sigma=False))
    for parameter in transformer.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    folder = tmp_path_factory.mktemp("pipeline")
    DiTPipeline(transformer, None, DDIMScheduler(clip_sample=False), id2label={0: "a", 1: "b", 2: "c"}).save_pretrained(
        folder
    )
    (folder / "README.md").write_text(
        "---\nlibrary_name: diffusers\n---\n# A model\n\n## Evaluation\n\nNone was made.\n\n## Limits\n\nMany.\n"
    )
    return str(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory, pictures) -> Path:
    """The same two sets as files in ADM's form, and the first as folders of classes."""
    folder = tmp_path_factory.mktemp("files")
    labels = np.arange(115) % 3
    np.savez(folder / "reference.npz", pictures[:115], labels)
    np.savez(folder / "samples.npz", pictures[115:], labels)
    for number, (image, label) in enumerate(zip(pictures[:115], labels, strict=True)):
        (folder / "images" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "images" / str(label) / f"{number:03d}.png")
    return folder


def command(monkeypatch, capsys, *arguments: str | Path, ok: bool = True) -> str:
    """What `dit-hf evaluate ARGUMENTS` prints."""
    monkeypatch.setattr(sys, "argv", ["dit-hf", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    assert bool(stop.value.code) != ok, printed.err
    return printed.out if ok else printed.err


def test_samples_in_a_file_are_compared_with_a_file_and_a_folder(files, monkeypatch, capsys, tmp_path):
    options = ["--samples", files / "samples.npz", "--extractor", TINY, "--kid-subset-size", "50"]
    results = []
    for reference in ("reference.npz", "images"):
        output = tmp_path / f"{reference}.json"
        table = command(monkeypatch, capsys, *options, "--reference", files / reference, "--output", output)
        assert "115 images, features of tiny" in table
        results.append(json.loads(output.read_text()))
    first, second = (result["metrics"] for result in results)
    assert first.keys() == {"fd", "sfd", "inception_score", "precision", "recall", "density", "coverage",
                            "kd", "kd_std", "class_fd"}  # fmt: skip
    order_free = [name for name in first if name not in ("kd", "kd_std", "inception_score")]
    assert {name: first[name] for name in order_free} == pytest.approx({name: second[name] for name in order_free})
    assert results[0]["settings"]["samples"]["source"].endswith("samples.npz")


def test_metric_that_is_left_out_names_the_flag_that_helps(files, monkeypatch, capsys):
    compared = ["--samples", files / "samples.npz", "--reference", files / "reference.npz", "--extractor", TINY]
    table = command(monkeypatch, capsys, *compared)
    assert "--kid-subset-size 1000 is more than the 115 images of the smaller set: set it lower" in table


def test_model_is_sampled_measured_and_its_card_written(model, files, monkeypatch, capsys, tmp_path):
    options = ["--model", model, "--num-images", "20", "--reference", files / "reference.npz", "--extractor", TINY]
    options += ["--num-inference-steps", "2", "--labels", "balanced", "--seed", "5", "--batch-size", "6"]
    options += ["--metrics", "fid,precision_recall", "--output", tmp_path / "result.json"]
    card = Path(model) / "README.md"
    printed = command(monkeypatch, capsys, *options, "--num-seeds", "2", "--card", card)
    result = json.loads((tmp_path / "result.json").read_text())
    fd = result["metrics"]["fd"]
    assert f"{fd:.4f}" in printed
    samples = result["settings"]["samples"]
    assert [each["seed"] for each in samples] == [5, 6]
    expected = {"label_scheme": "balanced", "num_inference_steps": 2, "guidance_scale": 1.0, "rounding": "nearest"}
    expected |= {"scheduler": "DDIMScheduler", "num_images": 20, "model": model}
    assert expected.items() <= samples[0].items()
    assert np.mean(result["settings"]["each"]["fd"]) == pytest.approx(fd)
    assert result["spread"]["fd"] == pytest.approx(np.std(result["settings"]["each"]["fd"], ddof=1))
    written = ModelCard.load(card)
    [metric] = [each for each in written.data.eval_results if each.metric_type == "fd"]
    assert metric.metric_value == round(fd, 4)
    assert metric.metric_args["features"] == "tiny"
    assert metric.metric_args["seed"] == "5, 6"
    assert f"| fd | {round(fd, 4)} |" in written.text
    assert "None was made." not in written.text
    assert written.text.rstrip().endswith("## Limits\n\nMany.")
    assert str(files) not in written.content  # no path of this machine


def test_one_seed_gives_the_images_that_generate_writes(model, files, monkeypatch, capsys, tmp_path):
    """`evaluate --model` and `generate` followed by `evaluate --samples` agree."""
    of_model = ["--num-images", "20", "--num-inference-steps", "2", "--seed", "3", "--guidance-scale", "1"]
    common = ["--reference", str(files / "reference.npz"), "--extractor", TINY, "--metrics", "fid,sfid"]
    command(monkeypatch, capsys, "--model", model, *of_model, *common, "--output", tmp_path / "model.json")
    monkeypatch.setattr(
        sys, "argv", ["dit-hf", "generate", model, *of_model, "--npz", str(tmp_path / "s.npz"), "--batch-size", "20"]
    )
    with pytest.raises(SystemExit):
        cli.main()
    capsys.readouterr()
    command(monkeypatch, capsys, "--samples", tmp_path / "s.npz", *common, "--output", tmp_path / "file.json")
    first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("model", "file"))
    assert first["metrics"] == pytest.approx(second["metrics"], rel=1e-3)  # batches of 20 and 64 round differently


def test_batches_of_a_model_carry_their_own_labels(model):
    pipeline = DiTPipeline.from_pretrained(model)
    batches, settings = run.model_batches(pipeline, 20, seed=1, batch_size=6, num_inference_steps=1, guidance_scale=1.0)
    found = [labels for _, labels in batches]
    assert [len(labels) for labels in found] == [6, 6, 6, 2]
    assert np.concatenate(found).tolist() == draw_labels("random", 20, 3, 1)
    assert settings["latents"] == 3


def test_each_seed_and_the_reference_have_their_own_folder(model, files, monkeypatch, capsys, tmp_path):
    options = ["--model", model, "--num-images", "8", "--num-inference-steps", "1", "--num-seeds", "2", "--seed", "5"]
    options += ["--reference", files / "reference.npz", "--extractor", TINY, "--metrics", "fid", "--dtype", "bfloat16"]
    command(monkeypatch, capsys, *options, "--work-dir", tmp_path / "work", "--output", tmp_path / "result.json")
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["reference", "seed-5", "seed-6"]
    samples = json.loads((tmp_path / "result.json").read_text())["settings"]["samples"]
    assert [each["dtype"] for each in samples] == ["bfloat16"] * 2


def test_extractor_in_a_file_gets_its_weights():
    assert run.ExtractorChoice(TINY, "other").open().name == "other"


def test_statistics_are_saved_of_as_many_images_as_asked(files, monkeypatch, capsys, tmp_path, extractor):
    options = ["--samples", files / "images", "--extractor", TINY, "--num-images", "30", "--save-reference"]
    command(monkeypatch, capsys, *options, tmp_path / "statistics.npz")
    assert load_reference(tmp_path / "statistics.npz", extractor).moments["pool"].num == 30
    assert "must end in .npz" in command(monkeypatch, capsys, *options, tmp_path / "statistics.txt", ok=False)


def test_features_of_a_reference_are_kept_in_the_work_folder(files, tmp_path, extractor):
    for _ in range(2):
        load_reference(files / "reference.npz", extractor, tmp_path)
    assert extractor.num_images == 115  # seen once


def test_saved_statistics_serve_as_a_reference(files, monkeypatch, capsys, tmp_path):
    saved = tmp_path / "statistics.npz"
    options = ["--samples", files / "images", "--extractor", TINY, "--save-reference", saved]
    assert command(monkeypatch, capsys, *options).startswith("wrote")
    printed = [
        command(monkeypatch, capsys, "--samples", files / "samples.npz", "--reference", reference, "--extractor", TINY,
                "--metrics", "fid,sfid,precision_recall")
        for reference in (saved, files / "images")
    ]  # fmt: skip
    assert printed[0] == printed[1]


def test_file_of_images_is_not_cropped(files):
    with pytest.raises(ValueError, match=r"holds images of \(8, 8\), which are not cropped: leave out resolution=5"):
        open_batches(str(files / "samples.npz"), SourceOptions(resolution=5))


def test_data_set_is_streamed_and_cropped(monkeypatch, capsys, files):
    emoji = Path(__file__).parents[2] / "examples" / "assets" / "emoji"
    [images, labels] = next(iter(open_batches(str(emoji), SourceOptions(5, 32, "validation"))))
    assert images.shape == (5, 32, 32, 3)
    assert len(labels) == 5
    options = ["--samples", emoji, "--split", "validation", "--resolution", "8", "--num-images", "30"]
    printed = command(monkeypatch, capsys, *options, "--reference", files / "reference.npz", "--extractor", TINY)
    assert "30 images" in printed
    assert "in one of the two sets only" in printed  # of the distance within classes


COMPARED = ["--samples", "samples.npz", "--reference", "reference.npz", "--extractor", TINY]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "--samples and --model: give one of them"),
        (["--samples", "samples.npz", "--model", "user/b"], "--samples and --model: give one of them"),
        (["--samples", "samples.npz"], "--reference and --save-reference: give one of them"),
        ([*COMPARED, "--seed", "1"], "--seed is for --model"),
        (["--model", "user/a", "--num-images", "3", "--save-reference", "b.npz"], "--model is for comparing"),
        ([*COMPARED[:4], "--extractor", TINY + "s"], "has no 'TinyExtractors'"),
        (
            ["--samples", "images", "--reference", "reference.npz", "--num-images", "200"],
            "--num-images 200 is outside 1..115",
        ),
        (
            ["--model", "a/b", "--reference", "reference.npz"],
            "--num-images is missing: give the number of images to draw, or a file of labels",
        ),
    ],
)
def test_what_cannot_be_done_is_an_error_in_one_line(options, complaint, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    options = options if "--extractor" in options else [*options, "--extractor", TINY]
    error = command(monkeypatch, capsys, *options, ok=False)
    assert complaint in error
    assert error.count("\n") == 1


def test_errors_of_the_samples_come_before_the_work_on_the_reference(files, monkeypatch, capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    options = ["--reference", files / "reference.npz", "--extractor", TINY, "--samples"]
    for samples in (tmp_path, files / "samples.npz"):
        resolution = [] if samples == tmp_path else ["--resolution", "5"]
        error = command(monkeypatch, capsys, *options, samples, *resolution, ok=False)
        assert error.count("\n") == 1  # no bar of progress


def test_warning_is_one_line_in_the_words_of_the_command(files, monkeypatch, capsys, tmp_path):
    large = np.load(files / "reference.npz")["arr_0"].repeat(2, 1).repeat(2, 2)
    np.savez(tmp_path / "large.npz", large)
    command_line = ["--samples", files / "samples.npz", "--reference", tmp_path / "large.npz", "--extractor", TINY]
    monkeypatch.setattr(sys, "argv", ["dit-hf", "evaluate", *map(str, command_line), "--metrics", "fid"])
    with pytest.raises(SystemExit):
        cli.main()
    [line] = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line.startswith("dit-hf: warning: the samples are images of 8 x 8 pixels, the reference of 16 x 16")


# What is refused while the command line is parsed, before any import that takes seconds and before any download.
EARLY = [
    ([*COMPARED[:4], "--metrics", "fid,fidd"], "metric 'fidd' is unknown: choose from fid, sfid, inception_score"),
    ([*COMPARED[:4], "--extractor", "vgg"], "extractor 'vgg' is unknown: choose inception, dinov2, or a class"),
    (
        [*COMPARED[:4], "--extractor", "mine.py:Net"],
        "there is no file mine.py, which the extractor 'mine.py:Net' names",
    ),
    (["--samples", "nowhere.npz", *COMPARED[2:]], "there is no file or folder nowhere.npz"),
    (["--samples", "./nowhere", *COMPARED[2:]], "there is no file or folder ./nowhere"),
    (["--samples", "samples.npz", "--reference", "a/b/c"], "there is no file or folder a/b/c"),
    (["--model", "/no/model", "--reference", "reference.npz"], "there is no file or folder /no/model"),
    ([*COMPARED, "--weights", "../weights.pth"], "there is no file or folder ../weights.pth"),
    ([*COMPARED, "--card", "CARD.md"], "CARD.md is no file: name the model's README.md"),
    (["--samples", "samples.npz", "--save-reference", "real.json"], "real.json: a file of statistics must end in .npz"),
    (
        ["--model", "a/b", "--labels", "labels.txt"],
        "--labels 'labels.txt': choose from random, balanced, or a text file",
    ),
]

RUN = """
import sys
sys.argv = ["/bin/dit-hf", "evaluate", *sys.argv[1:]]  # imported by another program, `dit_hf` imports torch at once
from dit_hf.cli import main
try:
    main()
except SystemExit as stop:
    print(stop.code, "torch" in sys.modules, "transformers" in sys.modules, file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("options", "complaint"), EARLY, ids=[options[-1] for options, _ in EARLY])
def test_names_and_missing_files_are_errors_before_any_work(options, complaint, files, monkeypatch):
    monkeypatch.chdir(files)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"))
    done = subprocess.run([sys.executable, "-c", RUN, *options], capture_output=True, text=True)
    error, status = done.stderr.splitlines()
    assert error.startswith(f"dit-hf: {complaint}")
    assert status == "1 False False"
