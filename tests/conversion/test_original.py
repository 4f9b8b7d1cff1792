"""The authors' checkpoints in every packaging: the golden weights come out bit for bit, everything else is refused."""

import argparse
import inspect
import re
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from dit_hf import DiTConfig
from dit_hf.configuration_dit import PAPER_SIZES
from dit_hf.conversion import CheckpointError, from_original, to_original
from dit_hf.conversion.assemble import empty_model

HEADS = {"num_attention_heads": 4}


def assert_same(model, state) -> None:
    keys = to_original(model)
    assert keys.keys() == state.keys()
    for key, tensor in state.items():
        assert keys[key].dtype == tensor.dtype, key
        assert torch.equal(keys[key], tensor), key


def train_checkpoint(state, **parts):
    """What the original's training saves, with other weights as `model`."""
    others = {f"module.{key}": tensor + 1 for key, tensor in state.items()}
    optimiser = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}
    arguments = argparse.Namespace(model="DiT-P/2", results_dir="results", global_seed=0)
    return {"model": others, "ema": OrderedDict(state), "opt": optimiser, "args": arguments, **parts}


PACKAGES = {
    "a bare state dict": lambda state: state,
    "a state dict of parameters": lambda state: {key: torch.nn.Parameter(tensor) for key, tensor in state.items()},
    "a training checkpoint": train_checkpoint,
    "wrapped by DistributedDataParallel": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "compiled and wrapped": lambda state: {f"module._orig_mod.{key}": tensor for key, tensor in state.items()},
    "half precision": lambda state: {key: tensor.to(torch.bfloat16) for key, tensor in state.items()},
}


@pytest.mark.parametrize("where", ["memory", "pt"])
@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_every_packaging_comes_out_bit_for_bit(package, where, golden_file, tmp_path):
    state = load_file(golden_file)
    content = package(state)
    if where == "pt":
        torch.save(content, tmp_path / "w.pt")
        content = tmp_path / "w.pt"
    model = from_original(content, **HEADS)
    expected = state if model.dtype == torch.float32 else {k: tensor.to(torch.bfloat16) for k, tensor in state.items()}
    assert_same(model, expected)
    assert not model.training
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["pos_embed"]


def test_output_equals_the_original(golden_model, golden):
    with torch.no_grad():
        out = golden_model(golden["x"], golden["t"], golden["y"]).sample
    torch.testing.assert_close(out, golden["out"], rtol=1e-5, atol=1e-5)  # float32, another order of sums


def test_file_of_the_keys_that_are_given_back_loads_again(golden_model, golden_file, tmp_path):
    torch.save(to_original(golden_model), tmp_path / "again.pt")
    assert_same(from_original(tmp_path / "again.pt", **HEADS), load_file(golden_file))


def test_ema_is_the_default_and_the_other_weights_are_a_choice(golden_file, tmp_path):
    state = load_file(golden_file)
    torch.save(train_checkpoint(state), tmp_path / "w.pt")
    others = from_original(tmp_path / "w.pt", weights="model", **HEADS)
    assert_same(others, {key: tensor + 1 for key, tensor in state.items()})


def test_position_embedding_is_loaded_and_not_recomputed(golden_file):
    state = load_file(golden_file)
    state["pos_embed"] += 4e-4
    assert torch.equal(from_original(state, **HEADS).pos_embed, state["pos_embed"])


def test_model_shares_no_memory_with_its_source(golden_file):
    state = load_file(golden_file)
    from_original(state, **HEADS).pos_embed.data.zero_()
    assert state["pos_embed"].abs().max() > 0


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_paper_s_sizes_are_known_by_their_shapes(name, monkeypatch):
    config = DiTConfig.from_name(name, sample_size=64)
    built = []
    monkeypatch.setattr("dit_hf.conversion.original.assemble", lambda config, tensors: built.append(config))
    from_original(empty_model(config).state_dict(), any_objective=True)
    assert built[0].to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "config",
    [
        {"num_classes": 0},
        {"learn_sigma": False, "in_channels": 3, "patch_size": 4},
        {"mlp_ratio": 2.0, "num_hidden_layers": 3},
        {"sample_size": (4, 8)},
        {"class_dropout_prob": 0.0},
    ],
)
def test_other_architectures_are_inferred_or_told(config, make_model):
    model = make_model(**config)
    told = {key: value for key, value in config.items() if key in ("sample_size", "class_dropout_prob")}
    again = from_original(to_original(model), num_attention_heads=2, **told)
    fields = inspect.signature(DiTConfig).parameters.keys() - {"kwargs"}
    # without classes nothing tells the dropout, and nothing depends on it
    assert {f: getattr(again.config, f) for f in fields} == {f: getattr(model.config, f) for f in fields}
    assert_same(again, to_original(model))


