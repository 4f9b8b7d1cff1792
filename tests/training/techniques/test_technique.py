"""The seam for techniques, with one that has a module, needs the images, draws and reads the tokens of a block."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from dit_hf import DiTConfig, DiTModel, DiTPipeline
from dit_hf.data.extract import extract_latents
from dit_hf.data.moments import LatentsInfo, hash_vae
from dit_hf.data.sources import open_images
from dit_hf.diffusion import OBJECTIVES
from dit_hf.training.assembly import build_techniques
from dit_hf.training.batch import Draws, LatentBatch, StepRecord
from dit_hf.training.observer import Observer
from dit_hf.training.run import run
from dit_hf.training.settings import card_names, parse_settings
from dit_hf.training.start import train_last_blocks
from dit_hf.training.techniques import TECHNIQUES, ForwardPass, Technique, Techniques

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import trainer
from colour import Colour, ColourSettings

FILE = "technique_colour.safetensors"


@pytest.fixture
def colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TECHNIQUES, "colour", Colour)


def train(tiny: Path, output_dir: Path, *flags: str, observer: Observer | None = None) -> Path:
    arguments = [str(tiny / "tiny.yaml"), "--output_dir", str(output_dir), "--colour_weight", "0.5", *flags]
    return run(parse_settings(arguments), observer=observer)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def saved(folder: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / name)


@pytest.mark.slow
@pytest.mark.usefixtures("colour")
def test_a_technique_is_trained_saved_resumed_and_left_out_of_the_pipeline(tiny: Path, tmp_path: Path):
    class Killed(Exception):
        pass

    class KillAfterStep6(Observer):  # after the checkpoint of step 4
        def on_step(self, record: StepRecord) -> None:
            if record.step == 6:
                raise Killed

    train(tiny, tmp_path / "whole")
    with pytest.raises(Killed):
        train(tiny, tmp_path / "killed", observer=KillAfterStep6())
    train(tiny, tmp_path / "killed")
    for file in ("model.safetensors", "ema.safetensors", FILE):
        once, twice = (saved(tmp_path / name, 8, file) for name in ("whole", "killed"))
        torch.testing.assert_close(once, twice, rtol=0, atol=0)
    losses = [[row["loss"] for row in metrics(tmp_path / name)] for name in ("whole", "killed")]
    assert losses[0] == losses[1]

    rows, steps = metrics(tmp_path / "whole"), [saved(tmp_path / "whole", step, FILE) for step in (4, 8)]
    assert all(row["loss"] == pytest.approx(row["mse"] + row["vb"] + row["colour"], rel=1e-5) for row in rows)
    assert rows[-1]["colour"] < rows[0]["colour"]
    assert steps[0].keys() == {"weight", "bias"}
    assert not torch.equal(steps[0]["weight"], steps[1]["weight"])  # trained
    average = saved(tmp_path / "whole", 8, "ema.safetensors")
    assert average.keys() == saved(tmp_path / "whole", 8, "model.safetensors").keys()  # not averaged
    pipeline = DiTPipeline.from_pretrained(tmp_path / "whole" / "pipeline")
    torch.testing.assert_close(dict(pipeline.transformer.state_dict()), average, rtol=0, atol=0)
    assert "weight of colours | 0.5" in (tmp_path / "whole" / "pipeline" / "README.md").read_text()

    with pytest.raises(ValueError, match="colour_weight was 0.5 and is 0.25"):
        train(tiny, tmp_path / "whole", "--colour_weight", "0.25")
    without = [str(tiny / "tiny.yaml"), "--output_dir", str(tmp_path / "whole"), "--allow_config_change"]
    with pytest.raises(
        ValueError, match=r"holds the modules \['technique_colour.safetensors'\] of techniques, this run"
    ):
        run(parse_settings(without))


@pytest.mark.slow
@pytest.mark.usefixtures("colour")
@pytest.mark.parametrize(
    "flags",
    [("--gradient_checkpointing",), ("--train_batch_size", "3", "--gradient_accumulation_steps", "2")],
    ids=lambda flags: flags[0],
)
def test_a_technique_takes_part_in_what_saves_memory(tiny: Path, tmp_path: Path, flags: tuple[str, ...]):
    train(tiny, tmp_path / "plain", "--max_train_steps", "3", "--ema_decay", "0.01")
    train(tiny, tmp_path / "saving", "--max_train_steps", "3", "--ema_decay", "0.01", *flags)
    losses = [[row["loss"] for row in metrics(tmp_path / name)] for name in ("plain", "saving")]
    np.testing.assert_allclose(*losses, rtol=1e-4)  # sums in another order
    torch.testing.assert_close(*[saved(tmp_path / name, 3, FILE) for name in ("plain", "saving")], rtol=1e-3, atol=1e-5)


def batch(positions: list[tuple[int, int]]) -> LatentBatch:
    size = len(positions)
    x_0 = torch.stack([torch.full((4, 4, 4), float(offset)) for _, offset in positions])
    return LatentBatch(
        x_0, torch.zeros(size, dtype=torch.long), positions, (0, 0), {"images": torch.ones(size, 3, 8, 8)}
    )


def apply(techniques: Techniques, model: torch.nn.Module, batch: LatentBatch) -> dict[str, torch.Tensor]:
    draws = Draws(torch.full((len(batch.x_0),), 500), torch.ones_like(batch.x_0), None)
    objective = OBJECTIVES["epsilon"]()
    arguments = {"timestep": draws.timestep, "noise": draws.noise, "class_labels": batch.class_labels}
    return techniques.apply(lambda: objective(model, batch.x_0, **arguments), model, batch, draws)


def tiny_model() -> DiTModel:
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "sample_size": 4, "num_classes": 3}
    return DiTModel(DiTConfig(**small, learn_sigma=False)).eval()


def with_network(technique: Colour) -> Colour:
    technique.network = technique.module
    return technique


def test_draws_of_a_sample_depend_on_seed_epoch_position_and_technique_alone():
    model, positions = tiny_model(), [(0, 3), (0, 4), (1, 3)]
    technique = with_network(Colour(16, 0.5))
    whole = apply(Techniques({"colour": technique}, seed=1), model, batch(positions))["colour"]
    parts = [apply(Techniques({"colour": technique}, seed=1), model, batch([each]))["colour"] for each in positions]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert len(set(whole.tolist())) == 3
    for other in (Techniques({"colour": technique}, seed=2), Techniques({"other": technique}, seed=1)):
        assert not torch.allclose(apply(other, model, batch(positions))["colour"], whole)


def test_blocks_are_the_model_s_own_after_the_forward():
    model = tiny_model()
    block = model.blocks[0]
    apply(Techniques({"colour": with_network(Colour(16, 0.5))}), model, batch([(0, 0)]))
    assert model.blocks[0] is block


def test_without_techniques_the_losses_are_the_objective_s():
    model = tiny_model()
    plain = apply(Techniques(), model, batch([(0, 0)]))
    zero = apply(Techniques({"colour": with_network(Colour(16, 0.0))}), model, batch([(0, 0)]))
    assert plain.keys() == {"loss", "mse"}
    torch.testing.assert_close(zero["loss"], plain["loss"], rtol=0, atol=0)


def test_a_loss_of_a_name_that_is_taken_is_refused():
    class Twin(Technique):
        def losses(self, forward: ForwardPass) -> dict[str, torch.Tensor]:
            return {"mse": torch.zeros(1)}

    with pytest.raises(ValueError, match="the technique twin adds a loss 'mse', which exists already"):
        apply(Techniques({"twin": Twin()}), tiny_model(), batch([(0, 0)]))


@pytest.mark.usefixtures("colour")
def test_an_extra_that_no_batch_has_is_refused_by_name(tiny: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Colour, "extras", frozenset({"captions"}))
    with pytest.raises(ValueError, match="the technique colour needs 'captions', but a batch has only images"):
        train(tiny, tmp_path / "out")


@pytest.mark.usefixtures("colour")
def test_images_are_refused_where_the_data_are_latents(tiny: Path, tmp_path: Path):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(tiny / "vae")
    info = LatentsInfo("local", hash_vae(vae), vae.config.scaling_factor, (8, 8, 8), 16, "float16", True, "local", "0")
    source = open_images(str(tiny / "data"))
    extract_latents(
        source, vae, info, tmp_path / "latents", accelerator=Accelerator(cpu=True), num_workers=0, batch_size=4
    )
    of_latents = ("--dataset_name", str(tmp_path / "latents"), "--num_jitters", "0")
    with pytest.raises(ValueError, match="colour needs 'images', but the data set holds latents made beforehand"):
        train(tiny, tmp_path / "out", *of_latents)
    with pytest.raises(ValueError, match="cache_latents=5 has no effect, because .* holds latents made beforehand"):
        train(tiny, tmp_path / "out", *of_latents, "--cache_latents", "5")


@pytest.mark.usefixtures("colour")
def test_its_settings_are_flags_that_a_card_shows():
    assert parse_settings(["--colour_weight", "2"]).techniques["colour"] == ColourSettings(2.0)
    assert card_names()["colour_weight"] == "weight of colours"
    with pytest.raises(ValueError, match="colour_weight=-1.0 is not possible: set it to a number of at least 0"):
        parse_settings(["--colour_weight", "-1"])


SETUP = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from colour import Colour
from dit_hf.training.techniques import TECHNIQUES
TECHNIQUES["colour"] = Colour
"""


