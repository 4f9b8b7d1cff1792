"""REPA and iREPA against their papers' formulas in float64, and as a setting of a training."""

import itertools
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from dit_hf import DiTConfig, DiTModel
from dit_hf.diffusion import OBJECTIVES
from dit_hf.training.batch import Draws, LatentBatch, StepRecord
from dit_hf.training.observer import Observer
from dit_hf.training.run import run
from dit_hf.training.settings import parse_settings
from dit_hf.training.techniques import RepresentationAlignment, Techniques, Tread
from dit_hf.training.techniques.encoders import load_encoder
from dit_hf.training.techniques.repa import ConvHead, MlpHead

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import trainer
from encoders import MeanColour

ENCODERS = Path(__file__).parent / "encoders.py"
EXAMPLES = Path(__file__).parents[3] / "examples"
ALIGNED = ("--repa_encoder", f"{ENCODERS}:MeanColour", "--repa_block", "1")
NARROW = ("--repa_width", "16")
FILE = "technique_repa.safetensors"


def make_model(block_type: str = "adaln_zero") -> DiTModel:
    """A model of 2 x 2 patches and 3 blocks, none of whose weights is zero."""
    torch.manual_seed(0)
    config = DiTConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        sample_size=4,
        patch_size=2,
        num_classes=3,
        learn_sigma=False,
        block_type=block_type,
    )
    model = DiTModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.train()


def make_batch() -> LatentBatch:
    generator = torch.Generator().manual_seed(1)
    x_0 = torch.randn(2, 4, 4, 4, generator=generator)
    images = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    return LatentBatch(x_0, torch.tensor([0, 2]), [(0, 0), (0, 1)], (0, 2), {"images": images})


def make_technique(head: str = "mlp", **options: Any) -> RepresentationAlignment:
    torch.manual_seed(1)
    network = MlpHead(16, 8, 3) if head == "mlp" else ConvHead(16, (2, 2), 3)
    technique = RepresentationAlignment(MeanColour(), network, (2, 2), **{"block": 2, **options})
    technique.network = technique.module
    return technique


def apply(techniques: dict[str, Any], model: DiTModel, batch: LatentBatch, step: int = 0) -> dict[str, torch.Tensor]:
    draws = Draws(torch.full((2,), 500), torch.ones_like(batch.x_0), torch.zeros(2, dtype=torch.bool))
    objective = OBJECTIVES["epsilon"]()
    fixed = {"timestep": draws.timestep, "noise": draws.noise, "class_labels": batch.class_labels}

    def compute() -> dict[str, torch.Tensor]:
        return objective(model, batch.x_0, **fixed, drop_labels=draws.drop_labels)

    return Techniques(techniques).apply(compute, model, batch, draws, step)


def tokens_after(model: DiTModel, batch: LatentBatch, num_blocks: int) -> np.ndarray:
    """Tokens (B, N, D) of the model on x_t, as transformers records hidden states."""
    objective = OBJECTIVES["epsilon"]()
    x_t = objective.add_noise(batch.x_0, torch.ones_like(batch.x_0), torch.full((2,), 500))
    arguments = {"drop_labels": torch.zeros(2, dtype=torch.bool), "output_hidden_states": True}
    with torch.no_grad():
        states = model(x_t, torch.full((2,), 500), batch.class_labels, **arguments).hidden_states
    return states[num_blocks][:, :4].double().numpy()


def mean_colours(images: torch.Tensor) -> np.ndarray:
    """Mean colour in [0, 1] of the four quarters of images, (B, 4, 3), in the order of the patches."""
    squares = [images[:, :, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] for r, c in itertools.product(range(2), range(2))]
    return np.stack([((square.double() + 1) / 2).mean((2, 3)).numpy() for square in squares], axis=1)


def by_mlp(head: MlpHead, tokens: np.ndarray) -> np.ndarray:
    weights = {name: each.detach().double().numpy() for name, each in head.named_parameters()}
    for index in (0, 2, 4):
        tokens = tokens @ weights[f"{index}.weight"].T + weights[f"{index}.bias"]
        if index < 4:
            tokens = tokens / (1 + np.exp(-tokens))
    return tokens


def by_convolution(head: ConvHead, tokens: np.ndarray) -> np.ndarray:
    weight, bias = (each.detach().double().numpy() for each in (head.conv.weight, head.conv.bias))
    answer = np.zeros((len(tokens), 4, 3)) + bias
    for (row, column), (other_row, other_column) in itertools.product(itertools.product(range(2), range(2)), repeat=2):
        kernel = weight[:, :, 1 + other_row - row, 1 + other_column - column]  # (F, D)
        answer[:, 2 * row + column] += tokens[:, 2 * other_row + other_column] @ kernel.T
    return answer


