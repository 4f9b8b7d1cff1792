"""LayerSync against its formula on tokens that are computed block by block, and as a setting of a training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dit_hf import DiTConfig, DiTModel
from dit_hf.diffusion import OBJECTIVES
from dit_hf.training.batch import Draws, LatentBatch
from dit_hf.training.run import run
from dit_hf.training.settings import parse_settings
from dit_hf.training.techniques import LayerSync, Techniques, Tread

WEIGHT, BLOCK, TARGET = 0.3, 2, 4


def make_model(block_type: str = "adaln_zero", **switches: Any) -> DiTModel:
    """A model of 16 patches and 5 blocks, none of whose weights is zero."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 5, "num_attention_heads": 2, "sample_size": 8, "num_classes": 3}
    model = DiTModel(DiTConfig(**sizes, learn_sigma=False, block_type=block_type, **switches))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


def make_batch() -> LatentBatch:
    x_0 = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return LatentBatch(x_0, torch.tensor([0, 1, 2]), [(0, 0), (0, 1), (0, 2)], (0, 3))


def forward(model: DiTModel, **techniques: Any) -> dict[str, torch.Tensor]:
    batch, objective = make_batch(), OBJECTIVES["sample"]()
    draws = Draws(torch.tensor([100, 500, 900]), torch.zeros_like(batch.x_0), torch.zeros(3, dtype=torch.bool))

    def compute() -> dict[str, torch.Tensor]:
        arguments = {"class_labels": batch.class_labels, "drop_labels": draws.drop_labels}
        return objective(model, batch.x_0, timestep=draws.timestep, noise=draws.noise, **arguments)

    return Techniques(techniques).apply(compute, model, batch, draws)


def layer_sync() -> LayerSync:
    return LayerSync(WEIGHT, 16, BLOCK, TARGET)


def tokens_by_hand(model: DiTModel) -> list[np.ndarray]:
    """Tokens of the patches after 1, 2, ... blocks, in float64."""
    batch, model = make_batch(), model.double()
    objective = OBJECTIVES["sample"]()
    t = torch.tensor([100, 500, 900])
    x_t = objective.schedule.alpha_bar[t].sqrt().reshape(-1, 1, 1, 1) * batch.x_0.double()
    embedding = model.condition(t, batch.class_labels, torch.zeros(3, dtype=torch.bool)).embedding
    x = model.x_embedder(x_t) + model.pos_embed
    if model.config.block_type == "in_context":
        x = torch.cat([x, embedding], dim=1)
    found = []
    for block in model.blocks:
        x = block(x, embedding)
        found.append(x[:, :16].detach().numpy())
    return found


@pytest.mark.parametrize("block_type", ["in_context", "cross_attention", "adaln", "adaln_zero"])
def test_term_is_one_minus_the_mean_cosine_over_the_patches(block_type):
    model = make_model(block_type)
    losses = forward(model, layer_sync=layer_sync())
    plain = forward(model)
    early, late = (tokens_by_hand(model)[number - 1] for number in (BLOCK, TARGET))
    cosine = (early * late).sum(-1) / np.sqrt((early**2).sum(-1) * (late**2).sum(-1))  # (B, N)
    np.testing.assert_allclose(losses["layer_sync"].detach(), WEIGHT * (1 - cosine.mean(1)), rtol=1e-4)  # float32
    torch.testing.assert_close(losses["loss"], plain["loss"] + losses["layer_sync"])
    torch.testing.assert_close(losses["mse"], plain["mse"])


def test_no_gradient_flows_through_the_later_tokens():
    model = make_model()
    forward(model, layer_sync=layer_sync())["layer_sync"].sum().backward()
    moved = {n for n, each in model.named_parameters() if each.grad is not None and each.grad.abs().sum() > 0}
    blocks = {int(name.split(".")[1]) for name in moved if name.startswith("blocks.")}
    assert blocks == {0, 1}
    assert any(name.startswith("x_embedder") for name in moved)


def test_compiled_and_checkpointed_blocks_give_the_same_losses_and_gradients():
    expected, models = None, [make_model() for _ in range(3)]
    torch._dynamo.reset()
    models[1].compile_repeated_blocks(backend="eager")  # the graphs are the point, not their code
    models[2].gradient_checkpointing_enable()
    for model in models:
        technique = layer_sync()
        for _ in range(2):  # the second time, no tokens of the first may be left
            model.zero_grad()
            losses = forward(model, layer_sync=technique)
            losses["loss"].mean().backward()
            with torch.no_grad():
                model.x_embedder.proj.weight.add_(0.1)
        found = losses["layer_sync"], {n.replace("_orig_mod.", ""): p.grad for n, p in model.named_parameters()}
        expected = expected or found
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_routed_tokens_and_the_first_values_of_a_model_are_no_hindrance():
    model = make_model(value_residual=True)
    losses = forward(model, tread=Tread(0.5, 16, 1, 2), layer_sync=layer_sync())
    assert (losses["layer_sync"] > 0).all()


def build(*flags: str, **config: Any) -> Any:
    with torch.device("meta"):
        model = DiTModel(DiTConfig.from_name("DiT-XL/2", **config))
    return LayerSync.build(parse_settings(list(flags)).techniques["layer_sync"], OBJECTIVES["sample"](), model)


def test_the_default_blocks_are_those_of_the_paper():
    assert build() is None
    found = build("--layer_sync_weight", "0.2")
    assert (found.weight, found.num_patches, found.block, found.target) == (0.2, 256, 8, 16)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer_sync_block", "16"], "layer_sync_block=16 and layer_sync_target=16 are no two blocks of 28"),
        (["--layer_sync_target", "29"], "layer_sync_target=29 .* set both to numbers from 1 to 28"),
        (["--layer_sync_block", "0"], "layer_sync_block=0 is not possible"),
    ],
)
def test_blocks_that_the_model_does_not_have_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        build("--layer_sync_weight", "0.2", *flags)


def test_blocks_without_a_weight_are_refused():
    with pytest.raises(ValueError, match="layer_sync_block=3 has no effect without layer_sync_weight"):
        parse_settings(["--layer_sync_block", "3"])


def train(tiny: Path, folder: Path, *flags: str) -> list[dict[str, float]]:
    settings = parse_settings([str(tiny / "tiny.yaml"), "--output_dir", str(folder), "--ema_decay", "0.01", *flags])
    run(settings)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_training_reports_the_term_and_may_accumulate_batches(tiny: Path, tmp_path: Path):
    flags = ("--layer_sync_weight", "0.2", "--layer_sync_block", "1", "--layer_sync_target", "2")
    flags = (*flags, "--max_train_steps", "4", "--learning_rate", "0.01")
    rows = train(tiny, tmp_path / "whole", *flags)
    assert all(row["loss"] == pytest.approx(row["mse"] + row["vb"] + row["layer_sync"], rel=1e-5) for row in rows)
    assert rows[0]["layer_sync"] == pytest.approx(0, abs=1e-6)  # fresh blocks of adaLN-Zero change nothing
    assert 0 < rows[-1]["layer_sync"] < 0.4
    halves = train(tiny, tmp_path / "halves", *flags, "--train_batch_size", "3", "--gradient_accumulation_steps", "2")
    np.testing.assert_allclose([row["loss"] for row in rows], [row["loss"] for row in halves], rtol=1e-4)
    assert "weight of LayerSync | 0.2" in (tmp_path / "whole" / "pipeline" / "README.md").read_text()
    with pytest.raises(ValueError, match="layer_sync_weight was 0.2 and is None"):
        train(tiny, tmp_path / "whole", "--max_train_steps", "4", "--learning_rate", "0.01")
