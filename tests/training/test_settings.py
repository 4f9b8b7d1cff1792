"""Settings from flags, files and both."""

import ast
import json
import re
from pathlib import Path

import pytest

import dit_hf
from dit_hf.analysis.quoted import BLOCKS_400K, FIDS_400K
from dit_hf.configuration_dit import DIT_FIELDS, DiTConfig, PaperSize
from dit_hf.diffusion import Schedule
from dit_hf.training.settings import (
    DECIDED,
    ModelFields,
    TrainSettings,
    card_names,
    changed_settings,
    parse_settings,
    rows,
)

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


def test_every_field_of_the_model_is_a_setting_but_those_that_the_training_finds_out():
    own = rows(ModelFields).keys() - {"model_overrides"}
    assert own | DECIDED.keys() == {*DIT_FIELDS}
    assert not own & DECIDED.keys()
    for name, setting in DECIDED.items():
        assert setting in rows(TrainSettings)
        with pytest.raises(ValueError, match=f"'--{name}', which --{setting} decides: leave it out"):
            parse_settings([f"--{name}", "1"])
    for name in own - {*PaperSize._fields, "num_classes"}:  # the size and the data say those
        default = getattr(DiTConfig(), name)
        printed = f"{default:g}".replace("e-0", "e-") if isinstance(default, float) else str(default)
        assert TrainSettings.__dataclass_fields__[name].metadata["help"].endswith(f"Default: {printed}.")


def test_fields_of_the_model_come_from_flags_the_file_and_overrides_alike(file):
    flags = "--qk_norm --mlp swiglu --position_embedding rope --rope_theta 10000 --value_residual true --norm rms"
    expected = {"qk_norm": True, "mlp": "swiglu", "position_embedding": "rope", "rope_theta": 10_000.0, "norm": "rms"}
    expected |= {"value_residual": True}
    assert parse_settings(flags.split()).config_overrides == expected
    assert parse_settings(["--model_overrides", json.dumps(expected)]).config_overrides == expected
    file.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in expected.items()))
    assert parse_settings([str(file)]).config_overrides == expected
    assert parse_settings([str(file), "--qk_norm", "false"]).config_overrides == {**expected, "qk_norm": False}
    assert parse_settings(["--model_overrides", '{"mlp": "swiglu"}', "--mlp", "swiglu"]).config_overrides == {
        "mlp": "swiglu"
    }
    with pytest.raises(ValueError, match="mlp='gelu' contradicts model_overrides, which has 'swiglu': leave one out"):
        parse_settings(["--model_overrides", '{"mlp": "swiglu"}', "--mlp", "gelu"])


@pytest.mark.parametrize("value", ["extend", "interpolate"])
def test_former_meaning_of_the_position_embedding_is_refused_with_the_new_name(file, value):
    message = f"position_embedding='{value}' is now called resize_position_embedding='{value}'"
    file.write_text(f"position_embedding: {value}\n")
    for arguments in (["--position_embedding", value], [str(file)]):
        with pytest.raises(ValueError, match=message):
            parse_settings(arguments)
    with pytest.raises(ValueError, match="position_embedding='rotary' is not possible: set it to one of sincos, rope"):
        parse_settings(["--position_embedding", "rotary"])


def test_run_of_former_settings_resumes_and_overrides_count_as_the_settings_they_name():
    former = TrainSettings().to_dict()
    for name in rows(ModelFields).keys() - {"model_overrides"}:
        del former[name]
    former["position_embedding"] = former.pop("resize_position_embedding")
    former["model_overrides"] = '{"block_type": "adaln", "sample_size": 8}'
    same = TrainSettings(block_type="adaln", model_overrides='{"sample_size": 8}')
    assert not changed_settings(former, same)
    assert not changed_settings(same.to_dict(), TrainSettings(model_overrides=former["model_overrides"]))
    resized = TrainSettings(block_type="adaln", init_from="user/dit", resize_position_embedding="interpolate")
    assert changed_settings(former, resized)["resize_position_embedding"] == ("extend", "interpolate")
    other = TrainSettings(model_overrides='{"sample_size": 8}')
    assert changed_settings(former, other) == {"block_type": ("adaln", None)}


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
    assert Path(settings.dataset_name).is_dir() or path.stem == "own_images"  # whose folder is the user's
    assert settings.ema_decay**settings.max_train_steps < 1e-3


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
    with pytest.raises(ValueError, match=r"is not possible: set it to a list, each of whose values is"):
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


