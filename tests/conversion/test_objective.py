"""Weights that predict something else have DiT's keys and shapes: what says so is read, and they are refused."""

import argparse

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from dit_hf import DiTPipeline
from dit_hf.conversion import CheckpointError, convert, from_original
from dit_hf.conversion.objective import has_untrained_variance

HEADS = {"num_attention_heads": 4}
SIT = {"model": "SiT-XL/2", "path_type": "Linear", "prediction": "velocity", "loss_weight": None, "global_seed": 0}
REPA = {"model": "SiT-XL/2", "path_type": "linear", "prediction": "v", "proj_coeff": 0.5, "encoder_depth": 8}
DIT = {"model": "DiT-XL/2", "image_size": 256, "num_classes": 1000, "epochs": 1400, "vae": "ema", "global_seed": 0}


@pytest.fixture(scope="module")
def state(golden_dir) -> dict[str, torch.Tensor]:
    return load_file(golden_dir / "dit_p2_c4.safetensors")


@pytest.fixture(scope="module")
def untrained_variance(state) -> dict[str, torch.Tensor]:
    """Weights as SiT's training leaves them: rows of the last layer are (patch, channel), and channels 4 to 7 are 0."""
    weights = {key: tensor.clone() for key, tensor in state.items()}
    for kind in ("weight", "bias"):
        for row in range(2 * 2 * 8):
            if row % 8 >= 4:
                weights[f"final_layer.linear.{kind}"][row] = 0
    return weights


OTHER_OBJECTIVES = {
    "REPA": ({"args": argparse.Namespace(**REPA)}, "prediction='v'"),
    "SiT on its noise": ({"args": argparse.Namespace(**{**SIT, "prediction": "noise"})}, "path_type='Linear'"),
    "a dictionary": ({"args": {"prediction": "velocity"}}, "prediction='velocity'"),
    "a nested dictionary": ({"config": {"transport": {"path-type": "Linear"}}}, "path_type='Linear'"),
    "Lightning": ({"hyper_parameters": {"parameterization": "v"}}, "parameterization='v'"),
    "x_0": ({"args": argparse.Namespace(predict_xstart=True)}, "predict_xstart='True'"),
    "v": ({"cfg": {"prediction_type": "v_prediction"}}, "prediction_type='v_prediction'"),
    "flow": ({"args": argparse.Namespace(objective="flow")}, "objective='flow'"),
    "other betas": ({"args": argparse.Namespace(noise_schedule="cosine")}, "noise_schedule='cosine'"),
    "other steps": ({"args": argparse.Namespace(diffusion_steps=4000)}, "diffusion_steps='4000'"),
}


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize(("beside", "message"), OTHER_OBJECTIVES.values(), ids=OTHER_OBJECTIVES)
def test_other_objective_is_refused_by_its_arguments(beside, message, where, state, tmp_path):
    content = {"ema": state, "model": state, **beside}
    if where == "file":
        torch.save(content, tmp_path / "w.pt")
        content = tmp_path / "w.pt"
    with pytest.raises(
        CheckpointError, match=f"its training had .*{message}.*trained_as='sit' .*pass any_objective=True"
    ):
        from_original(content, **HEADS)
    model = from_original(content, any_objective=True, **HEADS)
    assert torch.equal(model.final_layer.linear.weight, state["final_layer.linear.weight"])


@pytest.mark.parametrize(
    "arguments",
    [
        DIT,
        {**DIT, "prediction": "noise", "predict_xstart": False, "noise_schedule": "linear", "diffusion_steps": 1000},
        {"objective": "hybrid", "prediction_type": None},
    ],
)
def test_arguments_of_a_dit_are_taken(arguments, state):
    assert from_original({"ema": state, "args": argparse.Namespace(**arguments)}, **HEADS).config.learn_sigma


def test_weights_alone_are_known_by_the_variance_that_nothing_trained(state, untrained_variance):
    with pytest.raises(CheckpointError, match="second half of its output channels was never trained, as in .* SiT"):
        from_original(untrained_variance, **HEADS)
    assert has_untrained_variance(from_original(untrained_variance, any_objective=True, **HEADS))
    assert not has_untrained_variance(from_original(state, **HEADS))
    fresh = {key: tensor * (not key.startswith("final_layer.linear")) for key, tensor in state.items()}
    assert not has_untrained_variance(from_original(fresh, **HEADS))  # a training that has not begun


def test_neither_pipeline_nor_command_takes_other_weights_for_noise(state, tmp_path):
    torch.save({"ema": state, "args": argparse.Namespace(**REPA)}, tmp_path / "repa.pt")
    with pytest.raises(ValueError, match="prediction='v'"):
        DiTPipeline.from_pretrained(tmp_path / "repa.pt", vae=None, **HEADS)
    with pytest.raises(ValueError, match="prediction='v'"):
        convert(DiTPipeline, str(tmp_path / "repa.pt"), tmp_path / "new", vae=None, **HEADS)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_weights_like_those_of_sit_never_get_the_licence_of_dit(monkeypatch, make_model, tmp_path):
    """In diffusers' form, where no arguments lie beside the weights; of the size that DiT's authors published."""
    monkeypatch.setattr("dit_hf.conversion.folders._has_published_size", lambda config: True)
    model = make_model(num_classes=1000)
    licences = {}
    for name in ("trained", "untrained"):
        if name == "untrained":
            rows = model.final_layer.linear.weight.data.view(4, 2, 4, -1)
            rows[:, 1] = 0
        pipe = DiTPipeline(model, tiny_vae(), DDIMScheduler(clip_sample=False), id2label={0: "one"})
        pipe.save_pretrained(tmp_path / name, format="diffusers")
        convert(DiTPipeline, str(tmp_path / name), tmp_path / f"{name} converted")
        front = (tmp_path / f"{name} converted" / "README.md").read_text().split("---")[1]
        licences[name] = "cc-by-nc-4.0" in front
    assert licences == {"trained": True, "untrained": False}


def tiny_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=(4,), norm_num_groups=4, latent_channels=4)
