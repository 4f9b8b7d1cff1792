"""Whole fine-tunings of seconds: what is trained, what is written, and that they go on bit for bit."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers.utils import make_image_grid
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))  # the forked processes find the module by its name

import trainer

from dit_hf import DiTPipeline
from dit_hf.finetuning import carry_classes
from dit_hf.training.loop import StepRecord
from dit_hf.training.observer import Observer
from dit_hf.training.origin import load_origin
from dit_hf.training.run import run
from dit_hf.training.settings import parse_settings
from dit_hf.training.start import adapt_to_data

STEPS = 8


def train(tiny: Path, output_dir: Path, *flags: str, observer: Observer | None = None) -> Path:
    return run(parse_settings([str(tiny / "tiny.yaml"), "--output_dir", str(output_dir), *flags]), observer=observer)


def load(folder: Path) -> DiTPipeline:
    pipeline = DiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained pipeline whose classes are c, d and x; the data's are a, b, c and d."""
    folder = tmp_path_factory.mktemp("base")
    pipeline = load(train(tiny, folder, "--max_train_steps", "4"))
    state = pipeline.transformer.state_dict()
    generator = torch.Generator().manual_seed(0)
    for name, weight in state.items():
        if name != "pos_embed":
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    carry_classes(pipeline.transformer, [2, 3, 0])
    pipeline.register_to_config(id2label={0: "c", 1: "d", 2: "x"})
    pipeline.save_pretrained(folder / "base")
    return folder / "base"


def overrides(**fields: object) -> tuple[str, str]:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return "--model_overrides", json.dumps({**small, **fields})


@pytest.mark.slow
def test_classes_of_the_data_are_placed_among_those_that_stay(tiny: Path, tmp_path: Path, base: Path):
    start = ("--init_from", str(base), "--max_train_steps", "1", "--ema_decay", "0", "--learning_rate", "0")
    kept = load(train(tiny, tmp_path / "kept", *start, "--keep_classes"))
    assert kept.config.id2label == {0: "c", 1: "d", 2: "x", 3: "a", 4: "b"}
    replaced = load(train(tiny, tmp_path / "replaced", *start))
    assert replaced.config.id2label == {0: "a", 1: "b", 2: "c", 3: "d"}
    old, table = (each.transformer.y_embedder.embedding_table.weight for each in (load(base), replaced))
    torch.testing.assert_close(table[[2, 3, 4]], old[[0, 1, 3]], rtol=0, atol=0)
    losses = [json.loads((tmp_path / name / "metrics.jsonl").read_text())["loss"] for name in ("kept", "replaced")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # the same images with the same rows of the table


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("--lora_rank", "2"), ("--last_blocks", "1")], ids=lambda flags: flags[0])
def test_a_part_is_trained_averaged_and_goes_on_bit_for_bit(
    tiny: Path, tmp_path: Path, base: Path, flags: tuple[str, ...]
):
    flags = ("--init_from", str(base), "--keep_classes", *flags)
    train(tiny, tmp_path / "whole", *flags)

    class Killed(Exception):
        pass

    class KillAfterStep6(Observer):  # after the checkpoint of step 4
        def on_step(self, record: StepRecord) -> None:
            if record.step == 6:
                raise Killed

    with pytest.raises(Killed):
        train(tiny, tmp_path / "killed", *flags, observer=KillAfterStep6())
    train(tiny, tmp_path / "killed", *flags)
    last = Path("checkpoints") / f"step-{STEPS:08d}"
    for file in ("model.safetensors", "ema.safetensors"):
        once, twice = (load_file(tmp_path / name / last / file) for name in ("whole", "killed"))
        torch.testing.assert_close(once, twice, rtol=0, atol=0)

    first = load_file(tmp_path / "whole" / "checkpoints" / "step-00000004" / "model.safetensors")
    weights, average = (load_file(tmp_path / "whole" / last / f"{name}.safetensors") for name in ("model", "ema"))
    changed = {name for name in weights if not torch.equal(weights[name], first[name])}
    assert changed
    assert all(("lora_" in name or "y_embedder.modules_to_save" in name) for name in changed) or all(
        name.startswith(("blocks.1.", "final_layer.", "y_embedder.")) for name in changed
    )
    lags = {name for name in weights if not torch.equal(weights[name], average[name])}
    assert changed >= lags  # the average of what is frozen is what is frozen
    assert lags


