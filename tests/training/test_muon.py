"""Muon against its closed form, torch's Muon and torch's AdamW, and in whole trainings."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from switches import ALL
from torch.utils.flop_counter import FlopCounterMode

from dit_hf import DiTConfig, DiTModel
from dit_hf.training.assembly import assemble, make_optimizer
from dit_hf.training.muon import COEFFICIENTS, NUM_ITERATIONS, block_matrices, orthogonalize
from dit_hf.training.processes.sharding import set_distributed_type
from dit_hf.training.run import run
from dit_hf.training.settings import TrainSettings, card_names, parse_settings

BLOCKS = ("in_context", "cross_attention", "adaln", "adaln_zero")


def tiny_model(**fields) -> DiTModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "sample_size": 4, "num_classes": 3}
    return DiTModel(DiTConfig(**{**shape, **fields}))


def random_gradients(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def muon(model: DiTModel, dtype: torch.dtype, weight_decay: float) -> torch.optim.Optimizer:
    rates = {"learning_rate": 1e-3, "muon_learning_rate": 0.02}
    optimizer = make_optimizer("muon", model, **rates, betas=(0.9, 0.99), weight_decay=weight_decay)
    optimizer.dtype = dtype
    return optimizer


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 7), (2, 5, 12), (2, 12, 5)])
def test_newton_schulz_changes_the_singular_values_alone_by_the_polynomial(shape: tuple[int, ...]):
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(NUM_ITERATIONS):
        s = sum(coefficient * s ** (2 * k + 1) for k, coefficient in enumerate(COEFFICIENTS))
    torch.testing.assert_close(orthogonalize(matrices), u * s[:, None] @ vh, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shape", [(2, 96, 96), (2, 96, 384)])
def test_small_singular_values_do_not_grow_by_rounding_in_bfloat16(shape: tuple[int, ...]):
    """The polynomial brings no singular value above 1.21, however far the values lie apart."""
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    matrices = u * torch.logspace(0, -6, 96) @ vh
    values = torch.linalg.svdvals(orthogonalize(matrices.bfloat16()).float())
    assert 0.6 < values[:, 0].min() <= values.max() < 1.3  # with what rounding to eight bits adds


@pytest.mark.parametrize(("shape", "multiply_adds"), [((3, 8, 8), 15), ((3, 8, 32), 30), ((3, 16, 8), 22)])
def test_multiply_adds_are_the_closed_form(shape: tuple[int, ...], multiply_adds: int):
    """10 r + 5 for a matrix n x r n with r < 2 and 4 r + 14 for others, in n^3."""
    with FlopCounterMode(display=False) as counter:
        orthogonalize(torch.ones(shape))
    assert counter.get_total_flops() == 2 * shape[0] * multiply_adds * 8**3


def test_matrix_of_zeros_stays_zero():
    assert not orthogonalize(torch.zeros(2, 4, 6)).any()


@pytest.mark.parametrize("gated", [False, True], ids=["paper", "every switch"])
@pytest.mark.parametrize("block_type", BLOCKS)
def test_muon_trains_the_linears_of_attention_and_feed_forward_and_nothing_else(block_type: str, gated: bool):
    stacked = block_matrices(tiny_model(block_type=block_type, **(ALL if gated else {})))
    expected = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 1, "mlp.fc2": 1} | ({"mlp.gate": 1} if gated else {})
    if block_type == "cross_attention":
        expected |= {"cross_attn.q": 1, "cross_attn.kv": 2, "cross_attn.proj": 1}
    assert stacked == {f"blocks.{i}.{name}.weight": count for i in range(2) for name, count in expected.items()}


def split_by_hand(model: DiTModel) -> dict[str, torch.nn.Parameter]:
    """The matrices of a model as parameters of their own, by name and number."""
    heights = {"qkv": 3, "kv": 2}
    parts = {}
    for name, weight in model.named_parameters():
        layer, _, linear = name.removesuffix(".weight").rpartition(".")
        if weight.ndim == 2 and layer.endswith(("attn", "mlp")):
            for index, part in enumerate(weight.detach().chunk(heights.get(linear, 1))):
                parts[f"{name}/{index}"] = torch.nn.Parameter(part.clone())
    return parts


@pytest.mark.parametrize(("block_type", "switches"), [("cross_attention", {}), ("adaln_zero", ALL)])
def test_steps_equal_those_of_torch_s_muon_and_adamw_on_matrices_split_by_hand(block_type: str, switches: dict):
    model = tiny_model(block_type=block_type, **switches)
    names = block_matrices(model)
    parts = split_by_hand(model)
    others = {
        name: torch.nn.Parameter(weight.detach().clone())
        for name, weight in model.named_parameters()
        if name not in names and weight.requires_grad
    }
    ours = muon(model, torch.bfloat16, weight_decay=0.1)
    theirs = torch.optim.Muon(parts.values(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others.values(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    for seed in range(3):
        random_gradients(model, seed)
        gradients = {name: weight.grad for name, weight in model.named_parameters()}
        for name, other in others.items():
            other.grad = gradients[name].clone()
        for name, part in parts.items():
            whole, _, index = name.partition("/")
            rows = len(part)
            part.grad = gradients[whole][int(index) * rows : (int(index) + 1) * rows].clone()
        for each in (ours, theirs, adamw):
            each.step()
    trained = dict(model.named_parameters())
    for name, other in others.items():
        assert torch.equal(trained[name], other)
    for name in names:
        whole = torch.cat([part for each, part in parts.items() if each.startswith(f"{name}/")])
        # 3 steps of 0.02 * 0.2 * sqrt(128); bfloat16 may round sums that are taken in another order otherwise
        torch.testing.assert_close(trained[name], whole, rtol=0, atol=3e-3)
        assert (trained[name] - whole).norm() < 0.02 * whole.norm()


def test_steps_in_float32_are_the_formula_in_float64():
    """Momentum, Nesterov's look ahead, weight decay and the size of a step, each matrix of a weight by itself."""
    model = tiny_model(block_type="cross_attention", **ALL)
    optimizer, weights = muon(model, torch.float32, weight_decay=0.1), dict(model.named_parameters())
    stacked = block_matrices(model)
    exact = {name: weights[name].detach().double() for name in stacked}
    momentum = {name: torch.zeros_like(weight) for name, weight in exact.items()}
    for seed in range(3):
        random_gradients(model, seed)
        for name, count in stacked.items():
            gradient = weights[name].grad.double()
            momentum[name] = 0.95 * momentum[name] + 0.05 * gradient
            parts = (0.05 * gradient + 0.95 * momentum[name]).chunk(count)
            move = torch.cat([orthogonalize(part[None])[0] for part in parts])
            step = 0.02 * 0.2 * max(parts[0].shape) ** 0.5
            exact[name] = (1 - 0.02 * 0.1) * exact[name] - step * move
        optimizer.step()
    found = {name: weights[name].detach().double() for name in stacked}
    # float32, whose rounding the iterations carry on; without Nesterov's part the difference is 1e-3
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)