@pytest.mark.parametrize("block_type", ["adaln_zero", "in_context"])
@pytest.mark.parametrize(("head", "gamma"), [("mlp", None), ("conv", 0.6), ("conv", 1.0)])
def test_term_is_that_of_the_papers(head, gamma, block_type):
    model, batch, technique = make_model(block_type), make_batch(), make_technique(head, gamma=gamma, weight=0.25)
    losses = apply({"repa": technique}, model, batch)
    tokens, features = tokens_after(model, batch, 2), mean_colours(batch.extras["images"])
    guess = by_mlp(technique.module, tokens) if head == "mlp" else by_convolution(technique.module, tokens)
    if gamma is not None:
        mean, deviation = features.mean(1, keepdims=True), features.std(1, ddof=1, keepdims=True)
        features = (features - gamma * mean) / (deviation + 1e-6)
    cosine = (guess * features).sum(-1) / np.linalg.norm(guess, axis=-1) / np.linalg.norm(features, axis=-1)
    expected = torch.from_numpy(0.25 * (1 - cosine.mean(1)))
    torch.testing.assert_close(losses["repa"].double(), expected, rtol=1e-4, atol=1e-5)  # float32
    torch.testing.assert_close(losses["loss"], losses["mse"] + losses["repa"])


def test_gradients_reach_head_and_early_blocks_but_not_the_encoder():
    model, technique = make_model(), make_technique()
    apply({"repa": technique}, model, make_batch())["repa"].sum().backward()
    reached = {name for name, each in model.named_parameters() if each.grad is not None and each.grad.abs().sum() > 0}
    assert any(name.startswith("blocks.1.") for name in reached)
    assert not any(name.startswith(("blocks.2.", "final_layer.")) for name in reached)
    assert all(each.grad is not None for each in technique.module.parameters())
    assert technique.encoder.one.grad is None


def test_term_ends_after_its_steps():
    model, batch, technique = make_model(), make_batch(), make_technique(num_steps=3)
    assert "repa" in apply({"repa": technique}, model, batch, step=2)
    losses = apply({"repa": technique}, model, batch, step=3)
    assert losses.keys() == {"loss", "mse"}
    assert torch.equal(losses["loss"], apply({}, model, batch)["loss"])


def test_features_of_another_grid_are_resized_to_that_of_the_tokens():
    images = make_batch().extras["images"]
    technique = make_technique(resolution=64)  # 8 x 8 features for 2 x 2 tokens
    wide = torch.from_numpy(mean_colours(images)).float()
    assert technique.features(images).shape == (2, 4, 3)
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)  # brighter to the right
    left, right = technique.features(ramp)[0, [0, 1], 0]
    assert left < 0.4 < 0.6 < right
    torch.testing.assert_close(technique.features(torch.full((1, 3, 16, 16), 0.5)), torch.full((1, 4, 3), 0.75))
    torch.testing.assert_close(make_technique().features(images), wide, rtol=0, atol=1e-5)


def test_compiled_and_routed_blocks_are_read_too():
    model, batch = make_model(), make_batch()
    techniques = {"tread": Tread(0.5, 4, 1, 1), "repa": make_technique()}
    expected = apply(techniques, model, batch)
    torch._dynamo.reset()
    model.compile_repeated_blocks(backend="eager")  # the graphs are the point, not their code
    torch.testing.assert_close(apply(techniques, model, batch), expected, rtol=1e-4, atol=1e-5)


def save_transformer(folder: Path, kind: str, **options: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = getattr(transformers, f"{kind}Config")(**sizes, image_size=32, patch_size=8, **options)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3})
    )
    return model


