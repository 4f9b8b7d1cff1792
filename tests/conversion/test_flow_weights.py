"""Weights of SiT and REPA against their formula, written out in float64 from the papers, and in every route."""

import argparse
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, FlowMatchHeunDiscreteScheduler
from safetensors.torch import load_file

from dit_hf import DiTConfig, DiTModel, DiTPipeline
from dit_hf.conversion import CheckpointError, convert, from_original, to_diffusers, to_original
from dit_hf.conversion.assemble import empty_model
from dit_hf.training.origin import load_origin

HEADS = 4
ARGUMENTS = {"model": "SiT-XL/2", "path_type": "Linear", "prediction": "velocity", "loss_weight": None}


@pytest.fixture(scope="module")
def state(golden_dir) -> dict[str, torch.Tensor]:
    """Random weights of SiT: 2C output channels, of which the second half is as it was at the start."""
    weights = load_file(golden_dir / "dit_p2_c4.safetensors")
    for kind in ("weight", "bias"):
        rows = weights[f"final_layer.linear.{kind}"].unflatten(0, (4, 2, 4))
        rows[:, 1] = 0
        weights[f"final_layer.linear.{kind}"] = rows.flatten(0, 2)
    return weights


def norm(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def sit(state: dict[str, torch.Tensor], x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SiT's network (section 3 of the paper): DiT-adaLN-Zero on a time in [0, 1]; the first C of its 2C channels."""
    w = {key: value.double() for key, value in state.items()}

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    angles = t.double()[:, None] * torch.tensor([10_000 ** (-i / 128) for i in range(128)], dtype=torch.float64)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    embedding = linear(F.silu(linear(waves, "t_embedder.mlp.0")), "t_embedder.mlp.2")
    embedding = F.silu(embedding + w["y_embedder.embedding_table.weight"][y])
    tokens = F.conv2d(x.double(), w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2)
    grid = tokens.shape[-1]
    tokens = tokens.flatten(2).transpose(1, 2) + w["pos_embed"]
    for n in range(len({key.split(".")[1] for key in state if key.startswith("blocks.")})):
        block = f"blocks.{n}"
        parts = linear(embedding, f"{block}.adaLN_modulation.1").chunk(6, dim=1)
        q, k, v = linear(norm(tokens, *parts[:2]), f"{block}.attn.qkv").unflatten(-1, (3, HEADS, -1)).unbind(2)
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights.softmax(-1), v).flatten(2)
        tokens = tokens + parts[2][:, None] * linear(mixed, f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(tokens, *parts[3:5]), f"{block}.mlp.fc1"), approximate="tanh")
        tokens = tokens + parts[5][:, None] * linear(hidden, f"{block}.mlp.fc2")
    shift, scale = linear(embedding, "final_layer.adaLN_modulation.1").chunk(2, dim=1)
    patches = (
        linear(norm(tokens, shift, scale), "final_layer.linear").unflatten(1, (grid, grid)).unflatten(3, (2, 2, -1))
    )
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)[:, :4]  # (B, C, H, W)


def inputs(model: DiTModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 4, *model.config.sample_height_width, generator=generator)
    return x, torch.tensor([0.0, 0.001, 0.3, 0.77, 1.0]), torch.tensor([0, 1, 2, 3, model.config.null_class_id])


@pytest.mark.parametrize(("trained_as", "time", "sign"), [("sit", lambda s: 1 - s, -1), ("repa", lambda s: s, 1)])
@torch.no_grad()
def test_model_is_the_formula_with_its_time_and_its_sign(state, trained_as, time, sign):
    """SiT: t = 1 - sigma and data - noise; REPA: t = sigma and noise - data."""
    model = from_original(state, trained_as=trained_as, num_attention_heads=HEADS)
    assert not model.config.learn_sigma
    x, sigma, labels = inputs(model)
    expected = sign * sit(state, x, time(sigma.double()), labels)
    assert expected.std() > 0.1
    torch.testing.assert_close(
        model(x, 1000 * sigma, labels).sample.double(), expected, rtol=1e-4, atol=1e-5
    )  # float32
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state if "final_layer.linear" not in key)
    assert not model.pos_embed.requires_grad


@torch.no_grad()
def test_pipeline_of_a_file_takes_the_euler_steps_of_the_ode(state, tmp_path):
    """dx/dt = v from t = 0, noise, to t = 1, data (SiT, eq. 1), at the times of diffusers' scheduler."""
    torch.save(state, tmp_path / "SiT-XL-2-256.pt")
    pipe = DiTPipeline.from_pretrained(tmp_path / "SiT-XL-2-256.pt", vae=None, num_attention_heads=HEADS)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert pipe.config.guidance_channels == "first_three"  # as in the authors' script
    z = torch.randn(2, 4, *pipe.transformer.config.sample_height_width, generator=torch.Generator().manual_seed(3))
    found = pipe([1, 2], 1.0, 10, latents=z, output_type="latent").images
    x, t = z.double(), [*(1 - torch.linspace(1, 0.001, 10).double()), torch.tensor(1.0)]
    for now, after in zip(t[:-1], t[1:], strict=True):
        x = x + (after - now) * sit(state, x, now.expand(2), torch.tensor([1, 2]))
    torch.testing.assert_close(found.double(), x, rtol=1e-3, atol=1e-3)  # float32 over ten steps
    pipe.save_pretrained(tmp_path / "saved")
    again = DiTPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert torch.equal(again([1, 2], 1.0, 10, latents=z, output_type="latent").images, found)