def test_step_that_a_loss_scaler_skips_changes_nothing():
    model = tiny_model()
    optimizer, scaler = muon(model, torch.float32, weight_decay=0.1), torch.amp.GradScaler("cpu", init_scale=2.0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    scaler.scale(torch.ones(()))  # makes the scale
    for value, changes in ((float("inf"), False), (1.0, True)):
        random_gradients(model, 0)
        model.final_layer.linear.bias.grad[0] = value
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        for name, weight in model.named_parameters():
            assert torch.equal(weight, before[name]) != (changes and weight.requires_grad), name


def test_warm_up_scales_both_rates():
    assembly = assemble(
        Accelerator(cpu=True),
        tiny_model(),
        learning_rate=1e-3,
        optimizer="muon",
        muon_learning_rate=0.02,
        ema_decays=[0.9],
        lr_scheduler="constant_with_warmup",
        lr_warmup_steps=4,
    )
    for expected in (0, 0.25, 0.5, 0.75, 1, 1):
        rates = assembly.state.lr_scheduler.get_last_lr()
        torch.testing.assert_close(rates, [1e-3 * expected, *([0.02 * expected] * (len(rates) - 1))])
        assembly.optimizer.step()
        assembly.state.lr_scheduler.step()


@pytest.mark.parametrize(
    ("name", "frozen", "message"),
    [
        ("lion", False, "optimizer='lion' is unknown: choose adamw, adamw_8bit or muon"),
        ("muon", True, "all blocks are frozen"),
    ],
)
def test_optimizer_that_cannot_be_made_is_refused(name: str, frozen: bool, message: str):
    model = tiny_model()
    model.blocks.requires_grad_(not frozen)
    with pytest.raises(ValueError, match=message):
        make_optimizer(name, model, learning_rate=1, muon_learning_rate=1, betas=(0.9, 0.99), weight_decay=0)


def test_deepspeed_which_splits_matrices_as_lists_of_numbers_is_refused():
    accelerator = Accelerator(cpu=True)
    set_distributed_type(accelerator, DistributedType.DEEPSPEED)
    try:
        with pytest.raises(ValueError, match="launch with FSDP2, as examples/accelerate/fsdp2.yaml"):
            assemble(accelerator, tiny_model(), learning_rate=1e-3, optimizer="muon", ema_decays=[0.9])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"muon_learning_rate": 0.01}, "muon_learning_rate=0.01 has no effect with optimizer='adamw'"),
        ({"optimizer": "lion"}, "optimizer='lion' is not possible: set it to one of adamw, adamw_8bit, muon"),
        ({"optimizer": "muon", "init_from": "x", "lora_rank": 2}, "which lora_rank freezes"),
    ],
)
def test_settings_that_contradict_the_optimizer_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**settings)