@pytest.mark.parametrize(
    ("kind", "num_others"), [("Dinov2", 1), ("Dinov2WithRegisters", 5), ("ViT", 1), ("SiglipVision", 0)]
)
def test_vision_transformers_give_the_features_of_their_patches(tmp_path: Path, kind: str, num_others: int):
    options = {"num_register_tokens": 4} if kind == "Dinov2WithRegisters" else {}
    model = save_transformer(tmp_path, kind, **options)
    encoder = load_encoder(str(tmp_path))
    assert (encoder.num_features, encoder.stride) == (16, 8)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pixels = (images - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / 0.2
    with torch.no_grad():
        tokens = model(pixel_values=pixels).last_hidden_state
        features = encoder(images)
        larger = encoder(torch.rand(1, 3, 48, 64))
    assert tokens.shape[1] == num_others + 16
    for row, column in itertools.product(range(4), range(4)):
        torch.testing.assert_close(features[:, :, row, column], tokens[:, num_others + 4 * row + column])
    assert larger.shape == (1, 16, 6, 8)
    assert not any(each.requires_grad for each in encoder.parameters())


def test_what_is_no_encoder_is_refused_by_name(tmp_path: Path, tiny: Path):
    from transformers import ResNetConfig, ResNetModel

    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a ResNetModel, no vision transformer with a patch_size"):
        load_encoder(str(tmp_path))
    with pytest.raises(ValueError, match="has no 'Missing': name a class with the members of an encoder"):
        load_encoder(f"{ENCODERS}:Missing")
    with pytest.raises(ValueError, match=r"Bare of .* has no 'num_features', which an encoder needs"):
        load_encoder(f"{ENCODERS}:Bare")
    with pytest.raises(OSError, match="the encoder ./nowhere cannot be opened"):
        load_encoder("./nowhere")
    with pytest.raises(ValueError, match=r"the encoder Wrong returns \(6, 3, 2, 2\): it has to return a grid \(B, 5,"):
        train(tiny, tmp_path / "out", "--repa_encoder", f"{ENCODERS}:Wrong")


def test_settings_that_do_not_fit_are_refused_by_name():
    def build(*flags: str) -> Any:
        model = DiTModel(DiTConfig.from_name("DiT-S/4", sample_size=8, num_hidden_layers=2))
        flags = ("--repa_encoder", f"{ENCODERS}:MeanColour", *flags)
        return RepresentationAlignment.build(
            parse_settings(list(flags)).techniques["repa"], OBJECTIVES["flow"](), model
        )

    assert [type(layer).__name__ for layer in build("--repa_block", "2").module] == ["Linear", "SiLU"] * 2 + ["Linear"]
    assert build("--repa_block", "2").module[2].weight.shape == (2048, 2048)
    with pytest.raises(ValueError, match="repa_block=8: the model has 2 blocks"):
        build()
    with pytest.raises(ValueError, match="repa_width=5 has no effect with repa_head='conv'"):
        build("--repa_block", "2", "--repa_head", "conv", "--repa_width", "5")
    with pytest.raises(ValueError, match="repa_resolution=20 is no multiple of 8"):
        build("--repa_block", "2", "--repa_resolution", "20")
    with pytest.raises(ValueError, match="repa_gamma=0.6 has no effect without repa_encoder"):
        parse_settings(["--repa_gamma", "0.6"])


def train(tiny: Path, folder: Path, *flags: str, observer: Observer | None = None) -> Path:
    settings = parse_settings([str(tiny / "tiny.yaml"), "--output_dir", str(folder), *ALIGNED, *flags])
    return run(settings, observer=observer)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def saved(folder: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / name)


@pytest.mark.slow
def test_a_training_is_aligned_and_goes_on_bit_for_bit_without_the_encoder_in_its_files(tiny: Path, tmp_path: Path):
    class Killed(Exception):
        pass

    class KillAfterStep6(Observer):  # after the checkpoint of step 4
        def on_step(self, record: StepRecord) -> None:
            if record.step == 6:
                raise Killed

    flags = ("--repa_head", "conv", "--repa_gamma", "0.6", "--repa_steps", "7")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(tiny, whole, *flags)
    with pytest.raises(Killed):
        train(tiny, killed, *flags, observer=KillAfterStep6())
    train(tiny, killed, *flags)
    for file in ("model.safetensors", "ema.safetensors", FILE):
        torch.testing.assert_close(*[saved(folder, 8, file) for folder in (whole, killed)], rtol=0, atol=0)
    rows = metrics(whole)
    assert [row["loss"] for row in rows] == [row["loss"] for row in metrics(killed)]
    assert ["repa" in row for row in rows] == [True] * 7 + [False]
    assert rows[6]["repa"] < rows[0]["repa"]
    assert saved(whole, 8, FILE).keys() == {"conv.weight", "conv.bias"}
    assert not torch.equal(*[saved(whole, step, FILE)["conv.weight"] for step in (4, 8)])
    assert saved(whole, 8, "ema.safetensors").keys() == saved(whole, 8, "model.safetensors").keys()
    assert not [key for key in load_file(whole / "pipeline" / "transformer" / "model.safetensors") if "conv" in key]
    settings = yaml.safe_load((whole / "settings.yaml").read_text())
    assert (settings["repa_weight"], settings["repa_gamma"]) == (0.5, 0.6)
    assert "weight of the alignment | 0.5" in (whole / "pipeline" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [("--gradient_checkpointing",), ("--train_batch_size", "3", "--gradient_accumulation_steps", "2")],
    ids=lambda flags: flags[0],
)
def test_alignment_takes_part_in_what_saves_memory(tiny: Path, tmp_path: Path, flags: tuple[str, ...]):
    steps = (*NARROW, "--max_train_steps", "3", "--ema_decay", "0.01")
    for name, given in (("plain", ()), ("saving", flags)):
        train(tiny, tmp_path / name, *steps, *given)
    losses = [[row["loss"] for row in metrics(tmp_path / name)] for name in ("plain", "saving")]
    np.testing.assert_allclose(*losses, rtol=1e-4)  # sums in another order
    torch.testing.assert_close(*[saved(tmp_path / name, 3, FILE) for name in ("plain", "saving")], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_in_bfloat16_the_encoder_computes_as_the_model_does_and_losses_stay_near(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SEEN_DTYPE", str(tmp_path / "dtype"))
    routed = ("--tread_share", "0.5", "--tread_first_block", "0", "--tread_last_block", "0", "--max_train_steps", "2")
    flags = (*NARROW, *routed, "--ema_decay", "0.01", "--repa_encoder", f"{ENCODERS}:Projected")
    for name, precision, dtype in (("full", "no", "torch.float32"), ("half", "bf16", "torch.bfloat16")):
        AcceleratorState._reset_state(reset_partial_state=True)
        train(tiny, tmp_path / name, *flags, "--mixed_precision", precision)
        assert (tmp_path / "dtype").read_text() == dtype
    full, half = ([row["repa"] for row in metrics(tmp_path / name)] for name in ("full", "half"))
    np.testing.assert_allclose(half, full, rtol=0.03)  # bfloat16 has 8 bits
    assert not np.allclose(half, full, rtol=1e-6)


@pytest.mark.slow
def test_two_processes_align_as_one(tiny: Path, tmp_path: Path):
    routed = (
        *NARROW,
        "--tread_share",
        "0.5",
        "--tread_first_block",
        "0",
        "--tread_last_block",
        "0",
        "--repa_steps",
        "6",
    )
    train(tiny, tmp_path / "one", *routed)
    settings = ["--output_dir", str(tmp_path / "two"), *ALIGNED, *routed, "--train_batch_size", "3"]
    processes = trainer.start_two(tmp_path / "journal", [str(tiny / "tiny.yaml"), *settings])
    trainer.finish(processes, tmp_path / "journal", 0)
    for file in (FILE, "model.safetensors"):
        torch.testing.assert_close(*[saved(tmp_path / n, 8, file) for n in ("one", "two")], rtol=1e-3, atol=1e-4)


def test_the_encoder_of_the_example_gives_what_the_library_computes():
    """EfficientNet-Lite0 as its library runs it, stopped after the blocks of stride 16."""
    pytest.importorskip("efficientnet_lite_pytorch")
    encoder = runpy.run_path(str(EXAMPLES / "efficientnet_lite.py"))["EfficientNetLite0Grid"]()
    images, seen = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)), []
    hook = encoder.network._blocks[10].register_forward_hook(lambda block, inputs, output: seen.append(output))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        encoder.network.extract_features((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        hook.remove()
        features = encoder(images)
    assert features.shape == (2, encoder.num_features, 4, 6)
    torch.testing.assert_close(features, seen[0], rtol=0, atol=0)


@pytest.mark.slow
def test_a_model_of_emoji_learns_to_foretell_the_features_of_a_real_network(tmp_path: Path):
    pytest.importorskip("efficientnet_lite_pytorch")
    flags = ["--repa_encoder", f"{EXAMPLES / 'efficientnet_lite.py'}:EfficientNetLite0Grid", "--repa_block", "3"]
    flags += ["--repa_head", "conv", "--repa_gamma", "0.6", "--max_train_steps", "12", "--train_batch_size", "8"]
    flags += ["--logging_steps", "1", "--report_to", "none", "--ema_decay", "0.5", "--lr_warmup_steps", "2"]
    flags += ["--checkpointing_steps", "12", "--validation_steps", "100"]
    run(parse_settings([str(EXAMPLES / "configs" / "emoji_10.yaml"), "--output_dir", str(tmp_path), *flags]))
    term = [row["repa"] for row in metrics(tmp_path)]
    assert np.mean(term[-3:]) < np.mean(term[:3]) - 0.05  # of 1, where a cosine of 0 stands at 0.5