@pytest.mark.slow
def test_an_adapter_is_trained_by_two_processes_as_by_one(tiny: Path, tmp_path: Path, base: Path):
    flags = ("--init_from", str(base), "--keep_classes", "--lora_rank", "2")
    train(tiny, tmp_path / "one", *flags)
    half = [str(tiny / "tiny.yaml"), "--output_dir", str(tmp_path / "two"), "--train_batch_size", "3", *flags]
    trainer.finish(trainer.start_two(tmp_path / "journal", half), tmp_path / "journal")
    once, twice = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(once, twice, rtol=1e-3, atol=1e-4)  # sums in another order


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing_in_the_training_of_an_adapter(tiny: Path, tmp_path: Path, base: Path):
    flags = ("--init_from", str(base), "--lora_rank", "2", "--max_train_steps", "4", "--ema_decay", "0.1")
    train(tiny, tmp_path / "plain", *flags)
    train(tiny, tmp_path / "saving", *flags, "--gradient_checkpointing")
    weights = [
        load_file(tmp_path / name / "checkpoints" / "step-00000004" / "model.safetensors")
        for name in ("plain", "saving")
    ]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)  # sums in another order


def test_an_adapter_is_written_loads_and_gives_what_the_merged_pipeline_gives(tiny: Path, tmp_path: Path, base: Path):
    flags = ("--init_from", str(base), "--keep_classes", "--lora_rank", "2", "--learning_rate", "0.05")
    merged = load(train(tiny, tmp_path, *flags))
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "classes.json",
    }
    adapted = load(base)
    adapted.load_lora_weights(tmp_path / "adapter")
    assert adapted.config.id2label == merged.config.id2label
    images = [
        pipeline(["x", "a"], num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="pt").images
        for pipeline in (load(base), adapted, merged)
        if "a" in pipeline.labels
    ]
    assert len(images) == 2
    torch.testing.assert_close(*images, rtol=1e-3, atol=1e-3)  # sums in another order


@pytest.mark.slow
def test_pictures_before_and_after_show_the_classes_of_the_data(tiny: Path, tmp_path: Path, base: Path):
    """With the classes c, d and x kept, those of the data are a, b, c and d: the model's 3, 4, 0 and 1."""
    flags = ("--init_from", str(base), "--keep_classes", "--max_train_steps", "2", "--ema_decay", "0")
    after = load(train(tiny, tmp_path, *flags, "--learning_rate", "0.05"))
    origin = load_origin(str(base))
    model = adapt_to_data(origin, ["a", "b", "c", "d"], sample_size=8, keep_classes=True).model.eval()
    before = DiTPipeline(model, after.vae, after.scheduler, after.config.id2label)
    before.set_progress_bar_config(disable=True)
    rows = []
    for pipeline in (before, after):
        noise = torch.Generator().manual_seed(0)
        arguments = {"guidance_scale": 4.0, "num_inference_steps": 2, "generator": noise}
        images = pipeline(["a", "b", "c", "d"], **arguments).images
        rows.append(np.array(make_image_grid(images, 2, 2)))
    picture = np.array(Image.open(tmp_path / "before_after.png"))
    for top, row in zip((0, 60 + 8), rows, strict=True):  # two rows of 16 pixels, each with 14 for names below
        shown = picture[top : top + 60].reshape(2, 30, 32, 3)[:, :16]
        np.testing.assert_array_equal(shown.reshape(32, 32, 3), row)
    assert not np.array_equal(*rows)


