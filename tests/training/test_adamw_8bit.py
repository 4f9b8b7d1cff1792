"""AdamW with moments of 8 bits: it follows AdamW, its moments take a quarter of the memory, and it resumes exactly."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from dit_hf import DiTConfig, DiTModel
from dit_hf.training.adamw_8bit import from_plain, quantizes, to_plain
from dit_hf.training.assembly import assemble, make_optimizer
from dit_hf.training.run import run
from dit_hf.training.settings import TrainSettings, parse_settings

FLAGS = ["--optimizer=adamw_8bit", "--lr_scheduler=constant_with_warmup", "--lr_warmup_steps=3"]


def tiny_model() -> DiTModel:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return DiTModel(DiTConfig(**size, sample_size=8, patch_size=4, num_classes=3))


def make(name: str, model: DiTModel) -> torch.optim.Optimizer:
    return make_optimizer(name, model, learning_rate=1e-3, muon_learning_rate=1, betas=(0.9, 0.99), weight_decay=0.1)


def train_by_hand(name: str, steps: int = 20) -> tuple[DiTModel, torch.optim.Optimizer]:
    """Train on gradients that do not depend on the weights, so that two optimisers see the same."""
    model = tiny_model()
    optimizer = make(name, model)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return model, optimizer


def test_weights_and_moments_follow_adamw_to_the_levels_of_8_bits():
    model, optimizer = train_by_hand("adamw_8bit")
    exact, exact_optimizer = train_by_hand("adamw")
    start = tiny_model().state_dict()
    for (name, weight), wanted in zip(model.named_parameters(), exact.parameters(), strict=True):
        if not weight.requires_grad:
            continue
        moved, error = (wanted - start[name]).norm(), (weight - wanted).norm()
        small = weight.numel() < 4096
        assert error <= (1e-6 * wanted.norm() if small else 0.03 * moved), name  # rounding of float32; of 8 bits
        assert small or error > 0, name  # 32 bits would agree


def test_moments_take_a_quarter_of_the_bytes_and_are_the_nearest_levels_of_their_blocks():
    model, optimizer = train_by_hand("adamw_8bit", steps=1)
    exact, exact_optimizer = train_by_hand("adamw", steps=1)
    for parameter, same in zip(model.parameters(), exact.parameters(), strict=True):
        state, wanted = to_plain(optimizer.state.get(parameter, {})), exact_optimizer.state.get(same, {})
        for moment in ("exp_avg", "exp_avg_sq") if state else ():
            if parameter.numel() < 4096:
                torch.testing.assert_close(state[moment], wanted[moment])
                continue
            codes, scale, levels = (state[f"{moment}.{part}"] for part in ("codes", "scale", "qmap"))
            assert (codes.nbytes, scale.nbytes) == (parameter.nbytes // 4, parameter.nbytes // 256)
            blocks = wanted[moment].reshape(-1, 256)
            difference = levels[codes.long()].reshape(-1, 256) * scale[:, None] - blocks
            assert (difference.abs() <= (levels.diff().max() / 2 + 1e-6) * blocks.abs().amax(-1, keepdim=True)).all()
            assert codes.unique().numel() > 50
    assert quantizes(optimizer)
    assert not quantizes(exact_optimizer)


def test_state_in_plain_tensors_is_the_same_state():
    _, optimizer = train_by_hand("adamw_8bit", steps=3)
    for state in optimizer.state.values():
        back = from_plain(to_plain(state))
        assert back.keys() == state.keys()
        for name, value in state.items():
            pair = [each.dequantize() if hasattr(each, "codes") else each for each in (back[name], value)]
            torch.testing.assert_close(*pair, rtol=0, atol=0)


@pytest.mark.slow
def test_training_that_resumes_ends_bit_for_bit_as_one_that_never_stopped(tiny: Path, tmp_path: Path):
    for folder, steps in (("whole", ["8"]), ("parts", ["4", "8"])):
        for each in steps:
            flags = ["--output_dir", str(tmp_path / folder), "--max_train_steps", each, *FLAGS]
            run(parse_settings([str(tiny / "tiny.yaml"), *flags]))
    checkpoints = [tmp_path / folder / "checkpoints" / "step-00000008" for folder in ("whole", "parts")]
    for file in ("model.safetensors", "ema.safetensors"):
        torch.testing.assert_close(*(load_file(each / file) for each in checkpoints), rtol=0, atol=0)
    states = [torch.load(each / "optimizer.pt", weights_only=True) for each in checkpoints]
    torch.testing.assert_close(*(each["optimizer"]["state"] for each in states), rtol=0, atol=0)
    assert any(
        value.dtype == torch.uint8 for state in states[0]["optimizer"]["state"].values() for value in state.values()
    )
    command = [str(tiny / "tiny.yaml"), "--output_dir", str(tmp_path / "parts"), *FLAGS[1:]]
    with pytest.raises(ValueError, match="optimizer was 'adamw_8bit' and is 'adamw'"):
        run(parse_settings(command))
    with pytest.raises(ValueError, match="the checkpoint is of another optimizer"):
        run(parse_settings([*command, "--allow_config_change"]))


def test_warm_up_changes_the_rate_that_a_step_reads():
    model = tiny_model()
    warm_up = {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 4}
    assembly = assemble(
        Accelerator(cpu=True), model, learning_rate=1e-3, optimizer="adamw_8bit", ema_decays=[0.9], **warm_up
    )
    for step in range(6):
        before = model.x_embedder.proj.bias.detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        assembly.optimizer.step()
        assembly.state.lr_scheduler.step()
        moved = (before - model.x_embedder.proj.bias).detach()  # Adam moves by the rate where gradients stay equal
        torch.testing.assert_close(moved, torch.full_like(moved, 1e-3 * min(step / 4, 1)), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_split_moments_are_refused(kind: DistributedType):
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type = kind
    try:
        with pytest.raises(ValueError, match="optimizer='adamw_8bit' was never tried with FSDP or DeepSpeed"):
            assemble(accelerator, tiny_model(), learning_rate=1e-3, optimizer="adamw_8bit", ema_decays=[0.9])
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def test_missing_torchao_is_said_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dit_hf.extras.is_installed", lambda module: module != "torchao")
    with pytest.raises(ImportError, match="optimizer='adamw_8bit' needs the package torchao.*`pip install torchao`"):
        make("adamw_8bit", tiny_model())


def test_rate_of_muon_has_no_effect_beside_it():
    with pytest.raises(ValueError, match="muon_learning_rate=0.01 has no effect with optimizer='adamw_8bit'"):
        TrainSettings(optimizer="adamw_8bit", muon_learning_rate=0.01)