def test_card_shows_the_rate_of_muon_only_where_it_has_an_effect():
    assert "muon_learning_rate" not in card_names(TrainSettings())
    assert card_names(TrainSettings(optimizer="muon"))["muon_learning_rate"] == "learning rate of Muon"


def train(tiny: Path, output_dir: Path, *flags: str) -> Path:
    muon = ["--optimizer", "muon", "--muon_learning_rate", "0.02", "--lr_scheduler", "constant_with_warmup"]
    settings = [str(tiny / "tiny.yaml"), "--output_dir", str(output_dir), *muon, "--lr_warmup_steps", "3", *flags]
    run(parse_settings(settings))
    return output_dir


def files(out: Path) -> dict[str, bytes]:
    folder = out / "checkpoints" / "step-00000008"
    return {name: (folder / f"{name}.safetensors").read_bytes() for name in ("model", "ema")}


def optimizer_state(out: Path) -> dict:
    file = out / "checkpoints" / "step-00000008" / "optimizer.pt"
    return torch.load(file, weights_only=True)["optimizer"]["state"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--mixed_precision", "bf16", "--gradient_accumulation_steps", "2"],
        pytest.param(["--torch_compile"], marks=pytest.mark.long),
    ],
)
def test_training_that_resumes_ends_bit_for_bit_as_one_that_never_stopped(tiny: Path, tmp_path: Path, flags: list[str]):
    whole = train(tiny, tmp_path / "whole", *flags)
    train(tiny, tmp_path / "parts", *flags, "--max_train_steps", "4")
    parts = train(tiny, tmp_path / "parts", *flags)
    assert files(whole) == files(parts)
    torch.testing.assert_close(optimizer_state(whole), optimizer_state(parts), rtol=0, atol=0)
    rows = [json.loads(line) for line in (parts / "metrics.jsonl").read_text().splitlines()]
    assert [row["muon_learning_rate"] for row in rows] == pytest.approx([0, 0.02 / 3, 0.04 / 3, *[0.02] * 5])
    assert [row["learning_rate"] for row in rows] == pytest.approx([0, 1e-3 / 3, 2e-3 / 3, *[1e-3] * 5])
    assert "| learning rate of Muon | 0.02 |" in (parts / "pipeline" / "README.md").read_text()


@pytest.mark.slow
def test_optimizer_of_a_training_does_not_change_at_resume(tiny: Path, tmp_path: Path):
    train(tiny, tmp_path, "--max_train_steps", "2", "--checkpointing_steps", "2")
    command = [str(tiny / "tiny.yaml"), "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match="optimizer was 'muon' and is 'adamw'"):
        run(parse_settings(command))
    with pytest.raises(ValueError, match="the checkpoint is of another optimizer"):
        run(parse_settings([*command, "--allow_config_change"]))
