"""TREAD against the model's blocks called by hand, one sample after the other, and as a setting of a training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from dit_hf import DiTConfig, DiTModel
from dit_hf.diffusion import OBJECTIVES
from dit_hf.modeling_dit import unpatchify
from dit_hf.training.assembly import assemble, build_techniques
from dit_hf.training.batch import Draws, LatentBatch, StepRecord
from dit_hf.training.observer import Observer
from dit_hf.training.processes.sharding import set_distributed_type
from dit_hf.training.run import run
from dit_hf.training.settings import parse_settings
from dit_hf.training.techniques import Technique, Techniques, Tread, changed_blocks

DESIGNS = ["in_context", "cross_attention", "adaln", "adaln_zero"]
DEPTH = ("--model_overrides", '{"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}')
ROUTED = ("--tread_share", "0.5", "--tread_first_block", "1", "--tread_last_block", "2")


def make_model(block_type: str = "adaln_zero", **switches: Any) -> DiTModel:
    """A model of 16 patches and 5 blocks in float64, none of whose weights is zero."""
    torch.manual_seed(0)
    config = DiTConfig(
        hidden_size=16,
        num_hidden_layers=5,
        num_attention_heads=2,
        sample_size=8,
        num_classes=3,
        learn_sigma=False,
        block_type=block_type,
        **switches,
    )
    model = DiTModel(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


def make_batch(positions: list[tuple[int, int]]) -> LatentBatch:
    x_0 = torch.stack([torch.full((4, 8, 8), float(offset)).double() for _, offset in positions])
    return LatentBatch(x_0, torch.tensor([offset % 3 for _, offset in positions]), positions, (0, 0))


class Recorder(Technique):
    """Records the tokens before and after each block."""

    def __init__(self) -> None:
        self.tokens: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def around(self, model: Any, forward: Any) -> Any:
        def record(index: int) -> Any:
            def call(block: Any, x: torch.Tensor, *arguments: Any) -> Any:
                answer = block(x, *arguments)
                self.tokens[index] = (x, answer[0] if isinstance(answer, tuple) else answer)
                return answer

            return call

        return changed_blocks(model, {index: record(index) for index in range(len(model.blocks))})


def compute_losses(
    techniques: Techniques, model: DiTModel, batch: LatentBatch, step: int = 0, predictions: list | None = None
) -> dict[str, torch.Tensor]:
    """Losses of an objective that is zero, and the model's predictions."""
    draws = Draws(torch.full((len(batch.x_0),), 500), torch.zeros_like(batch.x_0), None)
    keep = torch.zeros(len(batch.x_0), dtype=torch.bool)

    def compute() -> dict[str, torch.Tensor]:
        prediction = model(batch.x_0, draws.timestep, batch.class_labels, drop_labels=keep).sample
        if predictions is not None:
            predictions.append(prediction)
        return {"loss": torch.zeros(len(batch.x_0)), "mse": torch.zeros(len(batch.x_0))}

    return techniques.apply(compute, model, batch, draws, step)


def predict(techniques: Techniques, model: DiTModel, batch: LatentBatch, step: int = 0) -> torch.Tensor:
    """Prediction of a model that techniques train."""
    predictions: list[torch.Tensor] = []
    compute_losses(techniques, model, batch, step, predictions)
    return predictions[0]