def test_a_file_is_taken_for_sit_only_where_it_is_certain(state, golden_dir, tmp_path):
    heads = {"num_attention_heads": HEADS}
    assert not from_original({"ema": state, "args": argparse.Namespace(**ARGUMENTS)}, **heads).config.learn_sigma
    dit = load_file(golden_dir / "dit_p2_c4.safetensors")
    torch.save(state, tmp_path / "weights.pt")
    torch.save(dit, tmp_path / "SiT-B.pt")
    with pytest.raises(CheckpointError, match="second half .* never trained.*pass trained_as='sit' or 'repa'"):
        from_original(tmp_path / "weights.pt", **heads)
    with pytest.raises(CheckpointError, match="SiT-B.pt is named as SiT's.*pass trained_as='sit', 'repa' or 'dit'"):
        from_original(tmp_path / "SiT-B.pt", **heads)
    assert from_original(tmp_path / "SiT-B.pt", trained_as="dit", **heads).config.learn_sigma
    assert not from_original(tmp_path / "weights.pt", trained_as="sit", **heads).config.learn_sigma


@pytest.mark.parametrize(
    ("arguments", "choice", "message"),
    [
        ({"path_type": "GVP"}, {"trained_as": "sit"}, "path_type='GVP'.*velocities on the linear path"),
        ({"prediction": "noise"}, {"trained_as": "sit"}, "prediction='noise'"),
        ({"model": "DiT-XL/2"}, {"trained_as": "repa"}, "model='DiT-XL/2'"),
        ({}, {"trained_as": "dit"}, "model='SiT-XL/2'"),
        ({}, {"trained_as": "sit", "any_objective": True}, "contradict each other"),
        ({}, {"trained_as": "SiT"}, "choose from dit, sit, repa"),
    ],
)
def test_contradictions_are_refused(state, arguments, choice, message):
    content = {"ema": state, "args": {**ARGUMENTS, **arguments}}
    with pytest.raises(ValueError, match=message):
        from_original(content, num_attention_heads=HEADS, **choice)


def test_its_scheduler_may_be_another_of_flow_matching_and_no_other(state, tmp_path):
    torch.save(state, tmp_path / "w.pt")
    arguments = {"vae": None, "num_attention_heads": HEADS, "trained_as": "sit"}
    pipe = DiTPipeline.from_pretrained(tmp_path / "w.pt", scheduler="FlowMatchHeunDiscreteScheduler", **arguments)
    assert isinstance(pipe.scheduler, FlowMatchHeunDiscreteScheduler)
    with pytest.raises(ValueError, match="'DDIMScheduler' is no scheduler of diffusers for flow matching"):
        DiTPipeline.from_pretrained(tmp_path / "w.pt", scheduler="DDIMScheduler", **arguments)
    with pytest.raises(ValueError, match="use FlowMatchEulerDiscreteScheduler"):
        DiTPipeline.from_pretrained(tmp_path / "w.pt", scheduler=DDIMScheduler(), **arguments)


def test_other_code_cannot_run_it_and_a_training_goes_on_with_flow_matching(state, tmp_path):
    model = from_original(state, trained_as="sit", num_attention_heads=HEADS)
    for form in (to_original, to_diffusers):
        with pytest.raises(ValueError, match="timestep_scale=-0.001"):
            form(model)
    sizes = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "sample_size": 4, "num_classes": 2}
    small = {k: torch.zeros(v.shape) for k, v in empty_model(DiTConfig(**sizes)).state_dict().items()}
    small["final_layer.linear.weight"].unflatten(0, (4, 2, 4))[:, 0] = 1.0
    torch.save(small, tmp_path / "SiT-S-2.pt")
    origin = load_origin(str(tmp_path / "SiT-S-2.pt"))
    assert (origin.objective, origin.schedule) == ("flow", {"num_train_timesteps": 1000})


def test_card_of_converted_weights_has_their_licence(state, tmp_path, monkeypatch):
    monkeypatch.setattr("dit_hf.conversion.folders._has_published_size", lambda config: config.learn_sigma)
    for name in ("SiT-XL-2-256.pt", "DiT-XL-2-256.pt"):
        weights = (
            state if name.startswith("SiT") else {k: v + (k == "final_layer.linear.weight") for k, v in state.items()}
        )
        torch.save(weights, tmp_path / name)
        convert(DiTPipeline, str(tmp_path / name), tmp_path / name[:3], vae=None, num_attention_heads=HEADS)
    cards = {name: (tmp_path / name / "README.md").read_text() for name in ("SiT", "DiT")}
    assert "license: mit\n" in cards["SiT"]
    assert "github.com/willisma/SiT" in cards["SiT"]
    assert "license: cc-by-nc-4.0\n" in cards["DiT"]
