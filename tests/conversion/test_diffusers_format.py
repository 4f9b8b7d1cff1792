"""diffusers' form against diffusers' own model: equal outputs where the numbers are equal, and every tensor back."""

import json
import re

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers.utils import logging

from dit_hf.conversion import CheckpointError, from_diffusers, from_original, to_diffusers, to_original
from dit_hf.conversion.diffusers_format import TRAINED_AS

HEADS = {"num_attention_heads": 4}
BOTH_RIGHT = {"timestep_freq_shift": 1.0, "mlp_norm_eps": 1e-6}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def inputs():
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return latents, torch.tensor([0, 1, 500, 999]), torch.tensor([0, 5, 9, 10])  # the last label is the null class


@pytest.fixture
def published(golden_model, tmp_path):
    """The golden weights as facebook/DiT-XL-2-256 has its own: an old class, an old configuration, no notes."""
    folder = tmp_path / "published"
    to_diffusers(golden_model).save_pretrained(folder / "transformer")
    file = folder / "transformer" / "config.json"
    config = json.loads(file.read_text())
    for field in (TRAINED_AS, "norm_eps"):
        del config[field]
    config |= {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None}
    file.write_text(json.dumps(config))
    return folder


def same_weights(one, other) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[key]) for key, tensor in one.state_dict().items())


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_with_both_numbers_right_the_two_models_give_the_same_output(eps, golden_file, inputs):
    ours = from_original(golden_file, timestep_freq_shift=1.0, mlp_norm_eps=eps, **HEADS)
    theirs = to_diffusers(ours)
    assert type(theirs) is DiTTransformer2DModel
    assert theirs.config.norm_eps == eps
    with torch.no_grad():
        expected = theirs(*inputs).sample
        torch.testing.assert_close(ours(*inputs).sample, expected, rtol=1e-5, atol=1e-5)  # another order of sums


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("where", ["memory", "folder", "pipeline's folder"])
def test_there_and_back_is_bit_for_bit_with_the_numbers_it_was_trained_with(where, shift, golden_file, tmp_path):
    model = from_original(golden_file, timestep_freq_shift=shift, **HEADS)
    source = to_diffusers(model)
    if where != "memory":
        source.save_pretrained(tmp_path / "transformer")
        source = tmp_path if where == "pipeline's folder" else tmp_path / "transformer"
    again = from_diffusers(source)
    assert same_weights(model, again)
    assert again.config.to_diff_dict() == model.config.to_diff_dict()


def test_note_survives_diffusers_own_loading_and_saving(golden_file, tmp_path, caplog):
    to_diffusers(from_original(golden_file, timestep_freq_shift=1.0, **HEADS)).save_pretrained(tmp_path / "a")
    DiTTransformer2DModel.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert from_diffusers(tmp_path / "b").config.timestep_freq_shift == 1
    assert "expected" not in caplog.text


def test_published_weights_are_run_as_the_original_trained_them_and_that_is_said(published, golden, caplog):
    logging.enable_propagation()
    logging.warning_once.cache_clear()
    model = from_diffusers(published)
    from_diffusers(published)
    with torch.no_grad():
        out = model(golden["x"], golden["t"], golden["y"]).sample
    torch.testing.assert_close(out, golden["out"], rtol=1e-5, atol=1e-5)  # float32, another order of sums
    assert caplog.text.count("as the original trained them") == 1
    assert (model.config.timestep_freq_shift, model.config.mlp_norm_eps) == (0, 1e-6)


def test_model_trained_in_diffusers_keeps_its_numbers(published, inputs):
    theirs = DiTTransformer2DModel.from_pretrained(published, subfolder="transformer").eval()
    for source in (published, theirs):
        ours = from_diffusers(source, timestep_freq_shift=1.0)
        assert (ours.config.timestep_freq_shift, ours.config.mlp_norm_eps) == (1, 1e-5)
        with torch.no_grad():
            torch.testing.assert_close(ours(*inputs).sample, theirs(*inputs).sample, rtol=1e-5, atol=1e-5)
    assert from_diffusers(published, timestep_freq_shift=1.0, mlp_norm_eps=1e-6).config.mlp_norm_eps == 1e-6


def test_deviation_of_diffusers_fixed_frequencies_is_measured(golden_model, inputs, caplog):
    theirs = to_diffusers(golden_model)
    said = float(re.search(r"timestep_freq_shift=1 for 0 moves the output by up to ([\d.e-]+)", caplog.text)[1])
    with torch.no_grad():
        x, label = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(1, dtype=torch.long)
        t = torch.tensor([500])
        seen = (theirs(x, t, label).sample - golden_model(x, t, label).sample).abs().max()
    assert abs(said - seen) < 0.02 * seen  # two digits are said
    assert "position embedding" not in caplog.text
    golden_model.pos_embed.data += 4e-4
    to_diffusers(golden_model)
    assert "position embedding anew: it differs by up to 0.0004" in caplog.text


