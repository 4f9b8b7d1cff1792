"""What a fine-tuning starts from, from every kind of source, and what it refuses before anything is computed."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from dit_hf import DiTPipeline
from dit_hf.conversion import to_original
from dit_hf.conversion.original import HEADS
from dit_hf.training.assembly import make_objective
from dit_hf.training.origin import Origin, load_origin, take_over
from dit_hf.training.settings import TrainSettings, parse_settings
from dit_hf.training.start import adapt_to_data, make_scheduler

NAMES = {0: "tench, Tinca tinca", 1: "crane", 2: "goldfish", 3: "koi"}


def origin_of(model, id2label: dict | None = NAMES) -> Origin:
    return Origin("user/dit", model, id2label, {})


def tiny_vae(scaling_factor: float = 0.5) -> AutoencoderKL:
    sizes = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4, "layers_per_block": 1}
    return AutoencoderKL(**sizes, mid_block_add_attention=False, scaling_factor=scaling_factor)


def test_a_pipelines_folder_tells_classes_schedule_and_scaling(build, tmp_path: Path):
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False, beta_schedule="squaredcos_cap_v2")
    DiTPipeline(build(), tiny_vae(), scheduler, id2label=NAMES).save_pretrained(tmp_path)
    origin = load_origin(str(tmp_path))
    assert origin.id2label == NAMES
    assert origin.trained == {
        "prediction_type": "epsilon",
        "beta_schedule": "squaredcos_cap_v2",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "num_train_timesteps": 1000,
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
    }
    assert (origin.objective, origin.vae["scaling_factor"], origin.vae["latent_channels"]) == ("hybrid", 0.5, 4)
    torch.testing.assert_close(origin.model.state_dict(), build().state_dict(), rtol=0, atol=0)


def test_a_folder_of_diffusers_own_pipeline_will_do(build, tmp_path: Path):
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="leading", clip_sample=False)
    names = {class_id: f"class {class_id}" for class_id in range(1000)}
    pipeline = DiTPipeline(build(num_classes=1000, timestep_freq_shift=1.0), tiny_vae(), scheduler, id2label=names)
    pipeline.save_pretrained(tmp_path, format="diffusers")
    origin = load_origin(str(tmp_path))
    assert (origin.id2label, origin.trained["beta_end"], origin.vae["scaling_factor"]) == (names, 0.02, 0.5)
    torch.testing.assert_close(origin.model.state_dict(), pipeline.transformer.state_dict())


@pytest.mark.parametrize(("predicted", "objective"), [("flow_prediction", "flow"), ("flow_sample", "flow_sample")])
def test_a_flow_model_has_no_betas_and_one_of_pixels_no_scaling(build, tmp_path: Path, predicted: str, objective: str):
    flow = FlowMatchEulerDiscreteScheduler()
    DiTPipeline(build(learn_sigma=False), None, flow, prediction_type=predicted).save_pretrained(tmp_path)
    origin = load_origin(str(tmp_path))
    assert origin.trained == {"prediction_type": predicted, "num_train_timesteps": 1000}
    assert (origin.objective, origin.vae) == (objective, None)


OF_FLOW = {
    "Euler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "solver": DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
}


@pytest.mark.parametrize("scheduler", OF_FLOW.values(), ids=OF_FLOW)
def test_a_flow_model_goes_on_with_the_shift_of_its_timesteps(build, tmp_path: Path, scheduler):
    model = build(learn_sigma=False)
    DiTPipeline(model, tiny_vae(), scheduler, prediction_type="flow_sample").save_pretrained(tmp_path)
    origin = load_origin(str(tmp_path))
    for flags, shift in ((), 3.0), (("--timestep_shift", "6"), 6.0):
        settings = parse_settings(["--init_from", str(tmp_path), *flags])
        take_over(settings, origin)
        objective = make_objective(settings, origin.schedule)
        assert (settings.objective, settings.timestep_shift, objective.density.shift) == ("flow_sample", shift, shift)
        assert make_scheduler(objective).config.shift == shift


def test_an_original_checkpoint_gives_its_averaged_weights(build, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(HEADS, (2, 32), 2)  # as if this were one of the paper's sizes, whose heads are known
    model = build()
    averaged = {key: weight * 0.5 for key, weight in to_original(model).items()}
    torch.save({"model": to_original(model), "ema": averaged}, tmp_path / "dit.pt")
    origin = load_origin(str(tmp_path / "dit.pt"))
    torch.testing.assert_close(origin.model.state_dict(), averaged, rtol=0, atol=0)
    assert origin.id2label is None
    assert origin.trained["prediction_type"] == "epsilon"


def test_a_models_own_folder_will_do(build, tmp_path: Path):
    build().save_pretrained(tmp_path)
    assert load_origin(str(tmp_path)).model.config.num_classes == 4


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_sources_that_are_not_there_are_refused(source: str):
    with pytest.raises(ValueError, match=f"init_from='{source}': there is no file or folder {source}"):
        load_origin(source)


def test_a_folder_of_something_else_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="has no model_index.json, as it is empty"):
        load_origin(str(tmp_path))


def trained_origin(build, folder: Path, **fields: object) -> Origin:
    """A model that predicts x_0 on a cosine schedule, with a VAE that makes 4 channels and halves nothing."""
    schedule = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500}
    scheduler = DDIMScheduler(**schedule, prediction_type="sample", clip_sample=False)
    model = build(learn_sigma=False, **fields)
    names = NAMES if model.config.num_classes else None
    DiTPipeline(model, tiny_vae(), scheduler, id2label=names).save_pretrained(folder)
    return load_origin(str(folder))


def test_what_the_user_leaves_out_comes_from_the_starting_model(build, tmp_path: Path):
    origin = trained_origin(build, tmp_path)
    settings = TrainSettings(init_from=str(tmp_path))
    take_over(settings, origin)
    assert (settings.objective, settings.beta_schedule, settings.num_train_timesteps) == (
        "sample",
        "squaredcos_cap_v2",
        500,
    )
    assert (settings.resolution, settings.vae_name_or_path) == (8, str(tmp_path))
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings.to_dict()))  # the settings of another run
    again = parse_settings([str(tmp_path / "settings.yaml")])
    take_over(again, origin)
    assert again == settings


def test_every_contradiction_is_named_in_one_error(build, tmp_path: Path):
    origin = trained_origin(build, tmp_path / "model")
    tiny_vae(scaling_factor=0.13).save_pretrained(tmp_path / "vae")
    settings = TrainSettings(
        init_from=origin.name,
        objective="epsilon",
        beta_schedule="linear",
        num_train_timesteps=1000,
        vae_name_or_path=str(tmp_path / "vae"),
        model="DiT-S/4",
        model_overrides='{"block_type": "adaln", "num_classes": 0, "hidden_size": 32}',
        resize_position_embedding="interpolate",
    )
    with pytest.raises(ValueError, match="does not fit the other settings") as error:
        take_over(settings, origin)
    for part in (
        "objective='epsilon', but it was trained with 'sample'",
        "beta_schedule='linear', but it was trained with 'squaredcos_cap_v2'",
        "num_train_timesteps=1000, but it was trained with 500",
        f"vae_name_or_path='{tmp_path / 'vae'}' has scaling_factor=0.13, but it was trained with 0.5",
        "patch_size=4, but it has patch_size=2",
        "block_type='adaln', but it has block_type='adaln_zero'",
        "num_classes=0, but it has num_classes=4",
        "resize_position_embedding='interpolate' has no effect, because its resolution is kept",
        "Leave these settings out",
    ):
        assert part in str(error.value)
    assert "hidden_size" not in str(error.value)  # as the model's
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"objective": "flow"}, "objective='flow', but it was trained with 'sample'"),
        ({"objective": "flow_sample"}, "objective='flow_sample', but it was trained with 'sample'"),
        ({"objective": "hybrid"}, "objective='hybrid', but it was trained with 'sample'"),
        ({"beta_end": 0.03}, "beta_end=0.03, but it was trained with 0.02"),
        ({"model_overrides": '{"wrong": 1}'}, "model_overrides sets 'wrong', which is no field"),
    ],
)
def test_a_setting_that_contradicts_the_starting_model_is_refused(build, tmp_path: Path, values: dict, message: str):
    with pytest.raises(ValueError, match=message):
        take_over(TrainSettings(init_from=str(tmp_path), **values), trained_origin(build, tmp_path))


def test_another_resolution_is_a_wish_and_no_contradiction(build, tmp_path: Path):
    settings = TrainSettings(init_from=str(tmp_path), resolution=16, resize_position_embedding="interpolate")
    take_over(settings, trained_origin(build, tmp_path))
    assert settings.resolution == 16


def test_a_model_without_its_training_asks_for_the_objective(build, tmp_path: Path, caplog):
    tiny_vae().save_pretrained(tmp_path / "vae")
    build(learn_sigma=False).save_pretrained(tmp_path / "model")
    origin, with_vae = load_origin(str(tmp_path / "model")), {"vae_name_or_path": str(tmp_path / "vae")}
    with pytest.raises(ValueError, match="objective is missing, and it does not say how it was trained"):
        take_over(TrainSettings(init_from=origin.name, **with_vae), origin)
    settings = TrainSettings(init_from=origin.name, objective="v_prediction", **with_vae)
    take_over(settings, origin)
    assert (settings.beta_schedule, settings.beta_end, settings.resolution) == (None, 0.02, 8)
    assert "does not say how it was trained: the paper's noise schedule is taken" in caplog.text


def test_betas_of_a_flow_model_are_contradictions(build, tmp_path: Path):
    flow = FlowMatchEulerDiscreteScheduler()
    model = build(learn_sigma=False)
    DiTPipeline(model, tiny_vae(), flow, prediction_type="flow_prediction").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="beta_end=0.5, but it was trained without betas"):
        take_over(TrainSettings(init_from=str(tmp_path), beta_end=0.5), load_origin(str(tmp_path)))


def test_keeping_the_classes_of_an_unconditional_model_is_refused(build, tmp_path: Path):
    origin = trained_origin(build, tmp_path, num_classes=0)
    with pytest.raises(ValueError, match="keep_classes=True, but it has no classes"):
        take_over(TrainSettings(init_from=str(tmp_path), keep_classes=True), origin)


def test_new_classes_replace_the_old_ones_or_join_them(build):
    table = build().y_embedder.embedding_table.weight
    replaced = adapt_to_data(origin_of(build()), ["my cat", "Tinca tinca"], sample_size=8)
    assert (replaced.names, replaced.class_indices) == (["my cat", "Tinca tinca"], [0, 1])
    torch.testing.assert_close(replaced.model.y_embedder.embedding_table.weight[1:], table[[0, 4]], rtol=0, atol=0)
    joined = adapt_to_data(origin_of(build()), ["my cat", "Tinca tinca", "my dog"], sample_size=8, keep_classes=True)
    assert joined.names == [*NAMES.values(), "my cat", "my dog"]
    assert joined.class_indices == [4, 0, 5]
    known = [0, 1, 2, 3, 6]
    torch.testing.assert_close(joined.model.y_embedder.embedding_table.weight[known], table, rtol=0, atol=0)


def test_without_names_as_many_classes_keep_their_rows_and_others_start_at_the_mean(build, caplog):
    table = build().y_embedder.embedding_table.weight
    same = adapt_to_data(origin_of(build(), None), ["a", "b", "c", "d"], sample_size=8)
    torch.testing.assert_close(same.model.y_embedder.embedding_table.weight, table, rtol=0, atol=0)
    other = adapt_to_data(origin_of(build(), None), ["a"], sample_size=8)
    torch.testing.assert_close(other.model.y_embedder.embedding_table.weight[0], table[:4].mean(0))
    assert "holds no class names: its label table is kept row by row" in caplog.text
    with pytest.raises(ValueError, match="keep_classes: user/dit holds no class names"):
        adapt_to_data(origin_of(build(), None), ["a"], sample_size=8, keep_classes=True)


def test_an_unconditional_model_stays_one(build):
    start = adapt_to_data(
        origin_of(build(num_classes=0), None), [], sample_size=16, resize_position_embedding="interpolate"
    )
    assert (start.names, start.model.config.sample_size) == ([], 16)
    with pytest.raises(ValueError, match="num_classes=0: an unconditional model has no label table"):
        adapt_to_data(origin_of(build(num_classes=0), None), ["a"], sample_size=8)


def test_only_what_is_asked_for_is_trained(build):
    def trained(**options: int) -> set[str]:
        model = adapt_to_data(origin_of(build()), list(NAMES.values()), sample_size=8, **options).model
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        return {".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0] for name in names}

    assert trained() == {"x_embedder", "t_embedder", "y_embedder", "blocks.0", "blocks.1", "final_layer"}
    assert trained(last_blocks=1) == {"y_embedder", "blocks.1", "final_layer"}
    assert trained(last_blocks=0) == {"y_embedder", "final_layer"}
    assert trained(lora_rank=2) == {"y_embedder", "blocks.0", "blocks.1"}
    with pytest.raises(ValueError, match="last_blocks=3: the model has 2 blocks"):
        trained(last_blocks=3)