FAST = sorted((CONFIGS / "imagenet").glob("*_fast.yaml"))
PAPERS = sorted({*(CONFIGS / "imagenet").glob("*.yaml")} - {*FAST})


@pytest.mark.parametrize("path", FAST, ids=lambda path: path.stem)
def test_fast_imagenet_files_say_that_they_were_not_run_and_build_the_model_that_they_name(path):
    settings = parse_settings([str(path)])
    assert "NOT RUN" in path.read_text()
    assert settings.train_batch_size * 8 == 256
    overrides = settings.config_overrides
    config = DiTConfig.from_name(settings.model, sample_size=settings.resolution // 8, **overrides)
    assert (config.qk_norm, config.position_embedding, config.mlp) == (True, "rope", "swiglu")
    on = {name for name, each in settings.techniques.items() if vars(each) != vars(type(each)())}
    assert on == ({"repa"} if settings.resolution == 256 else {"repa", "tread"})


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
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
        "block_type",
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
        assert name == "adaln_zero" or parse_settings([str(file)]).block_type == name


# A value of each setting that differs from its default and that the others allow.
OTHER_VALUES = {
    "beta_schedule": "scaled_linear",
    "lr_scheduler": "cosine",
    "objective": "v_prediction",
    "timestep_density": "logit_normal",
    "init_from": "user/dit",
    "ema_decay": 0.5,
    "mixed_precision": "bf16",
    "resize_position_embedding": "interpolate",
    "optimizer": "muon",
    "extra_ema_decays": [0.5],
    "validation_labels": [3],
    "checkpoints_milestone_steps": 20_000,
    "max_train_minutes": 3.0,
    "max_grad_norm": 2.0,
    "lora_rank": 2,
    "lora_alpha": 4.0,
    "dataloader_num_workers": 2,
    "last_blocks": 2,
    "validation_inference_steps": 20,
    **dict.fromkeys(rows(ModelFields), 2),
    **dict.fromkeys(("class_dropout_prob", "mlp_ratio", "timestep_freq_shift", "mlp_norm_eps", "rope_theta"), 1.5),
    **dict.fromkeys(("qk_norm", "value_residual"), True),
    **{"block_type": "adaln", "position_embedding": "rope", "mlp": "swiglu", "norm": "rms"},
    "model_overrides": '{"sample_size": 8}',
}
NEEDED = {
    "lr_scheduler": "cosine",
    "timestep_density": "logit_normal",
    "optimizer": "muon",
    "push_to_hub": True,
    "init_from": "user/dit",
    "lora_rank": 2,
}


def other_value(name: str) -> object:
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    default = rows(TrainSettings)[name].default
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default / 2 if rows(TrainSettings)[name].below else default + 3
    return "something"


def with_needs(name: str) -> dict[str, object]:
    """A value of a setting together with what it needs, and what that needs."""
    values, needed = {name: other_value(name)}, rows(TrainSettings)[name].needs
    while needed:
        if needed in NEEDED:
            values[needed] = NEEDED[needed]
        needed = rows(TrainSettings)[needed].needs
    return values


@pytest.mark.parametrize("name", rows(TrainSettings))
def test_each_row_holds_its_setting(name):
    rules = rows(TrainSettings)[name]
    help = TrainSettings.__dataclass_fields__[name].metadata["help"]
    assert re.fullmatch(r"[A-Z].{9,}\.", help, re.DOTALL)
    TrainSettings(**with_needs(name))
    assert getattr(TrainSettings(), name) == rules.default
    if rules.at_least is not None:
        below = rules.at_least - 1
        with pytest.raises(ValueError, match=f"^{name}={below} is not possible: set it to a .*of at least"):
            TrainSettings(**{**with_needs(name), name: below})
    if rules.below is not None:
        with pytest.raises(ValueError, match=f"^{name}={rules.below} is not possible: .*below {rules.below:g}$"):
            TrainSettings(**{**with_needs(name), name: rules.below})
    with pytest.raises(ValueError, match=f"^{name}=.* is not possible: set it to "):
        TrainSettings(**{**with_needs(name), name: object()})


@pytest.mark.parametrize("name", [name for name, rules in rows(TrainSettings).items() if rules.needs])
def test_a_setting_without_what_it_needs_is_refused_and_not_ignored(name):
    rules = rows(TrainSettings)[name]
    for idle in rules.idle:
        if getattr(TrainSettings(), rules.needs) == idle or rules.needs == "checkpoints_total_limit" and idle is None:
            with pytest.raises(ValueError, match=f"^{name}=.* has no effect with.*{rules.needs}.*leave {name} out$"):
                TrainSettings(**{name: other_value(name), rules.needs: idle})


@pytest.mark.parametrize("name", rows(TrainSettings))
def test_a_resumed_training_names_each_setting_that_changes_its_steps(name):
    rules, values = rows(TrainSettings)[name], with_needs(name)
    needed = {key: value for key, value in values.items() if key != name}
    now, before = TrainSettings(**values), TrainSettings(**needed).to_dict()
    changes = changed_settings(before, now)
    if rules.may_change == "with equal images per step":
        assert list(changes) == ["images a step"]
    else:
        is_free = rules.may_change in ("always", "with a constant learning rate")
        assert changes.pop(name, None) == (None if is_free else (before[name], getattr(now, name)))
        assert all(rows(TrainSettings)[other].from_origin for other in changes)  # left to init_from, if that is set
    del before[name]
    if rules.may_change == "never":
        assert name in changed_settings(before, now)  # a checkpoint without the setting had its default


def test_every_setting_is_read_somewhere():
    package = Path(dit_hf.__file__).parent / "training"
    nodes = [node for path in package.rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    read |= {*Schedule.FIELDS}  # by `TrainSettings.schedule`
    read |= {*rows(ModelFields)}  # by `config_overrides`
    assert set(rows(TrainSettings)) - read == set()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr_warmup_steps": 10}, "lr_warmup_steps=10 has no effect with lr_scheduler='constant'"),
        ({"lr_scheduler": "piecewise_constant"}, "lr_scheduler='piecewise_constant' is unknown: choose one of linear"),
        ({"objective": "flow", "beta_schedule": "linear"}, "beta_schedule='linear' has no effect on objective='flow'"),
        ({"objective": "flow", "beta_end": 0.5}, "beta_end=0.5 has no effect on objective='flow'"),
        (
            {"beta_schedule": "squaredcos_cap_v2", "beta_start": 0.5},
            "beta_start=0.5 has no effect on objective='hybrid'",
        ),
        ({"beta_schedule": "cosine"}, "beta_schedule='cosine' is unknown"),
        ({"checkpoints_milestone_steps": 15_000}, "15000 is no multiple of checkpointing_steps=10000"),
        (
            {"checkpoints_milestone_steps": 20_000, "checkpoints_total_limit": None},
            "has no effect without checkpoints_",
        ),
        ({"hub_model_id": "user/dit"}, "hub_model_id='user/dit' has no effect without push_to_hub"),
        ({"hub_private_repo": False}, "hub_private_repo=False has no effect without push_to_hub"),
        ({"validation_labels": []}, r"validation_labels=\[\] names no class"),
        ({"random_flip": "yes"}, "random_flip='yes' is not possible: set it to true or false"),
        ({"seed": True}, "seed=True is not possible: set it to a whole number"),
        ({"extra_ema_decays": [1.5]}, "extra_ema_decays has 1.5"),
        ({"validation_labels": [1.5]}, "a list, each of whose values is a whole number"),
    ],
)
def test_nothing_is_ignored_silently(values, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**values)


def test_warm_up_rises_where_the_schedule_has_one():
    assert TrainSettings(lr_scheduler="constant_with_warmup", lr_warmup_steps=10).lr_warmup_steps == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--learning_rates", "1"],
            "the command line sets '--learning_rates', which is not a setting: '--learning_rate' is",
        ),
        (
            ["--learning", "1"],
            "the command line sets '--learning'",
        ),  # no abbreviations, which a new setting could break
        (["--seed", "x"], "argument --seed/?-*[a-z]*: invalid int value: 'x'"),
        (["photos"], "the command line sets 'photos'"),
        (["--seed"], "expected one argument"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, message, capsys):
    with pytest.raises(ValueError, match=message) as error:
        parse_settings(arguments)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().err == ""


def test_help_names_every_setting_and_no_default_none(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["--help"])
    text = capsys.readouterr().out
    assert all(f"--{name} " in text for name in rows(TrainSettings))
    assert "None" not in text
    assert "(default: 0.0001)" in text


def test_cards_show_what_the_rows_name():
    names = card_names()
    assert names["learning_rate"] == "learning rate"
    assert not {"output_dir", "dataset_name", "vae_name_or_path", "class_names_file", "init_from"} & names.keys()
