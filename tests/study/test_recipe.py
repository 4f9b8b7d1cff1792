"""What a study trains, in which order, and what it refuses."""

from pathlib import Path

import pytest

from dit_hf.analysis import count_gmacs
from dit_hf.analysis.selection import MODELS
from dit_hf.configuration_dit import DIT_FIELDS, PAPER_SIZES, DiTConfig
from dit_hf.study.additions import DECIDED_ELSEWHERE, NOT_IN_A_STUDY
from dit_hf.study.recipe import Recipe, measurements, variants
from dit_hf.training.settings import all_rows

GREY = {"in_channels": 4, "num_classes": 10}


def test_miniatures_keep_the_paper_s_proportions_and_tokens():
    for model in MODELS:
        config, size = Recipe().config(model, **GREY), PAPER_SIZES[f"DiT-{model}"]
        assert (4 * config.num_hidden_layers, 8 * config.hidden_size) == size[:2]
        assert 2 * config.num_attention_heads == size.num_attention_heads
        assert config.grid_height_width == (16 // size.patch_size,) * 2


def test_twelve_forwards_together_are_below_a_gigaflop():
    assert sum(2 * count_gmacs(Recipe().config(model, **GREY)) for model in MODELS) < 1


def test_divisors_of_one_give_the_paper_s_own_models():
    recipe = Recipe(side=64, depth_divisor=1, width_divisor=1, heads_divisor=1, objective="hybrid")
    config = recipe.config("XL/2", in_channels=4, num_classes=1000)
    assert config.to_dict() == DiTConfig.from_name("DiT-XL/2").to_dict()


def test_every_stop_leaves_models_that_can_be_compared():
    recipe = Recipe()
    keys = measurements(recipe)
    assert len(keys) == len(set(keys))
    for number, key in enumerate(keys[:60]):
        assert key.images_seen == recipe.checkpoints[number // 15]
    assert [key.seed for key in keys] == sorted(key.seed for key in keys)
    finals = [key for key in keys if key.num_samples == 5000]
    assert {key.images_seen for key in finals} == {recipe.checkpoints[-1]}
    assert len(finals) == 15 * len(recipe.seeds)


def test_seed_trains_twelve_models_and_four_blocks_of_one_of_them():
    trained = variants(Recipe(), 3)
    assert {variant.model for variant in trained if variant.block_type == "adaln_zero"} == set(MODELS)
    assert {variant.block_type for variant in trained if variant.model == "XL/4"} == {
        "in_context", "cross_attention", "adaln", "adaln_zero",
    }  # fmt: skip
    assert len({variant.folder for variant in trained}) == len(trained) == 15


def test_recipe_of_some_models_trains_no_others():
    recipe = Recipe(models=("XL/4",), block_types=("adaln", "adaln_zero"), sampling_models=(), guidance_scales=())
    assert {key[:2] for key in measurements(recipe)} == {("XL/4", "adaln_zero"), ("XL/4", "adaln")}
    assert len(variants(recipe, 0)) == 2  # adaLN-Zero once
    assert {key.model for key in measurements(Recipe(models=("S/8",)))} == {"S/8"}


def test_nothing_is_measured_twice():
    recipe = Recipe(num_final_samples=1000, guidance_scales=(1.0,), seeds=(0, 0))
    assert len(measurements(recipe)) == len(set(measurements(recipe)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("checkpoints: 64000", "write it in the form of"),
        ("seeds: '0'", "write it in the form of"),
        ("side: 32.0", "write it in the form of"),
    ],
)
def test_value_of_another_type_is_refused(tmp_path, line, message):
    (tmp_path / "recipe.yaml").write_text(line)
    with pytest.raises(ValueError, match=f"sets {line.split(':')[0]} to .*{message}"):
        Recipe.read(tmp_path / "recipe.yaml")


def test_exponent_of_yaml_is_a_number(tmp_path):
    (tmp_path / "recipe.yaml").write_text("learning_rate: 1e-4")
    assert Recipe.read(tmp_path / "recipe.yaml").learning_rate == 1e-4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"checkpoints": (100,)}, "be multiples of batch_size=64"),
        ({"checkpoints": (128, 64)}, "must rise"),
        ({"checkpoints": ()}, "must rise"),
        ({"objective": "flows"}, "choose from hybrid"),
        ({"additions": {"qknorm": True}}, "set qknorm, which is none of .*mlp_ratio"),
        ({"additions": {"hidden_size": 8}}, "set hidden_size, which the model's size or another field"),
        ({"additions": {"learning_rate": 1.0}}, "set learning_rate, which the model's size or another field"),
        ({"additions": {"dataset_name": "toys"}}, "set dataset_name, which is none of"),
        ({"additions": {"beta_schedule": "scaled_linear"}, "objective": "flow"}, "beta_schedule.*has no effect"),
        ({"additions": {"min_snr_gamma": "five"}}, "min_snr_gamma='five' is not possible"),
        ({"side": 40}, "must be a multiple of 16"),
        ({"seeds": ()}, "at least one"),
        ({"num_steps": 0}, "1 to 1000 steps"),
        ({"num_samples": 1}, "at least 2 samples"),
        ({"models": ("H/2",)}, "H/2.*S/8, B/8"),
        ({"sampling_models": ("S/3",)}, "S/3.*S/8, B/8"),
        ({"block_types": ("adaln_one",)}, "adaln_one.*in_context, cross_attention"),
    ],
)
def test_recipe_outside_its_limits_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


def test_summary_names_additions_and_is_the_old_one_without_them():
    old = "sample, AdamW 0.001, warm-up 100, batch 64, EMA 0.99"  # of the rows in runs/results
    assert Recipe().summary == old
    changed = Recipe(additions={"mlp_ratio": 2.0, "min_snr_gamma": 5.0})
    assert changed.summary == f"{old}, min_snr_gamma 5.0, mlp_ratio 2.0"


def test_additions_are_read_from_yaml_with_their_exponents(tmp_path):
    (tmp_path / "recipe.yaml").write_text("additions: {mlp_norm_eps: 1e-5, adam_beta2: 9e-1, lr_scheduler: linear}")
    recipe = Recipe.read(tmp_path / "recipe.yaml")
    assert recipe.config("S/8", **GREY).mlp_norm_eps == 1e-5
    assert (recipe.settings().adam_beta2, recipe.settings().lr_scheduler) == (0.9, "linear")


def test_schedule_that_decays_ties_a_training_to_its_last_checkpoint():
    assert "max_train_steps" not in Recipe().training_fields()
    assert Recipe(additions={"lr_scheduler": "cosine"}).training_fields()["max_train_steps"] == 2000


def test_refused_additions_are_names_of_today():
    """A name that the model or the trainings no longer have would leave a hole in the refusal."""
    assert {*DIT_FIELDS, *all_rows()} >= DECIDED_ELSEWHERE | NOT_IN_A_STUDY


def test_recipe_is_read_from_yaml_and_unknown_fields_are_refused(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("side: 64\ncheckpoints: [64, 128]\n")
    assert Recipe.read(file) == Recipe(side=64, checkpoints=(64, 128))
    file.write_text("sides: 64\n")
    with pytest.raises(ValueError, match="sets sides"):
        Recipe.read(file)
    with pytest.raises(ValueError, match="choose from the paper's S/8"):
        Recipe().config("M/2")


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].glob("runs/*.yaml")), ids=lambda file: file.name)
def test_recipes_in_runs_are_valid(file):
    recipe = Recipe.read(file)
    assert measurements(recipe)
    assert recipe.dataset  # which has no default