@pytest.mark.slow
def test_a_pipeline_goes_on_at_twice_its_resolution(tiny: Path, tmp_path: Path, base: Path):
    flags = ("--init_from", str(base), "--resolution", "32", "--max_train_steps", "2", "--ema_decay", "0.01")
    pipeline = load(train(tiny, tmp_path, *flags, "--resize_position_embedding", "interpolate"))
    assert pipeline.transformer.config.sample_size == 16
    expected = load(base).transformer.resize_pos_embed(16, 16, "interpolate")
    torch.testing.assert_close(pipeline.transformer.pos_embed.data, expected, rtol=0, atol=0)
    assert pipeline("a", num_inference_steps=2).images[0].size == (32, 32)


@pytest.mark.slow
def test_a_fine_tuning_needs_no_more_than_a_model_and_images(tiny: Path, tmp_path: Path, base: Path):
    """VAE, objective, schedule, size and resolution are the model's; the defaults are a VAE of the Hub at 256 px."""
    short = ["--max_train_steps", "2", "--train_batch_size", "6", "--ema_decay", "0", "--report_to", "none"]
    short += ["--num_threads", "1", "--dataloader_num_workers", "0", "--validation_inference_steps", "2"]
    arguments = ["--init_from", str(base), "--dataset_name", str(tiny / "data"), "--output_dir", str(tmp_path), *short]
    pipeline = load(run(parse_settings(arguments)))
    assert pipeline.transformer.config.sample_size == load(base).transformer.config.sample_size
    torch.testing.assert_close(pipeline.vae.state_dict(), load(base).vae.state_dict(), rtol=0, atol=0)
    recorded = yaml.safe_load((tmp_path / "settings.yaml").read_text())
    assert (recorded["resolution"], recorded["objective"], recorded["vae_name_or_path"]) == (16, "hybrid", str(base))
    run(parse_settings(arguments))  # finds nothing to do, and nothing changed
    with pytest.raises(ValueError, match="no multiple of 2"):
        run(parse_settings([*arguments, "--resolution", "15"]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--init_from", "./nowhere"], "init_from='./nowhere': there is no file or folder ./nowhere"),
        (["--init_from", "BASE", "--objective", "sample"], "objective='sample', but it was trained with 'hybrid'"),
        (["--init_from", "BASE", "--beta_end", "0.03"], r"beta_end=0.03, but it was trained with 0.02"),
        (["--init_from", "BASE", "--model", "DiT-S/2"], "patch_size=2, but it has patch_size=4"),
        (
            ["--init_from", "BASE", *overrides(block_type="adaln")],
            "block_type='adaln', but it has ",
        ),
        (["--init_from", "BASE", *overrides(num_classes=0)], "num_classes=0, but it has num_classes=3"),
        (["--init_from", "BASE", "--last_blocks", "9"], "last_blocks=9: the model has 2 blocks"),
        (["--init_from", "BASE", "--lora_rank", "99"], r"rank=99 is outside 1\.\.32"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    tiny: Path, tmp_path: Path, base: Path, flags: list[str], message: str
):
    with pytest.raises(ValueError, match=message):
        train(tiny, tmp_path / "out", *[str(base) if flag == "BASE" else flag for flag in flags])
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--keep_classes"], "keep_classes=True has no effect without init_from"),
        (["--lora_rank", "4"], "lora_rank=4 has no effect without init_from"),
        (["--init_from", "a/b", "--lora_alpha", "4"], "lora_alpha=4.0 has no effect without lora_rank"),
        (["--init_from", "a/b", "--lora_rank", "4", "--last_blocks", "1"], "each say what is trained: set one of them"),
        (["--init_from", "a/b", "--lora_rank", "0"], "lora_rank=0 is not possible"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(flags: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        parse_settings(flags)