def test_models_share_no_memory(golden_model):
    theirs = to_diffusers(golden_model)
    before = {key: tensor.clone() for key, tensor in golden_model.state_dict().items()}
    back = from_diffusers(theirs)
    for parameter in [*theirs.parameters(), *back.parameters()]:
        parameter.data.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in golden_model.state_dict().items())


@pytest.mark.parametrize("form", ["bin", "shards", "variant", "bfloat16"])
def test_every_form_of_weights_is_read(form, golden_file, tmp_path):
    model = from_original(golden_file, **BOTH_RIGHT, **HEADS)
    if form == "bfloat16":
        model = model.bfloat16()
    arguments = {
        "bin": {"safe_serialization": False},
        "shards": {"max_shard_size": "100KB"},
        "variant": {"variant": "fp16"},
    }.get(form, {})
    to_diffusers(model).save_pretrained(tmp_path, **arguments)
    assert same_weights(model, from_diffusers(tmp_path, variant="fp16" if form == "variant" else None))
    if form == "bin":
        with pytest.raises(CheckpointError, match="no weights in diffusion_pytorch_model files of safetensors"):
            from_diffusers(tmp_path, use_safetensors=True)


@pytest.mark.parametrize("safe", [True, False])
def test_cached_id_of_the_hub_loads_offline(safe, golden_model, tmp_path):
    repository = tmp_path / "models--somebody--dit"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    to_diffusers(golden_model).save_pretrained(repository / "snapshots" / ("0" * 40), safe_serialization=safe)
    model = from_diffusers("somebody/dit", cache_dir=tmp_path, local_files_only=True)
    assert same_weights(model, golden_model)


WEIGHTS_WRONG = {
    "a missing key": (lambda s: s.pop("proj_out_2.bias"), "lacks proj_out_2.bias"),
    "an extra key": (lambda s: s.update(extra=torch.zeros(1)), "has, of another model, extra"),
    "copies that disagree": (
        lambda s: s["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"][0].add_(1e-6),
        "transformer_blocks.1.norm1.emb.class_embedder.*differ",
    ),
    "another shape": (lambda s: s.update({"proj_out_1.bias": torch.zeros(3)}), "final_layer.adaLN_modulation.1.bias"),
    "a part of another width": (
        lambda s: s.update({"transformer_blocks.0.attn1.to_k.weight": torch.zeros(48, 47)}),
        "transformer_blocks.0.attn1.to_k.weight has the shape",
    ),
    "NaN": (lambda s: s["proj_out_2.weight"].fill_(float("nan")), "final_layer.linear.weight holds"),
}


@pytest.mark.parametrize(("spoil", "message"), WEIGHTS_WRONG.values(), ids=WEIGHTS_WRONG)
def test_wrong_weights_are_refused_by_key(spoil, message, published):
    file = published / "transformer" / WEIGHTS
    state = load_file(file)
    spoil(state)
    save_file(state, file)
    with pytest.raises(CheckpointError, match=message):
        from_diffusers(published)


CONFIG_WRONG = [
    ({"_class_name": "PixArtTransformer2DModel"}, "is of PixArtTransformer2DModel"),
    ({"norm_type": "ada_norm_single"}, "norm_type='ada_norm_single'"),
    ({"activation_fn": "geglu"}, "activation_fn='geglu'"),
    ({"norm_elementwise_affine": True}, "norm_elementwise_affine=True"),
    ({"num_layers": 10**9}, "num_layers=1000000000"),
    ({"num_layers": 3}, "num_layers=3, its weights 2"),
    ({"num_attention_heads": "4"}, "num_attention_heads='4'"),
    ({"sample_size": 2**20}, "sample_size=1048576 makes more than"),
    ({"sample_size": [4, 8]}, r"sample_size=\[4, 8\]"),
    ({"out_channels": 5}, "out_channels=5"),
    ({"num_embeds_ada_norm": None}, "num_embeds_ada_norm=None"),
]


@pytest.mark.parametrize(("fields", "message"), CONFIG_WRONG, ids=[row[1] for row in CONFIG_WRONG])
def test_configuration_of_another_model_is_refused_by_field(fields, message, published):
    file = published / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(CheckpointError, match=message):
        from_diffusers(published)


