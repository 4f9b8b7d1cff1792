"""Where files of others hold their weights: every place is found by its name, and what is ambiguous is listed."""

import argparse
import re
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel

from dit_hf import DiTConfig, DiTModel
from dit_hf.conversion import CheckpointError, from_original, to_original

HEADS = {"num_attention_heads": 4}


@pytest.fixture(scope="module")
def state(golden_dir) -> dict[str, torch.Tensor]:
    return load_file(golden_dir / "dit_p2_c4.safetensors")


def prefixed(state, prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def moved(state) -> dict[str, torch.Tensor]:
    return {key: tensor + 1 for key, tensor in state.items()}


def is_same(model: DiTModel, state) -> bool:
    return all(torch.equal(tensor, state[key]) for key, tensor in to_original(model).items())


# What a file holds; each has the weights `state` where the average is, or where the only weights are.
PLACES = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}, "loss": 0.1},
    "module, of DeepSpeed": lambda s: {"module": s, "dp_world_size": 8, "optimizer": None},
    "Lightning": lambda s: {"state_dict": prefixed(s, "model."), "pytorch-lightning_version": "2.0", "epoch": 1},
    "Lightning beside a VAE": lambda s: {
        "state_dict": {**prefixed(s, "model."), "vae.encoder.weight": torch.ones(2), "loss.weight": torch.ones(1)}
    },
    "an average of ema-pytorch": lambda s: {
        **prefixed(moved(s), "online_model."),
        **prefixed(s, "ema_model."),
        "initted": torch.tensor([True]),
        "step": torch.tensor([5]),
    },
    "an average of torch": lambda s: {**prefixed(s, "module."), "n_averaged": torch.tensor(3)},
    "an average beside the weights": lambda s: {"model": moved(s), "model_ema": {"module": s, "decay": 0.9999}},
    "an average in a state dict": lambda s: {"state_dict": {**prefixed(moved(s), "net."), **prefixed(s, "net_ema.")}},
    "an average by its state dict": lambda s: {"model_state_dict": moved(s), "ema_state_dict": OrderedDict(s)},
    "compiled layers": lambda s: {re.sub(r"^(blocks\.\d)", r"\1._orig_mod", key): t for key, t in s.items()},
    "checkpointed layers in FSDP": lambda s: {
        "ema": {
            re.sub(r"^(blocks\.\d)", r"_fsdp_wrapped_module.\1._checkpoint_wrapped_module", key): tensor
            for key, tensor in s.items()
        }
    },
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_weights_are_found_wherever_they_are(place, state, tmp_path):
    content = place(state)
    assert is_same(from_original(content, **HEADS), state)
    torch.save(content, tmp_path / "w.pt")
    assert is_same(from_original(tmp_path / "w.pt", **HEADS), state)


def test_average_that_torch_makes_loads_as_it_is(tmp_path):
    config = DiTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=4, sample_size=4, num_classes=3)
    torch.manual_seed(0)
    average = AveragedModel(DiTModel(config))
    for parameter in average.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(average.state_dict(), tmp_path / "swa.pt")
    assert is_same(from_original(tmp_path / "swa.pt", **HEADS), average.module.state_dict())


def test_other_weights_are_chosen_by_kind_or_by_name(state):
    content = {"state_dict": {**prefixed(moved(state), "net."), **prefixed(state, "ema_model.")}}
    assert is_same(from_original(content, weights="model", **HEADS), moved(state))
    assert is_same(from_original(content, weights="state_dict.net", **HEADS), moved(state))
    assert is_same(from_original(content, weights="state_dict.ema_model", **HEADS), state)
    with pytest.raises(
        ValueError, match=r"weights='net': choose from ema, model, state_dict.net, state_dict.ema_model"
    ):
        from_original(content, weights="net", **HEADS)


def test_several_models_of_a_kind_are_listed(state):
    content = {"ema": state, "ema_slow": moved(state), "generator": state, "teacher": state}
    with pytest.raises(CheckpointError, match=r"several DiTs: 'generator' \(\d+ tensors\), 'teacher' \(\d+ tensors\)"):
        from_original(content, weights="model", **HEADS)
    assert is_same(from_original(content, **HEADS), state)  # one of them has the very name
    del content["ema"]
    assert is_same(from_original(content, **HEADS), moved(state))
    content["ema_fast"] = state
    with pytest.raises(CheckpointError, match="'ema_slow'.*'ema_fast'.*Choose one by its name"):
        from_original(content, **HEADS)


@pytest.mark.parametrize("where", ["memory", "file"])
def test_what_only_a_training_needed_is_listed_and_left_out_on_request(state, where, tmp_path):
    """The projectors of REPA (arXiv 2410.06940), and two more of their kind."""
    projectors = {f"projectors.0.{layer}.{kind}": torch.ones(2) for layer in (0, 2, 4) for kind in ("weight", "bias")}
    content = {"ema": {**state, **projectors, "mask_token": torch.ones(1)}, "model": moved(state)}
    if where == "file":
        torch.save(content, tmp_path / "w.pt")
        content = tmp_path / "w.pt"
    message = r"has, of another model, mask_token, projectors \(6 tensors\)\. .*ignore=\['mask_token', 'projectors'\]"
    with pytest.raises(CheckpointError, match=message):
        from_original(content, **HEADS)
    assert is_same(from_original(content, ignore=["mask_token", "projectors"], **HEADS), state)
    with pytest.raises(ValueError, match="ignore='teacher': no key begins so"):
        from_original(content, ignore=["mask_token", "projectors", "teacher"], **HEADS)


def test_part_of_the_model_itself_cannot_be_left_out(state):
    with pytest.raises(CheckpointError, match="lacks blocks.0"):
        from_original(state, ignore=["blocks"], num_hidden_layers=2, **HEADS)


def test_file_without_a_dit_says_what_it_holds():
    content = {"encoder": {"weight": torch.ones(2)}, "args": argparse.Namespace(lr=1), 3: "x", "y" * 1000: 1}
    with pytest.raises(CheckpointError, match="it holds encoder, args, a key of type int, y") as error:
        from_original(content)
    assert len(str(error.value)) < 300


def test_keys_of_many_lines_or_without_end_make_no_long_message(state):
    odd = {**state, "line\nline": torch.ones(1), "z" * 10**6: torch.ones(1)}
    with pytest.raises(CheckpointError, match="has, of another model, line line, zzz") as error:
        from_original(odd, **HEADS)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