WRONG = {
    "a missing key": (lambda state: state.pop("blocks.1.attn.proj.bias"), "lacks blocks.1.attn.proj.bias"),
    "an extra key": (lambda state: state.update(extra=torch.zeros(1)), "has, of another model, extra"),
    "another shape": (
        lambda state: state.update({"blocks.0.attn.qkv.bias": torch.zeros(48)}),
        r"blocks.0.attn.qkv.bias has the shape \(48,\), this model's is \(144,\)",
    ),
    "NaN": (lambda state: state["final_layer.linear.weight"].fill_(float("nan")), "final_layer.linear.weight holds"),
    "infinity": (lambda state: state["pos_embed"][0, 0].fill_(float("inf")), "pos_embed holds"),
    "whole numbers": (lambda state: state.update(pos_embed=state["pos_embed"].long()), "pos_embed has the type"),
    "another model": (lambda state: [state.pop(key) for key in list(state) if "embedder" in key], "lacks x_embedder"),
    "a flat kernel": (lambda state: state.update({"x_embedder.proj.weight": torch.zeros(48, 16)}), "x_embedder.proj"),
    "no channels": (lambda s: s.update({"x_embedder.proj.weight": torch.zeros(48, 0, 2, 2)}), "x_embedder.proj"),
    "a block out of line": (
        lambda state: state.update({"blocks.999999999.attn.proj.bias": torch.zeros(48)}),
        "its blocks are numbered 0, 1, 999999999",
    ),
    "no tensor": (lambda state: state.update(epoch=3), "'epoch' is a int"),
    "a key twice": (lambda state: state.update({"module.pos_embed": state["pos_embed"]}), "pos_embed is there twice"),
    "tokens without a square": (lambda s: s.update(pos_embed=torch.zeros(1, 15, 48)), "15 tokens, no square"),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG)
def test_wrong_weights_are_refused_by_key(spoil, message, golden_file):
    state = load_file(golden_file)
    spoil(state)
    with pytest.raises(CheckpointError, match=message):
        from_original(state, **HEADS)


def test_training_checkpoint_without_the_wanted_weights_says_what_it_has(golden_file):
    checkpoint = train_checkpoint(load_file(golden_file))
    del checkpoint["ema"]
    with pytest.raises(CheckpointError, match=r"holds model, opt, args, no 'ema': pass weights='model'"):
        from_original(checkpoint, **HEADS)
    del checkpoint["model"]
    with pytest.raises(CheckpointError, match="lacks x_embedder.proj.weight, .* it holds opt, args"):
        from_original(checkpoint, **HEADS)
    checkpoint["ema"] = load_file(golden_file)
    with pytest.raises(ValueError, match="weights='best': choose from ema, model"):
        from_original(checkpoint, weights="best")


def test_unknown_heads_are_asked_for(golden_file):
    with pytest.raises(CheckpointError, match="2 layers of width 48.*pass num_attention_heads"):
        from_original(golden_file)
    with pytest.raises(ValueError, match="unknown field 'heads'"):
        from_original(golden_file, heads=4, **HEADS)


def test_other_blocks_have_no_original_form(make_model):
    with pytest.raises(ValueError, match="block_type='in_context'.*adaln_zero"):
        to_original(make_model(block_type="in_context"))


def test_original_s_fixed_numbers_are_warned_about_with_the_deviation(golden_file, caplog):
    logging.enable_propagation()
    to_original(from_original(golden_file, **HEADS))
    assert caplog.text == ""
    to_original(from_original(golden_file, timestep_freq_shift=1.0, **HEADS))
    size = re.search(r"timestep_freq_shift=0 for 1 moves the output by up to ([\d.e-]+)", caplog.text)
    assert 1e-3 < float(size[1]) < 1


def test_safetensors_of_the_same_keys_needs_no_name(golden_file, tmp_path):
    save_file(load_file(golden_file), tmp_path / "weights.bin")
    assert_same(from_original(tmp_path / "weights.bin", **HEADS), load_file(golden_file))