def train_two(tiny: Path, folder: Path, code: int = 0, **environment: str) -> str:
    """Train on two processes that end with an exit code; what the first one printed."""
    settings = ["--output_dir", str(folder), "--colour_weight", "0.5", "--train_batch_size", "3"]
    journal = folder.with_name("journal")
    processes = trainer.start_two(journal, [str(tiny / "tiny.yaml"), *settings], SETUP=SETUP, **environment)
    trainer.finish(processes, journal, code)
    return trainer.output(journal)


@pytest.mark.slow
@pytest.mark.usefixtures("colour")
def test_two_processes_train_the_module_of_one(tiny: Path, tmp_path: Path):
    train(tiny, tmp_path / "one")
    train_two(tiny, tmp_path / "two")
    torch.testing.assert_close(*[saved(tmp_path / name, 8, FILE) for name in ("one", "two")], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_fsdp_refuses_a_module_of_a_technique_by_name(tiny: Path, tmp_path: Path):
    wrap = {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_RESHARD_AFTER_FORWARD": "true"}
    output = train_two(tiny, tmp_path / "out", 1, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2", **wrap)
    assert "the technique colour has a module of its own, which neither FSDP nor DeepSpeed holds" in output


ALIGNMENTS = {
    "layer_sync_block": ["--layer_sync_weight", "0.2", "--layer_sync_target", "3"],
    "repa_block": ["--repa_encoder", f"{Path(__file__).parent / 'encoders.py'}:MeanColour"],
}


@pytest.mark.parametrize(("last_blocks", "remedy"), [(1, "set it to 3 or more, or train more"), (0, "leave the align")])
@pytest.mark.parametrize("name", ALIGNMENTS)
def test_tokens_that_frozen_blocks_compute_cannot_be_aligned(name: str, last_blocks: int, remedy: str):
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "sample_size": 8, "num_classes": 3}
    model, settings = DiTModel(DiTConfig(**sizes)), parse_settings([*ALIGNMENTS[name], f"--{name}", "2"])
    assert build_techniques(settings, OBJECTIVES["flow"](), model).active
    train_last_blocks(model, 2)
    assert build_techniques(settings, OBJECTIVES["flow"](), model).active
    train_last_blocks(model, last_blocks)
    with pytest.raises(ValueError, match=f"^{name}=2 aligns tokens that frozen blocks compute, which .*: {remedy}"):
        build_techniques(settings, OBJECTIVES["flow"](), model)
