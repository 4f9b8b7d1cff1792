"""Settings from flags, files and both."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from dit_hf.analysis.quoted import BLOCKS_400K, FIDS_400K
from dit_hf.training.settings import TrainSettings, changed_settings, parse_settings

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "configs" / "some.yaml"
    path.parent.mkdir()
    path.write_text("learning_rate: 2e-4\nmodel_overrides: {hidden_size: 64}\ndataset_name: ../images\nseed: 3\n")
    return path


def test_defaults_are_the_paper_s_recipe():
    settings = parse_settings([])
    assert (settings.learning_rate, settings.adam_weight_decay, settings.adam_beta1, settings.adam_beta2) == (
        1e-4,
        0,
        0.9,
        0.999,
    )
    assert (settings.train_batch_size, settings.ema_decay, settings.objective, settings.model) == (
        256,
        0.9999,
        "hybrid",
        "DiT-XL/2",
    )
    assert (settings.lr_scheduler, settings.lr_warmup_steps, settings.max_grad_norm) == ("constant", 0, None)
    assert (settings.random_flip, settings.num_jitters, settings.beta_schedule) == (True, 0, None)


def test_flags_win_over_the_file(file):
    settings = parse_settings([str(file), "--seed", "5"])
    assert (settings.learning_rate, settings.seed, settings.model_overrides) == (2e-4, 5, '{"hidden_size": 64}')


def test_relative_paths_are_relative_to_the_file(file):
    assert parse_settings([str(file)]).dataset_name == str(file.parents[1] / "images")


def test_overrides_come_as_json_on_the_command_line():
    overrides = '{"hidden_size": 64, "block_type": "adaln"}'
    assert parse_settings(["--model_overrides", overrides]).model_overrides == overrides


def test_unknown_key_in_the_file_is_refused_with_the_closest(file):
    file.write_text("learning_rates: 1e-4\n")
    with pytest.raises(ValueError, match="'learning_rates', which is not a setting: 'learning_rate' is"):
        parse_settings([str(file)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_batch_size": 0}, "train_batch_size=0"),
        ({"max_train_steps": -1}, "max_train_steps=-1"),
        ({"ema_decay": 1.0}, "ema_decay=1.0"),
        ({"checkpointing_steps": 0}, "checkpointing_steps=0 .* at least 1"),
        ({"checkpoints_total_limit": 0}, "checkpoints_total_limit=0"),
        ({"max_train_steps": 10.5}, "max_train_steps=10.5 .* a whole number"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
    ],
)
def test_impossible_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**values)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_are_valid(path):
    settings = parse_settings([str(path)])
    assert Path(settings.dataset_name).is_dir()
    assert settings.ema_decay**settings.max_train_steps < 1e-3


def test_every_setting_says_what_it_is():
    assert all(entry.metadata.get("help") for entry in fields(TrainSettings))


def test_file_that_is_no_mapping_is_refused(file):
    file.write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="holds a list"):
        parse_settings([str(file)])


def test_unquoted_no_of_yaml_is_the_word(file):
    file.write_text("mixed_precision: no\n")
    assert parse_settings([str(file)]).mixed_precision == "no"


@pytest.mark.parametrize("line", ["extra_ema_decays: 0.999", "validation_labels: 3"])
def test_single_value_for_a_list_is_refused(file, line):
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"write a list, such as \[" + line.split()[1]):
        parse_settings([str(file)])


def test_longer_training_is_no_change_where_the_rate_is_constant():
    longer = {"max_train_steps": 800_000}
    assert not changed_settings(vars(TrainSettings()), TrainSettings(**longer))
    cosine = TrainSettings(lr_scheduler="cosine", **longer)
    assert changed_settings(vars(TrainSettings(lr_scheduler="cosine")), cosine) == {
        "max_train_steps": (400_000, 800_000)
    }


def test_changes_are_those_that_change_the_steps():
    before = vars(TrainSettings())
    now = TrainSettings(seed=1, output_dir="elsewhere", logging_steps=7)
    assert changed_settings(before, now) == {"seed": (0, 1)}


@pytest.mark.parametrize("path", sorted((CONFIGS / "imagenet").glob("*.yaml")), ids=lambda path: path.stem)
def test_imagenet_files_are_the_paper_s_recipe_on_eight_devices(path):
    settings = parse_settings([str(path)])
    assert settings.train_batch_size * settings.gradient_accumulation_steps * 8 == 256
    assert path.stem.startswith(str(settings.resolution))
    changed = {
        "output_dir",
        "train_batch_size",
        "mixed_precision",
        "torch_compile",
        "checkpoints_milestone_steps",
        "max_train_steps",
        "resolution",
        "model_overrides",
        "gradient_checkpointing",
    }
    assert {name for name, value in vars(TrainSettings()).items() if getattr(settings, name) != value} <= changed


def test_imagenet_files_print_the_paper_s_fids():
    text = (CONFIGS / "imagenet" / "256.yaml").read_text()
    printed = re.findall(r"--model DiT-(\S+) +([\d.]+)", text)
    assert {name: float(fid) for name, fid in printed} == FIDS_400K
    for name, result in BLOCKS_400K.items():
        file = CONFIGS / "imagenet" / ("256.yaml" if name == "adaln_zero" else f"256_{name}.yaml")
        assert f"{result.fid:.2f}" in file.read_text()
        assert name == "adaln_zero" or f'"block_type": "{name}"' in parse_settings([str(file)]).model_overrides
