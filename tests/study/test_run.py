"""A whole study in seconds: complete, the same when it is stopped or killed, and nothing twice."""

import contextlib
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import dit_hf.study.run as run_module
import dit_hf.study.train as train_module
from dit_hf import cli
from dit_hf.analysis import read_rows
from dit_hf.analysis.results import REAL
from dit_hf.analysis.selection import MODELS
from dit_hf.study.recipe import Recipe, Variant, measurements
from dit_hf.study.run import Study, missing
from dit_hf.study.train import Training

UNREPEATABLE = {"train_seconds": 0.0, "train_cpu_seconds": 0.0, "sample_seconds": 0.0, "date": "", "commit": ""}


def comparable(folder) -> list:
    rows = [replace(row, **UNREPEATABLE) for row in read_rows(folder / "results.csv")]
    return [row if row.second_extractor else replace(row, second_distance=0.0) for row in rows]  # NaN equals nothing


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "models",
    [
        pytest.param(("S/8", "B/2", "XL/4"), marks=pytest.mark.slow, id="three sizes"),
        pytest.param(MODELS, marks=pytest.mark.long, id="all sizes"),
    ],
)
def test_study_measures_everything_once(recipe, tmp_path, models):
    recipe = replace(recipe, models=tuple(models))
    study = Study(recipe, tmp_path)
    assert "in all" in study.plan()
    study.run()
    rows = read_rows(tmp_path / "results.csv")
    assert [row.key for row in rows if row.model != REAL] == measurements(recipe)
    assert missing(recipe, tmp_path / "results.csv") == []
    assert {row.num_samples for row in rows if row.model == REAL} == {8, 9, 10, 20}
    last = [row for row in rows if row.images_seen == 64]
    for name in ("train_seconds", "train_cpu_seconds", "parameters", "gmacs"):
        assert all(getattr(row, name) > 0 for row in last)
    assert len(list((tmp_path / "samples").glob("*.npz"))) == len({row.key.name for row in rows if row.model != REAL})

    before = (tmp_path / "results.csv").read_bytes()
    study.run()
    assert (tmp_path / "results.csv").read_bytes() == before


@pytest.mark.slow
def test_study_that_was_stopped_and_killed_ends_with_the_same_numbers(recipe, tmp_path, monkeypatch):
    # five trainings of four steps without a stop
    recipe = replace(recipe, models=("S/8", "S/4"), blocks_model="S/8", checkpoints=(128,))
    Study(recipe, tmp_path / "whole").run()

    def interrupt(module: object, name: str, every: int) -> list[int]:
        """Let the function do its work, and raise after every so many calls."""
        work, calls = getattr(module, name), [0]

        def killed(*arguments, **options):
            result = work(*arguments, **options)
            calls[0] += 1
            if calls[0] % every == 0:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(module, name, killed)
        return calls

    monkeypatch.setattr(train_module, "SAVE_SECONDS", 0)  # a checkpoint each step
    saved = interrupt(train_module, "write_checkpoint", every=3)
    appended = interrupt(run_module, "append_rows", every=4)

    class Deadline(float):
        """Passes at the seventh look at the clock, whatever that shows."""

        looks = 0

        def __le__(self, now: float) -> bool:
            self.looks += 1
            return self.looks >= 7

    stopped = tmp_path / "stopped"
    while not (stopped / "results.csv").is_file() or missing(recipe, stopped / "results.csv"):
        with contextlib.suppress(KeyboardInterrupt):
            Study(recipe, stopped).run(Deadline())
    assert saved[0] == 5 * 4  # no step twice: five trainings of four
    assert appended[0] == len(comparable(tmp_path / "whole"))  # no measurement twice
    assert comparable(stopped) == comparable(tmp_path / "whole")
    for file in sorted((tmp_path / "whole").glob("checkpoints/*/step-*/*.safetensors")):
        weights, others = load_file(file), load_file(stopped / file.relative_to(tmp_path / "whole"))
        assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_folder_of_another_recipe_or_of_a_longer_training_is_refused(recipe, tmp_path):
    study = Study(recipe, tmp_path)
    variant = Variant("S/8", "adaln_zero", 0)
    assert study._training(variant).advance(64, lambda: False)
    with pytest.raises(ValueError, match="has seen 64 images, too many for a measurement after 32: choose a new"):
        study._training(variant).advance(32, lambda: False)
    other, folder = replace(recipe, learning_rate=1.0), tmp_path / "checkpoints" / variant.folder
    with pytest.raises(ValueError, match="choose a new folder"):
        Training(other, variant, study.train, study.latents, folder, study.accelerator)