def predict_by_hand(model: DiTModel, batch: LatentBatch, kept: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """Section 3 of the paper, a sample at a time: the kept tokens alone pass the blocks first..last."""
    predictions = []
    for k in range(len(batch.x_0)):
        label = batch.class_labels[k : k + 1]
        embedding = model.condition(torch.tensor([500]), label, torch.tensor([False])).embedding
        positions = model.positions()
        x = model.x_embedder(batch.x_0[k : k + 1]).float()
        if positions.embedding is not None:
            x = x + positions.embedding.float()
        num_patches = x.shape[1]
        chosen = patches = kept[k].tolist()
        if model.config.block_type == "in_context":
            x = torch.cat([x, embedding.float()], dim=1)
            chosen = [*patches, num_patches, num_patches + 1]
        values = None
        for index, block in enumerate(model.blocks):
            is_routed = first <= index <= last
            tokens, rows = (
                (x[:, chosen], values[:, chosen] if values is not None else None) if is_routed else (x, values)
            )
            angles = positions.attention
            if angles is not None and is_routed:
                angles = angles[:, patches]
            answer = block(tokens, embedding, None, angles, rows)
            if model.config.value_residual:
                answer, own_values = answer
                values = own_values if values is None else values
            if is_routed:
                places = range(x.shape[1])
                answer = torch.stack([answer[0, chosen.index(j)] if j in chosen else x[0, j] for j in places])[None]
            x = answer
        predictions.append(unpatchify(model.final_layer(x[:, :num_patches], embedding), model.config))
    return torch.cat(predictions)


def drawn(technique: Tread, batch: LatentBatch, seed: int = 0) -> torch.Tensor:
    return technique.draw(batch, list(Techniques({}, seed)._generators("tread", batch)))


SWITCHES: list[dict[str, Any]] = [
    {},
    {"position_embedding": "rope", "rope_theta": 100.0},
    {"position_embedding": "both", "value_residual": True, "qk_norm": True, "mlp": "swiglu", "norm": "rms"},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda each: "-".join(each) or "paper")
@pytest.mark.parametrize("block_type", DESIGNS)
def test_kept_tokens_pass_the_route_as_if_they_were_alone_and_the_others_wait(block_type, switches):
    model, batch = make_model(block_type, **switches), make_batch([(0, 3), (0, 4), (1, 3)])
    tread, recorder = Tread(0.5, 16, first_block=1, last_block=3), Recorder()
    prediction = predict(Techniques({"recorder": recorder, "tread": tread}), model, batch)
    kept = drawn(tread, batch)
    assert kept.shape == (3, 8)
    torch.testing.assert_close(prediction, predict_by_hand(model, batch, kept, 1, 3), rtol=1e-4, atol=1e-4)  # float32
    seen = {index: before.shape[1] for index, (before, _) in recorder.tokens.items()}
    conditioning = 2 if block_type == "in_context" else 0  # tokens of timestep and label, which are never routed
    assert seen == {index: conditioning + (8 if 1 <= index <= 3 else 16) for index in range(5)}


def test_what_reads_the_tokens_within_the_route_finds_all_of_them():
    model, batch = make_model(), make_batch([(0, 3), (0, 4)])
    tread, recorder = Tread(0.25, 16, first_block=1, last_block=3), Recorder()
    predict(Techniques({"tread": tread, "recorder": recorder}), model, batch)
    before, after = recorder.tokens[1][0], recorder.tokens[3][1]  # around the whole route
    for k, kept in enumerate(drawn(tread, batch)):
        waited = torch.isin(torch.arange(16), kept, invert=True)
        assert waited.sum() == 4
        torch.testing.assert_close(after[k, waited], before[k, waited], rtol=0, atol=0)
        assert not torch.isclose(after[k, ~waited], before[k, ~waited]).all(dim=1).any()


def test_techniques_that_settings_name_find_all_tokens_after_a_routed_block():
    model, batch = make_model(), make_batch([(0, 3), (0, 4)])
    tread, sync = ("--tread_share", "0.5", "--tread_last_block", "3"), ("--layer_sync_weight", "0.3")
    settings = parse_settings([*tread, *sync, "--layer_sync_block", "3", "--layer_sync_target", "4"])
    built = build_techniques(settings, OBJECTIVES["sample"](), model)
    recorder = Recorder()
    losses = compute_losses(Techniques({**built.active, "recorder": recorder}), model, batch)
    early, late = (recorder.tokens[index][1].detach().double().numpy() for index in (2, 3))
    assert early.shape[1] == 16
    cosine = (early * late).sum(-1) / np.linalg.norm(early, axis=-1) / np.linalg.norm(late, axis=-1)
    np.testing.assert_allclose(losses["layer_sync"].detach(), 0.3 * (1 - cosine.mean(1)), rtol=1e-4)  # float32


def test_tokens_are_drawn_by_seed_epoch_and_position_alone():
    tread, positions = Tread(0.5, 16, 1, 3), [(0, 3), (0, 4), (1, 3)]
    whole = drawn(tread, make_batch(positions))
    assert torch.equal(whole, torch.cat([drawn(tread, make_batch([each])) for each in positions]))
    assert len({tuple(row) for row in whole.tolist()}) == 3
    assert not torch.equal(whole, drawn(tread, make_batch(positions), seed=1))
    many = drawn(tread, make_batch([(0, k) for k in range(2000)]))
    share = torch.bincount(many.flatten(), minlength=16) / 2000  # each token waits as often: binomial, 5 sigma
    torch.testing.assert_close(share, torch.full((16,), 0.5), rtol=0, atol=5 * (0.25 / 2000) ** 0.5)


def test_routing_ends_after_its_steps_and_with_its_forward():
    model, batch = make_model(), make_batch([(0, 3), (0, 4)])
    blocks, plain = list(model.blocks), predict(Techniques(), model, batch)
    techniques = Techniques({"tread": Tread(0.5, 16, 1, 3, num_steps=7)})
    assert not torch.allclose(predict(techniques, model, batch, step=6), plain)
    assert list(model.blocks) == blocks
    assert torch.equal(predict(techniques, model, batch, step=7), plain)
    with pytest.raises(ValueError, match="latents of shape"):
        predict(techniques, model, LatentBatch(batch.x_0[:, :2], batch.class_labels, batch.positions, (0, 0)))
    assert list(model.blocks) == blocks


def test_compiled_blocks_are_routed_anew_in_each_step():
    model = make_model()
    batches = [make_batch([(0, k), (0, k + 1)]) for k in (3, 5)]
    techniques = Techniques({"tread": Tread(0.5, 16, 1, 3)})
    expected = [predict(techniques, model, each) for each in batches]
    torch._dynamo.reset()
    model.compile_repeated_blocks(backend="eager")  # the graphs are the point, not their code
    for each, wanted in zip(batches, expected, strict=True):
        torch.testing.assert_close(predict(techniques, model, each), wanted, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_computes_the_same_gradients():
    model, batch = make_model(), make_batch([(0, 3), (0, 4)])
    techniques, gradients = Techniques({"tread": Tread(0.5, 16, 1, 3)}), []
    for _ in range(2):
        model.zero_grad()
        predict(techniques, model, batch).square().mean().backward()  # when the context has ended
        gradients.append({name: each.grad for name, each in model.named_parameters() if each.grad is not None})
        model.gradient_checkpointing_enable()
    assert gradients[0].keys() == gradients[1].keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_a_route_that_the_model_does_not_have_is_refused(tiny: Path, tmp_path: Path):
    def build(*flags: str, **config: Any) -> Any:
        model = DiTModel(DiTConfig.from_name("DiT-S/4", sample_size=8, num_hidden_layers=5, **config))
        return Tread.build(parse_settings(list(flags)).techniques["tread"], OBJECTIVES["sample"](), model)

    assert build() is None
    with pytest.raises(ValueError, match="tread_first_block=2 and tread_last_block=1 are no route through 5 blocks"):
        build("--tread_share", "0.5")
    with pytest.raises(ValueError, match=r"tread_last_block=5 .* numbers from 0 to 4"):
        build("--tread_share", "0.5", "--tread_last_block", "5")
    with pytest.raises(ValueError, match=r"tread_share=0.1 routes none of the 4 tokens .* between 0.250 and 0.750"):
        build("--tread_share", "0.1", "--tread_last_block", "3")
    with pytest.raises(ValueError, match="tread_share=1.0 is not possible"):
        build("--tread_share", "1")
    with pytest.raises(ValueError, match="tread_steps=5 has no effect without tread_share"):
        build("--tread_steps", "5")
    with pytest.raises(ValueError, match="tread_first_block=0 does not fit value_residual"):
        build("--tread_share", "0.5", "--tread_first_block", "0", "--tread_last_block", "3", value_residual=True)
    assert build("--tread_share", "0.5", "--tread_last_block", "3").route == range(2, 4)


def test_the_default_route_is_that_of_the_paper():
    with torch.device("meta"):
        model = DiTModel(DiTConfig.from_name("DiT-XL/2"))
    tread = Tread.build(parse_settings(["--tread_share", "0.5"]).techniques["tread"], OBJECTIVES["sample"](), model)
    assert (tread.route, tread.num_kept) == (range(2, 25), 128)


def train(tiny: Path, folder: Path, *flags: str, observer: Observer | None = None) -> dict[str, torch.Tensor]:
    run(parse_settings([str(tiny / "tiny.yaml"), "--output_dir", str(folder), *DEPTH, *flags]), observer=observer)
    (newest,) = sorted(folder.glob("checkpoints/step-*"))[-1:]
    return load_file(newest / "model.safetensors")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_for_bit_also_past_the_last_routed_step(tiny: Path, tmp_path: Path):
    class Killed(Exception):
        pass

    class KillAfterStep6(Observer):  # after the checkpoint of step 4
        def on_step(self, record: StepRecord) -> None:
            if record.step == 6:
                raise Killed

    flags = (*ROUTED, "--tread_steps", "5")
    once = train(tiny, tmp_path / "whole", *flags)
    with pytest.raises(Killed):
        train(tiny, tmp_path / "killed", *flags, observer=KillAfterStep6())
    twice = train(tiny, tmp_path / "killed", *flags)
    torch.testing.assert_close(once, twice, rtol=0, atol=0)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert "share of tokens routed by TREAD | 0.5" in (tmp_path / "whole" / "pipeline" / "README.md").read_text()
    with pytest.raises(ValueError, match="tread_steps was 5 and is None"):
        train(tiny, tmp_path / "whole", *ROUTED)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ("--gradient_checkpointing",),
        ("--train_batch_size", "3", "--gradient_accumulation_steps", "2"),
    ],
    ids=lambda flags: flags[0],
)
def test_routing_takes_part_in_what_saves_memory(tiny: Path, tmp_path: Path, flags: tuple[str, ...]):
    steps = (*ROUTED, "--max_train_steps", "3", "--ema_decay", "0.01")
    plain, saving = train(tiny, tmp_path / "plain", *steps), train(tiny, tmp_path / "saving", *steps, *flags)
    np.testing.assert_allclose(losses(tmp_path / "plain"), losses(tmp_path / "saving"), rtol=1e-4)
    torch.testing.assert_close(plain, saving, rtol=1e-3, atol=1e-4)  # sums in another order


@pytest.mark.parametrize(("name", "flags"), [("tread", ROUTED), ("layer_sync", ("--layer_sync_weight", "0.5"))])
def test_techniques_that_change_blocks_are_named_and_refused_with_deepspeed(name: str, flags: tuple[str, ...]):
    settings = parse_settings(list(flags))
    model = make_model()
    techniques = build_techniques(settings, OBJECTIVES["sample"](), model)
    assert techniques.that_change_blocks == [name]
    accelerator = Accelerator(cpu=True)
    set_distributed_type(accelerator, DistributedType.DEEPSPEED)
    try:
        with pytest.raises(ValueError, match=f"the technique {name} changes how blocks are called"):
            assemble(accelerator, model, learning_rate=1e-3, ema_decays=[0.9], techniques=techniques)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
