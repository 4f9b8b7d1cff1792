"""The loop against the original's twelve steps, and against one big batch."""

import json
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import GradientState
from safetensors import safe_open
from safetensors.torch import load_file

from dit_hf import DiTConfig, DiTModel
from dit_hf.diffusion import OBJECTIVES, HybridLoss
from dit_hf.training.ema import EMA
from dit_hf.training.loop import Draws, KeyedDraws, LatentBatch, train_steps


def start(model: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulation: int = 1):
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    return accelerator, *accelerator.prepare(model, optimizer)


def constant_lr(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def test_twelve_steps_equal_those_of_the_original(golden_dir: Path):
    with safe_open(golden_dir / "train_12_steps_init.safetensors", "pt") as file:
        metadata = file.metadata()
    original = json.loads(metadata["config"])
    names = {"input_size": "sample_size", "depth": "num_hidden_layers", "num_heads": "num_attention_heads"}
    model = DiTModel(DiTConfig(**{names.get(key, key): value for key, value in original.items()}))
    model.load_state_dict(load_file(golden_dir / "train_12_steps_init.safetensors"))
    with np.load(golden_dir / "train_12_steps.npz") as arrays:
        golden = {name: torch.from_numpy(array) for name, array in arrays.items()}

    # evaluation mode: the null labels stand in y already
    optimizer = torch.optim.AdamW(model.parameters(), lr=golden["lr"].item(), weight_decay=0, fused=True)
    ema = EMA(model, [golden["ema_decay"].item()])
    accelerator, prepared, prepared_optimizer = start(model.eval(), optimizer)
    batches = [
        LatentBatch(x_0, y, [], (0, k)) for k, (x_0, y) in enumerate(zip(golden["x0"], golden["y"], strict=True))
    ]

    def draw(batch: LatentBatch) -> Draws:
        k = batch.next_position[1]
        return Draws(golden["t"][k], golden["noise"][k], None)

    scheduler = constant_lr(optimizer)
    records = list(
        train_steps(accelerator, prepared, prepared_optimizer, scheduler, ema, HybridLoss(), iter(batches), draw)
    )
    assert [record.step for record in records] == list(range(1, 13))
    losses = torch.stack([record.losses["loss"] for record in records])
    torch.testing.assert_close(losses, golden["losses"].to(losses), rtol=1e-5, atol=1e-5)
    for trained, name in ((model, "final"), (ema.module, "ema")):
        expected = load_file(golden_dir / f"train_12_steps_{name}.safetensors")
        expected.pop("pos_embed")  # the original's average lets it drift, ours does not
        assert torch.equal(trained.pos_embed, model.pos_embed)
        for key, weight in expected.items():
            torch.testing.assert_close(trained.state_dict()[key], weight, rtol=1e-5, atol=1e-5)


def tiny_model() -> DiTModel:
    torch.manual_seed(0)
    config = DiTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, sample_size=4, num_classes=3, learn_sigma=False
    )
    return DiTModel(config)


def batches(batch_size: int, count: int) -> list[LatentBatch]:
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.randn(batch_size * count, 4, 4, 4, generator=generator)
    y = torch.randint(3, (batch_size * count,), generator=generator)
    cuts = [slice(k * batch_size, (k + 1) * batch_size) for k in range(count)]
    return [LatentBatch(x_0[cut], y[cut], [(0, i) for i in range(cut.start, cut.stop)], (0, cut.stop)) for cut in cuts]


def test_accumulated_batches_make_the_step_of_the_big_batch():
    results = []
    for batch_size, accumulation in ((12, 1), (4, 3)):
        GradientState._reset_state()
        model = tiny_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        accelerator, *prepared = start(model, optimizer, accumulation)
        objective = OBJECTIVES["epsilon"]()
        draw = KeyedDraws(0, objective, 0.1)
        stream = iter(batches(batch_size, 2 * accumulation))
        records = list(
            train_steps(accelerator, *prepared, constant_lr(optimizer), EMA(model, [0.5]), objective, stream, draw)
        )
        assert [record.images_seen for record in records] == [12, 24]
        results.append((model.state_dict(), [record.losses["loss"] for record in records]))
    torch.testing.assert_close(*results)


def test_gradients_are_clipped_and_their_norm_is_told():
    model = tiny_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    accelerator, *prepared = start(model, optimizer)
    objective = OBJECTIVES["epsilon"]()
    draw, stream = KeyedDraws(0, objective, 0.1), iter(batches(8, 1))
    (record,) = train_steps(
        accelerator,
        *prepared,
        constant_lr(optimizer),
        EMA(model, [0.5]),
        objective,
        stream,
        draw,
        max_grad_norm=1e-3,
    )
    moved = torch.stack([(weight - before[name]).norm() for name, weight in model.state_dict().items()]).norm()
    assert record.grad_norm > 0.1
    torch.testing.assert_close(moved, torch.tensor(1e-3), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["hybrid", "flow"])
def test_draws_of_a_sample_do_not_depend_on_its_batch(name):
    draw = KeyedDraws(7, OBJECTIVES[name](), 0.5)
    whole = draw(batches(6, 1)[0])
    parts = [draw(batch) for batch in batches(2, 3)]
    for field in Draws._fields:
        torch.testing.assert_close(torch.cat([getattr(part, field) for part in parts]), getattr(whole, field))
    other_seed = KeyedDraws(8, OBJECTIVES[name](), 0.5)(batches(6, 1)[0])
    assert not torch.allclose(other_seed.noise, whole.noise)


@pytest.mark.slow
def test_draws_have_the_distributions_of_the_paper():
    draws = KeyedDraws(0, HybridLoss(), 0.1)(batches(20_000, 1)[0])
    assert draws.timestep.min() >= 0
    assert draws.timestep.max() <= 999
    assert abs(draws.timestep.float().mean() - 499.5) < 10  # five standard errors of a mean of 20,000
    assert abs(draws.timestep.float().std() - 288.7) < 7
    assert abs(draws.drop_labels.float().mean() - 0.1) < 0.011
    assert abs(draws.noise.mean()) < 0.005
    assert abs(draws.noise.std() - 1) < 0.005
    assert abs(np.corrcoef(draws.timestep, draws.drop_labels)[0, 1]) < 0.036


def test_largest_uniform_number_is_a_timestep(monkeypatch):
    class Largest:
        def random(self, size, dtype=np.float64):
            return np.full(size, np.nextafter(dtype(1), dtype(0)))

        def standard_normal(self, shape, dtype):
            return np.zeros(shape, dtype)

    monkeypatch.setattr(np.random, "default_rng", lambda key: Largest())
    assert KeyedDraws(0, HybridLoss(), 0.1)(batches(1, 1)[0]).timestep.tolist() == [999]


def test_loop_asks_for_no_more_batches_than_steps():
    taken = []
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    accelerator, *prepared = start(model, optimizer)
    endless = (taken.append(1) or batch for batch in cycle(batches(2, 2)))
    objective = OBJECTIVES["epsilon"]()
    draw = KeyedDraws(0, objective, 0.1)
    steps = train_steps(accelerator, *prepared, constant_lr(optimizer), EMA(model, [0.5]), objective, endless, draw)
    assert [record.step for record in islice(steps, 3)] == [1, 2, 3]
    assert len(taken) == 3