@pytest.mark.slow
def test_checkpoint_without_additions_is_continued_by_a_recipe_without_them_only(recipe, tmp_path):
    study, variant = Study(recipe, tmp_path), Variant("S/8", "adaln_zero", 0)
    assert study._training(variant).advance(32, lambda: False)
    progress = next(tmp_path.glob("checkpoints/*/step-*/progress.json"))
    record = json.loads(progress.read_text())
    older = {name: value for name, value in record["settings"].items() if name not in ("additions", "cpu_seconds")}
    progress.write_text(json.dumps({**record, "settings": older}))
    manifest = json.loads((progress.parent / "manifest.json").read_text())
    content = progress.read_bytes()
    manifest["files"][progress.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (progress.parent / "manifest.json").write_text(json.dumps(manifest))

    def training(recipe: Recipe) -> Training:
        return Training(recipe, variant, study.train, study.latents, progress.parents[1], study.accelerator)

    continued = training(recipe)
    assert continued.progress.images_seen == 32
    assert math.isnan(continued.cpu_seconds)
    with pytest.raises(ValueError, match="timestep_shift.*choose a new folder"):
        training(replace(recipe, additions={"timestep_shift": 3.0}))


@pytest.mark.slow
def test_a_technique_that_needs_images_gets_those_that_the_latents_were_made_of(recipe, tmp_path):
    encoder = Path(__file__).parents[1] / "training" / "techniques" / "encoders.py"
    additions = {"repa_encoder": f"{encoder}:MeanColour", "repa_block": 1, "repa_width": 8}
    study = Study(replace(recipe, models=("S/4",), additions=additions), tmp_path)
    training = study._training(Variant("S/4", "adaln_zero", 0))
    batch = next(training._batches())
    pixels = study.latents.decode(batch.x_0)  # (B, 1, S, S) in 0..255
    torch.testing.assert_close((batch.extras["images"] + 1) * 127.5, pixels.float().expand(-1, 3, -1, -1))
    before = training.techniques.modules["repa"][0].weight.clone()
    assert training.advance(64, lambda: False)
    assert not torch.equal(training.techniques.modules["repa"][0].weight, before)


QUADRANTS = """
class Quadrants:
    name, taps, settings = "quadrants", {"pool": 4}, {"unit": "mean grey"}

    def __call__(self, images):  # (B, H, W, 3)
        grey = images.float().mean(3)[:, None]
        return {"pool": __import__("torch").nn.functional.adaptive_avg_pool2d(grey, 2).flatten(1)}
"""


def quadrant_means(images: torch.Tensor) -> np.ndarray:
    """Return the mean grey of the four quarters of images (N, 1, 16, 16), float64 (N, 4)."""
    x = images[:, 0].double().numpy()
    return np.stack([x[:, a : a + 8, b : b + 8].mean((1, 2)) for a in (0, 8) for b in (0, 8)], axis=1)


@pytest.mark.slow
def test_second_distance_is_measured_beside_the_first_and_added_where_it_lacks(recipe, tmp_path):
    (tmp_path / "quadrants.py").write_text(QUADRANTS)
    recipe = replace(recipe, models=("S/8",), guidance_scales=(), sampling_steps=())
    second = replace(recipe, second_extractor=f"{tmp_path / 'quadrants.py'}:Quadrants")
    Study(second, tmp_path / "both").run()
    Study(recipe, tmp_path / "later").run()
    first = comparable(tmp_path / "later")
    Study(second, tmp_path / "later").run()
    both, filled = comparable(tmp_path / "both"), comparable(tmp_path / "later")
    for before, after, whole in zip(first, filled, both, strict=True):
        assert replace(after, second_distance=0.0, second_extractor="") == before
        if before.images_seen == 32:  # whose checkpoint is no longer there
            assert after.second_extractor == ""
        else:
            assert after == whole
    real, study = next(row for row in both if row.num_samples == 20), Study(second, tmp_path / "both")
    (m_1, c_1), (m_2, c_2) = (
        (x.mean(0), np.cov(x, rowvar=False)) for x in map(quadrant_means, (study.train.images, study.test.images))
    )
    root = scipy.linalg.sqrtm(c_1 @ c_2).real
    assert real.second_distance == pytest.approx(((m_1 - m_2) ** 2).sum() + np.trace(c_1 + c_2 - 2 * root), rel=1e-3)
    assert real.second_extractor == "quadrants, 4 features, reference first 5000 training images, unit mean grey"
    (tmp_path / "quadrants.py").write_text(QUADRANTS.replace("mean grey", "grey"))
    with pytest.raises(ValueError, match="has second distances of quadrants.*mean grey.*choose a new folder"):
        Study(second, tmp_path / "both")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "sampler"),
    [
        ("flow", "FlowMatchEulerDiscreteScheduler"),
        ("flow_sample", "FlowMatchEulerDiscreteScheduler"),
        ("epsilon", "DDIM"),
    ],
)
def test_every_objective_is_sampled_by_its_own_kind_of_scheduler(recipe, tmp_path, objective, sampler):
    recipe = replace(recipe, objective=objective, models=("S/8",), checkpoints=(32,))
    study = Study(recipe, tmp_path)
    study._measure(measurements(recipe)[0], float("inf"))
    row = read_rows(tmp_path / "results.csv")[0]
    assert (row.sampler, row.recipe) == (sampler, recipe.summary)


