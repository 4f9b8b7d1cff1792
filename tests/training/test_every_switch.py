"""Trainings with every switch beyond the paper at once: they resume exactly, and their pipeline says what it is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from dit_hf import DiTModel, DiTPipeline
from dit_hf.training.batch import StepRecord
from dit_hf.training.observer import Observer
from dit_hf.training.run import run
from dit_hf.training.settings import parse_settings

ENCODER = Path(__file__).parent / "techniques" / "encoders.py"
ARCHITECTURE = {"qk_norm": True, "position_embedding": "both", "mlp": "swiglu", "norm": "rms", "value_residual": True}
EVERYTHING = [
    *(f"--{name}={value}" for name, value in {**ARCHITECTURE, "block_type": "in_context"}.items()),
    *("--optimizer=muon", "--muon_learning_rate=0.02", "--objective=flow_sample", "--timestep_shift=2"),
    *(f"--repa_encoder={ENCODER}:MeanColour", "--repa_block=1", "--repa_head=conv", "--repa_gamma=0.6"),
    *("--layer_sync_weight=0.2", "--layer_sync_block=1", "--layer_sync_target=2"),
    *("--tread_share=0.5", "--tread_first_block=1", "--tread_last_block=1"),
    *("--mixed_precision=bf16", "--gradient_checkpointing"),
]


class Killed(Exception):
    pass


class KillAfterStep6(Observer):  # after the checkpoint of step 4
    def on_step(self, record: StepRecord) -> None:
        if record.step == 6:
            raise Killed


def train(tiny: Path, folder: Path, *flags: str, observer: Observer | None = None) -> Path:
    return run(parse_settings([str(tiny / "tiny.yaml"), "--output_dir", str(folder), *flags]), observer=observer)


def train_whole_and_killed(tiny: Path, folder: Path, flags: list[str], resumed_with: tuple[str, ...] = ()) -> Path:
    pipeline = train(tiny, folder / "whole", *flags)
    with pytest.raises(Killed):
        train(tiny, folder / "killed", *flags, observer=KillAfterStep6())
    train(tiny, folder / "killed", *flags, *resumed_with)
    return pipeline


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_training_with_every_switch_goes_on_bit_for_bit_and_its_pipeline_says_what_it_is(tiny: Path, tmp_path: Path):
    pipeline = train_whole_and_killed(tiny, tmp_path, EVERYTHING)
    steps = [tmp_path / name / "checkpoints" / "step-00000008" for name in ("whole", "killed")]
    for file in ("model.safetensors", "ema.safetensors", "technique_repa.safetensors"):
        torch.testing.assert_close(*(load_file(step / file) for step in steps), rtol=0, atol=0)
    states = [torch.load(step / "optimizer.pt", weights_only=True)["optimizer"]["state"] for step in steps]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert {key for state in states[0].values() for key in state} >= {"momentum_buffer", "exp_avg"}
    rows = metrics(tmp_path / "whole")
    assert [row["loss"] for row in rows] == [row["loss"] for row in metrics(tmp_path / "killed")]
    for row in rows:
        assert row["loss"] == pytest.approx(row["mse"] + row["layer_sync"] + row["repa"], rel=1e-5)

    loaded = DiTPipeline.from_pretrained(pipeline)
    config = loaded.transformer.config
    assert {name: getattr(config, name) for name in ARCHITECTURE} == ARCHITECTURE
    assert (loaded.config.prediction_type, loaded.scheduler.config.shift) == ("flow_sample", 2.0)
    model = AutoModel.from_pretrained(pipeline, subfolder="transformer")
    assert type(model) is DiTModel
    torch.testing.assert_close(model.state_dict(), load_file(steps[0] / "ema.safetensors"), rtol=0, atol=0)


@pytest.mark.slow
def test_density_and_muon_go_on_with_the_same_images_in_smaller_batches(tiny: Path, tmp_path: Path):
    flags = ["--objective=flow", "--timestep_density=logit_normal", "--logit_normal_mean=0.8", "--timestep_shift=2"]
    flags += ["--optimizer=muon", "--max_grad_norm=0.1", "--position_embedding=rope"]
    train_whole_and_killed(tiny, tmp_path, flags, ("--train_batch_size=3", "--gradient_accumulation_steps=2"))
    rows = [metrics(tmp_path / name) for name in ("whole", "killed")]
    for name in ("loss", "grad_norm"):  # sums in another order
        np.testing.assert_allclose(*([row[name] for row in each] for each in rows), rtol=1e-4)
    with pytest.raises(ValueError, match="timestep_shift was 2.0 and is 1.0"):
        train(tiny, tmp_path / "whole", *flags[:3], *flags[4:])