def test_folder_without_a_model_and_unknown_arguments_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no diffusers model"):
        from_diffusers(tmp_path)
    with pytest.raises(ValueError, match="unknown argument 'device'"):
        from_diffusers(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"block_type": "in_context"}, "block_type='in_context'"),
        ({"sample_size": (4, 8)}, r"sample_size=\[4, 8\]: diffusers' DiT has a square only"),
        ({"mlp_ratio": 2.0}, "mlp_ratio=2.0"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"class_dropout_prob": 0.0}, "class_dropout_prob=0.0"),
    ],
)
def test_model_that_diffusers_cannot_express_is_refused_by_field(config, message, make_model):
    with pytest.raises(ValueError, match=message):
        to_diffusers(make_model(**config))


def test_other_sizes_go_there_and_back(make_model):
    model = make_model(learn_sigma=False, in_channels=3, patch_size=1, num_hidden_layers=3, timestep_freq_shift=1.0)
    again = from_diffusers(to_diffusers(model))
    assert same_weights(model, again)
    assert again.config.to_diff_dict() == model.config.to_diff_dict()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "has no weight_map"),
        ('{"weight_map": 3}', "has no weight_map"),
        ('{"weight_map": {"a": 1}}', "has no weight_map"),
        ("[]", "holds a list, not an object"),
        ("{", "is no JSON file"),
        ('{"weight_map": {"a": "../none.safetensors"}}', r"lacks none\.safetensors, which its index names"),
    ],
)
def test_index_of_shards_that_is_damaged_is_refused(index, message, published):
    folder = published / "transformer"
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=message):
        from_diffusers(folder)


def test_folder_with_one_file_and_shards_is_refused(golden_model, golden_file, tmp_path):
    to_diffusers(golden_model).save_pretrained(tmp_path / "a")
    to_diffusers(golden_model).save_pretrained(tmp_path / "b", max_shard_size="100KB")
    (tmp_path / "a" / WEIGHTS).rename(tmp_path / "b" / WEIGHTS)
    with pytest.raises(ValueError, match=f"holds the weights twice, as {WEIGHTS} .*: delete {WEIGHTS}, or delete"):
        from_diffusers(tmp_path / "b")
    (tmp_path / "b" / WEIGHTS).unlink()
    assert same_weights(golden_model, from_diffusers(tmp_path / "b"))


class Wrapper(torch.nn.Module):
    """What FSDP and activation checkpointing put around a layer: the layer under another name."""

    def __init__(self, name: str, layer: torch.nn.Module) -> None:
        super().__init__()
        self.add_module(name, layer)
        self.forward = layer.forward


def wrap(model, wrapper: str):
    """Wrap the blocks, two of their layers, and the model."""
    if wrapper == "torch.compile":
        model.blocks[0] = torch.compile(model.blocks[0])
        model.final_layer.linear = torch.compile(model.final_layer.linear)
        return torch.compile(model)
    if wrapper == "checkpoint_wrapper":
        model.blocks[1] = checkpoint_wrapper(model.blocks[1])
        return DistributedLike(model)
    for block in model.blocks:
        block.attn.qkv = Wrapper(wrapper, block.attn.qkv)
    model.blocks[0] = Wrapper(wrapper, model.blocks[0])
    return Wrapper(wrapper, model)


class DistributedLike(torch.nn.Module):
    """As DistributedDataParallel and AveragedModel hold a model."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


WRAPPED = ["torch.compile", "checkpoint_wrapper", "_orig_mod", "module", "_fsdp_wrapped_module"]


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrapped_layers_are_converted_both_ways_as_if_they_were_not(wrapper, golden_file):
    plain, model = (from_original(golden_file, timestep_freq_shift=1.0, **HEADS) for _ in range(2))
    wrapped = wrap(model, wrapper)
    assert to_original(wrapped).keys() == to_original(plain).keys()
    assert all(torch.equal(tensor, to_original(plain)[key]) for key, tensor in to_original(wrapped).items())
    theirs = to_diffusers(wrapped)
    assert same_weights(theirs, to_diffusers(plain))
    theirs.transformer_blocks[0] = torch.compile(theirs.transformer_blocks[0])
    assert same_weights(plain, from_diffusers(torch.compile(theirs)))


def test_deviation_of_a_wrapped_model_is_measured(golden_model, caplog):
    golden_model.blocks[0].attn = Wrapper("_fsdp_wrapped_module", golden_model.blocks[0].attn)
    to_diffusers(golden_model)
    assert "timestep_freq_shift=1 for 0 moves the output" in caplog.text


def test_model_of_another_class_is_refused():
    with pytest.raises(ValueError, match="Linear is not a DiTTransformer2DModel"):
        from_diffusers(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear is not a DiTModel"):
        to_diffusers(torch.nn.Linear(2, 2))
