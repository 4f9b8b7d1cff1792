"""Loading and saving: what comes back is what was written, and nothing wrong is loaded silently."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel

from dit_hf import DiTConfig, DiTModel
from dit_hf.blocks import BLOCKS
from dit_hf.weight_files import strip_wrappers

each_block = pytest.mark.parametrize("block_type", BLOCKS)


@each_block
@torch.no_grad()
def test_saving_and_loading_keeps_every_weight(tiny_model, block_type, tmp_path):
    model = tiny_model(block_type=block_type, sample_size=(8, 4))
    model.pos_embed += 4e-4  # weights of the original carry one that has drifted: it is loaded, not recomputed
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded, info = DiTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
    assert not loaded.training
    assert not loaded.pos_embed.requires_grad
    assert loaded.config.sample_size == [8, 4]


def test_auto_classes_know_the_model(tiny_config, tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DiTConfig
    assert type(AutoModel.from_config(tiny_config())) is DiTModel
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is DiTModel
    assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)


@torch.no_grad()
def test_loading_takes_dtype_device_map_and_attention(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = DiTModel.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu", attn_implementation="eager")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert (loaded.dtype, loaded.device.type) == (torch.bfloat16, "cpu")
    assert loaded.config._attn_implementation == "eager"


@each_block
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules:UserWarning")  # pos_embed
@torch.no_grad()
def test_blocks_may_be_offloaded(tiny_model, tiny_inputs, block_type, tmp_path):
    model = tiny_model(block_type=block_type)
    model.save_pretrained(tmp_path / "model")
    device_map = dict.fromkeys(["x_embedder", "pos_embed", "y_embedder", "t_embedder", "blocks.0"], "cpu")
    device_map.update({"blocks.1": "disk", "final_layer": "disk"})
    loaded = DiTModel.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload")
    assert loaded.blocks[1].mlp.fc1.weight.device.type == "meta"
    x, t, y = tiny_inputs()
    assert_close(loaded(x, t, y).sample, model(x, t, y).sample)
    assert_close(loaded(x, conditioning=loaded.condition(t, y)).sample, model(x, t, y).sample)


def test_device_maps_never_split_a_block(tiny_model):
    accelerate = pytest.importorskip("accelerate")
    model = tiny_model(num_hidden_layers=8)
    block_bytes = sum(p.nbytes for p in model.blocks[0].parameters())
    budget = {0: int(5.5 * block_bytes), "cpu": 10**9}
    device_map = accelerate.infer_auto_device_map(model, budget, no_split_module_classes=model._no_split_modules)
    assert set(map(str, device_map.values())) == {"0", "cpu"}
    assert not [name for name in device_map if name.startswith("blocks.") and name.count(".") > 1]


def edit_weights(folder, change) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


WRONG_WEIGHTS = {
    "model.safetensors of .*: 1 weights are missing: blocks.1.mlp": lambda weights: weights.pop(
        "blocks.1.mlp.fc1.bias"
    ),
    "1 weights are left over: blocks.9.mlp.fc1.bias": lambda weights: weights.update(
        {"blocks.9.mlp.fc1.bias": torch.zeros(3)}
    ),
    "1 weights are not finite: blocks.0.attn.proj.weight": lambda weights: (
        weights["blocks.0.attn.proj.weight"].view(-1)[5:6].fill_(float("nan"))
    ),
}


@pytest.mark.parametrize("message", WRONG_WEIGHTS)
def test_weights_that_do_not_make_the_model_whole_are_refused_by_name(tiny_config, tmp_path, message):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    edit_weights(tmp_path, WRONG_WEIGHTS[message])
    with pytest.raises(ValueError, match=message):
        DiTModel.from_pretrained(tmp_path)
    assert isinstance(DiTModel.from_pretrained(tmp_path, strict=False), DiTModel)


def test_weights_of_another_shape_are_refused(tiny_config, tmp_path):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({"final_layer.linear.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match="1 weights are of another shape: final_layer.linear.bias"):
        DiTModel.from_pretrained(tmp_path)
    assert isinstance(DiTModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True), DiTModel)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
@pytest.mark.parametrize("safe", [True, False])
def test_whole_numbers_are_refused_as_weights_by_file_and_key(tiny_config, tmp_path, dtype, safe):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update(pos_embed=weights["pos_embed"].to(dtype)))
    file = tmp_path / "model.safetensors"
    if not safe:
        torch.save(load_file(file), tmp_path / "pytorch_model.bin")
        file.unlink()
        file = tmp_path / "pytorch_model.bin"
    with pytest.raises(ValueError, match=f"{file}: pos_embed is {dtype}, weights are floating point numbers"):
        DiTModel.from_pretrained(tmp_path)


def test_folder_without_configuration_is_refused(tiny_config, tmp_path):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        DiTModel.from_pretrained(tmp_path)


def test_loading_information_is_returned_when_asked_for(tiny_config, tmp_path):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    model, info = DiTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, DiTModel)
    assert not info["missing_keys"]


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        ("blocks.0._orig_mod.attn.qkv.bias", "blocks.0.attn.qkv.bias"),
        (
            "module._orig_mod.blocks.0._checkpoint_wrapped_module.mlp._fsdp_wrapped_module.fc1.weight",
            "blocks.0.mlp.fc1.weight",
        ),
        ("blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc1.weight"),
        ("module_list.my_orig_mod.weight", "module_list.my_orig_mod.weight"),
    ],
)
def test_wrappers_are_stripped_at_any_depth(key, plain):
    assert strip_wrappers(key) == plain