@pytest.mark.slow
def test_additions_reach_the_model_the_objective_the_optimiser_and_the_techniques(recipe, tmp_path):
    additions = {
        "mlp": "swiglu", "timestep_density": "logit_normal", "logit_normal_mean": 0.8, "optimizer": "muon",
        "muon_learning_rate": 0.02, "adam_weight_decay": 0.1, "min_snr_gamma": 5.0, "max_grad_norm": 2.0,
    }  # fmt: skip
    study = Study(replace(recipe, objective="epsilon", additions=additions), tmp_path)
    training = study._training(Variant("S/8", "adaln_zero", 0))
    assert training.advance(32, lambda: False)
    assert training.config.mlp == "swiglu"
    assert training.objective.density.mean == 0.8
    rates = {group["initial_lr"] for group in training.optimizer.param_groups}
    assert rates == {recipe.learning_rate, 0.02}
    assert {group["weight_decay"] for group in training.optimizer.param_groups} == {0.1}
    assert training.techniques.active["min_snr"].gamma == 5.0
    assert training.max_grad_norm == 2.0


@pytest.mark.slow
def test_rows_of_another_recipe_or_without_their_classifier_are_refused(recipe, tmp_path):
    study = Study(recipe, tmp_path)
    study._measure(measurements(recipe)[0], float("inf"))
    with pytest.raises(ValueError, match="AdamW 0.5.*choose a new folder"):
        Study(replace(recipe, learning_rate=0.5), tmp_path)
    (tmp_path / "classifier.safetensors").unlink()
    with pytest.raises(ValueError, match=r"rows, but not the classifier.safetensors that measured them: put it there"):
        Study(recipe, tmp_path)


def test_study_without_a_data_set_is_refused_with_the_remedy(recipe, tmp_path):
    assert Recipe().dataset == ""  # a path would be one machine's
    with pytest.raises(ValueError, match="no data set: name one with --dataset, or with `dataset:` in the file"):
        Study(replace(recipe, dataset=""), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_plan_logs_each_model_before_it_is_timed_and_trains_nothing(recipe, tmp_path, caplog):
    caplog.set_level("INFO", "dit_hf")
    study = Study(replace(recipe, models=("S/8", "B/8"), blocks_model="S/8", block_types=("adaln",)), tmp_path)
    study.plan()
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if message.startswith("timing")] == [
        "timing S/8 with adaln_zero blocks (1 of 3)",
        "timing B/8 with adaln_zero blocks (2 of 3)",
        "timing S/8 with adaln blocks (3 of 3)",
    ]
    assert list(tmp_path.iterdir()) == []


def test_classifier_logs_what_it_is_trained_on_and_its_passes(recipe, tmp_path, caplog):
    caplog.set_level("INFO", "dit_hf")
    assert Study(recipe, tmp_path).scorer
    messages = [record.getMessage() for record in caplog.records]
    assert "training the classifier that compares images, on 160 images" in messages
    assert [message for message in messages if "pass" in message][::3] == [
        "classifier: pass 1 of 4",
        "classifier: pass 4 of 4",
    ]


def test_one_model_at_a_time_is_in_memory(recipe, tmp_path):
    study = Study(recipe, tmp_path)
    for variant in (Variant("S/8", "adaln_zero", 0), Variant("S/4", "adaln_zero", 0)):
        for images_seen in (32, 64):
            study._training(variant).advance(images_seen, lambda: False)
    assert len(study.accelerator._models) == len(study.accelerator._optimizers) == 1


def test_batch_larger_than_the_training_set_is_refused(recipe, tmp_path):
    study = Study(replace(recipe, batch_size=161, checkpoints=(161,)), tmp_path)
    with pytest.raises(ValueError, match="160 images are fewer than batch_size=161: lower it"):
        study._training(Variant("S/8", "adaln_zero", 0))


@pytest.mark.slow
def test_command_plans_before_it_works_and_stops_at_its_budget(recipe, tmp_path):
    file = tmp_path / "recipe.yaml"
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(recipe).items()}
    file.write_text(yaml.safe_dump(fields))
    arguments = ["study", str(tmp_path / "out"), "--recipe", str(file), "--seeds", "4", "--budget-minutes", "0"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0
    assert "seed 4, 64 images seen, 10 samples, 2 steps" in result.output
    assert {row.model for row in read_rows(tmp_path / "out" / "results.csv")} == {REAL}
