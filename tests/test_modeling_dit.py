"""The model against the original's golden files, the paper's numbers, and transformers' conventions."""

import importlib.util
import inspect
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

import dit_hf
from dit_hf import DiTConfig, DiTModel
from dit_hf.blocks import BLOCKS
from dit_hf.configuration_dit import PAPER_SIZES
from dit_hf.embeddings import DiTPositions, position_embedding
from dit_hf.hub.flatten import flatten

# Trainable parameters and giga multiply-adds at XL/2, 256 px: table 4 of the paper, exact by torch's counter.
XL2_BLOCKS = {
    "in_context": (449_326_112, 449_031_200, 119.354),
    "cross_attention": (598_090_784, 597_795_872, 137.603),
    "adaln": (600_747_296, 600_452_384, 118.547),
    "adaln_zero": (675_129_632, 674_834_720, 118.621),
}

pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")

each_block = pytest.mark.parametrize("block_type", BLOCKS)


def slow(parameter: str):
    return pytest.param(parameter, marks=pytest.mark.slow)


def golden_model(golden_dir: Path, config: DiTConfig) -> DiTModel:
    model = DiTModel(config).eval()
    model.load_state_dict(load_file(golden_dir / "dit_p2_c4.safetensors"), strict=True)
    return model


@torch.no_grad()
def test_output_equals_the_original(tiny_config, golden, golden_dir):
    out = golden_model(golden_dir, tiny_config())(golden["x"], timestep=golden["t"], class_labels=golden["y"]).sample
    assert_close(out, golden["out"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_guided_output_equals_the_original(tiny_config, golden, golden_dir):
    model = golden_model(golden_dir, tiny_config())
    labels = torch.cat([golden["cfg_y"], torch.full_like(golden["cfg_y"], model.config.null_class_id)])
    out = model(golden["x"].repeat(2, 1, 1, 1), golden["t"].repeat(2), labels).sample
    conditional, unconditional = out.chunk(2)
    guided = conditional.clone()
    guided[:, :3] = unconditional[:, :3] + 4 * (conditional[:, :3] - unconditional[:, :3])
    # The second half of the file keeps its own fourth channel and variance, which no pipeline uses.
    assert_close(guided, golden["cfg_out_scale4"][:3], atol=1e-5, rtol=0)


def drifted_model(**config) -> DiTModel:
    """A model whose position embedding is no longer that of the formula, as the original's EMA left it."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "sample_size": 8, "num_classes": 3}
    model = DiTModel(DiTConfig(**{**sizes, **config})).eval()
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(len(name))
        parameter.data += 1e-3 * torch.randn(parameter.shape, generator=generator)
    return model


def test_extended_positions_count_on_from_the_stored_ones():
    model = drifted_model()
    embedding = model.resize_pos_embed(12, 4, "extend").unflatten(1, (6, 2))
    assert torch.equal(embedding[:, :4], model.pos_embed.unflatten(1, (4, 4))[:, :, :2])
    # beyond, the formula, by hand: row 5 and column 1, of D/4 = 4 frequencies each
    omega = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    by_hand = torch.cat([(1 * omega).sin(), (1 * omega).cos(), (5 * omega).sin(), (5 * omega).cos()])
    assert_close(embedding[0, 5, 1], by_hand.float())
    assert torch.equal(model.resize_pos_embed(8, 8, "extend"), model.pos_embed)


def test_interpolated_positions_stretch_the_trained_ones_over_the_image():
    model = drifted_model()
    embedding = model.resize_pos_embed(16, 8, "interpolate").unflatten(1, (8, 4))
    omega = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    # eight rows over the four trained ones: the centre of row 6 lies at 6.5 / 2 - 0.5 = 2.75
    by_hand = torch.cat([(3 * omega).sin(), (3 * omega).cos(), (2.75 * omega).sin(), (2.75 * omega).cos()])
    assert_close(embedding[0, 6, 3], by_hand.float())
    assert_close(model.resize_pos_embed(8, 8, "interpolate"), position_embedding((4, 4), 16))


@torch.no_grad()
def test_latents_of_another_size_need_their_positions():
    model = drifted_model()
    y = torch.tensor([1, 2])
    for policy in ("extend", "interpolate"):
        x = torch.randn(2, 4, 12, 4)
        out = model(x, 7, y, pos_embed=model.resize_pos_embed(12, 4, policy)).sample
        assert out.shape == (2, 8, 12, 4)
        # the same as a model of that size with those positions
        other = drifted_model(sample_size=(12, 4))
        weights = {**model.state_dict(), "pos_embed": model.resize_pos_embed(12, 4, policy)}
        other.load_state_dict(weights)
        assert torch.equal(other(x, 7, y).sample, out)
    with pytest.raises(ValueError, match=r"positions=model.positions\(height, width, policy\)"):
        model(torch.randn(2, 4, 12, 4), 7, y)
    with pytest.raises(ValueError, match="positions of 12 patches do not fit latents of 8 x 8"):
        model(torch.randn(2, 4, 8, 8), 7, y, pos_embed=model.resize_pos_embed(12, 4, "extend"))
    with pytest.raises(ValueError, match="policy='stretch': choose from extend, interpolate"):
        model.resize_pos_embed(12, 4, "stretch")
    with pytest.raises(ValueError, match="latents of 13 x 4: pass multiples of patch_size=2"):
        model.resize_pos_embed(13, 4, "extend")


@torch.no_grad()
def test_positions_made_beforehand_give_the_output_of_their_embedding():
    model, x, y = drifted_model(), torch.randn(2, 4, 12, 4), torch.tensor([1, 2])
    for policy in ("extend", "interpolate"):
        expected = model(x, 7, y, pos_embed=model.resize_pos_embed(12, 4, policy)).sample
        assert torch.equal(model(x, 7, y, positions=model.positions(12, 4, policy)).sample, expected)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(model(x, 7, y, positions=model.positions()).sample, model(x, 7, y).sample)
    with pytest.raises(ValueError, match=r"positions\(12, 4, None\): pass all three arguments, or none"):
        model.positions(12, 4)
    with pytest.raises(ValueError, match="pass them without pos_embed"):
        model(x, 7, y, positions=DiTPositions(model.pos_embed), pos_embed=model.pos_embed)


@pytest.mark.parametrize("name", ["DiT-XL/2", *(slow(name) for name in PAPER_SIZES if name != "DiT-XL/2")])
def test_sizes_have_the_papers_parameters_and_multiply_adds(name):
    num_parameters, gmacs = count(DiTConfig.from_name(name))[0::2]
    assert num_parameters == PAPER_SIZES[name].num_parameters
    assert gmacs == pytest.approx(PAPER_SIZES[name].gmacs, abs=0.02)  # the paper's two decimals, without biases


@pytest.mark.slow
def test_xl_2_at_512_px_has_the_papers_parameters_and_multiply_adds():
    num_parameters, _, gmacs = count(DiTConfig.from_name("DiT-XL/2", sample_size=64))
    assert num_parameters == 676_014_368
    assert gmacs == pytest.approx(524.6, abs=0.07)


@pytest.mark.slow
@each_block
def test_blocks_have_the_papers_parameters_and_multiply_adds(block_type):
    num_parameters, num_trainable, gmacs = count(DiTConfig.from_name("DiT-XL/2", block_type=block_type))
    assert (num_parameters, num_trainable) == XL2_BLOCKS[block_type][:2]
    assert gmacs == pytest.approx(XL2_BLOCKS[block_type][2], abs=1e-3)


def count(config: DiTConfig) -> tuple[int, int, float]:
    with torch.device("meta"):
        model = DiTModel._from_config(config, attn_implementation="eager").eval()
        height, width = config.sample_height_width
        x, t, y = torch.empty(1, config.in_channels, height, width), torch.empty(1), torch.empty(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x, t, y)
    num_parameters = sum(p.numel() for p in model.parameters())
    num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return num_parameters, num_trainable, counter.get_total_flops() / 2e9


@each_block
def test_fresh_model_outputs_zero_also_after_saving_and_loading(tiny_config, tiny_inputs, block_type, tmp_path):
    model = DiTModel(tiny_config(block_type=block_type)).eval()
    model.save_pretrained(tmp_path)
    for fresh in (model, DiTModel.from_pretrained(tmp_path)):
        assert not fresh(*tiny_inputs()).sample.any()


@pytest.mark.parametrize("owner", ["fresh", "missing from the file"])
def test_weights_start_as_the_originals(tiny_config, owner, tmp_path):
    model = DiTModel(tiny_config(hidden_size=96, block_type="cross_attention"))
    if owner == "missing from the file":
        model.save_pretrained(tmp_path)
        save_file({"t_embedder.mlp.0.bias": torch.full((96,), 0.5)}, tmp_path / "model.safetensors", {"format": "pt"})
        model = DiTModel.from_pretrained(tmp_path, strict=False)
        assert (model.t_embedder.mlp[0].bias == 0.5).all()
        torch.nn.init.zeros_(model.t_embedder.mlp[0].bias)
    bounds = {
        "blocks.0.attn.qkv.weight": math.sqrt(6 / (96 + 3 * 96)),  # one matrix, not three
        "blocks.0.attn.proj.weight": math.sqrt(6 / (96 + 96)),
        "blocks.0.mlp.fc1.weight": math.sqrt(6 / (96 + 4 * 96)),
        "blocks.1.cross_attn.kv.weight": math.sqrt(6 / (96 + 2 * 96)),
        "x_embedder.proj.weight": math.sqrt(6 / (96 + 4 * 2 * 2)),  # as the matrix (D, C*p*p)
    }
    weights = model.state_dict()
    for name, bound in bounds.items():
        assert weights[name].abs().max() <= bound
        assert weights[name].abs().max() > 0.98 * bound
    for name in ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight", "y_embedder.embedding_table.weight"):
        assert weights[name].std() == pytest.approx(0.02, rel=0.1)
    biases = [weight for name, weight in weights.items() if name.endswith("bias")]
    assert not any(bias.any() for bias in biases)
    assert not weights["final_layer.linear.weight"].any()
    assert_close(weights["pos_embed"], position_embedding((4, 4), 96))


@each_block
def test_gradients_do_not_depend_on_attention_or_checkpointing(tiny_model, tiny_inputs, block_type):
    gradients = {}
    for name in ("sdpa", "eager", "checkpointed", "checkpointed, reentrant"):
        model = tiny_model(block_type=block_type).train()
        if name.startswith("checkpointed"):
            model.gradient_checkpointing_enable({"use_reentrant": name.endswith("reentrant")})
            assert all(block.gradient_checkpointing for block in model.blocks)
        else:
            model.set_attn_implementation(name)
        model(*tiny_inputs(), drop_labels=torch.tensor([True, False, False])).sample.square().mean().backward()
        gradients[name] = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    for other in gradients.values():
        assert_close(other, gradients["sdpa"], atol=1e-6, rtol=1e-4)  # float32, sums in another order


def test_checkpointing_saves_activations(tiny_model, tiny_inputs):
    saved_bytes = {}
    for checkpointing in (False, True):
        model = tiny_model(num_hidden_layers=4).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        saved: dict[int, int] = {}

        def record(tensor, saved=saved):
            saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            model(*tiny_inputs())
        saved_bytes[checkpointing] = sum(saved.values())
    assert saved_bytes[True] < 0.25 * saved_bytes[False]


@torch.no_grad()
def test_timestep_may_be_a_number_or_a_tensor_of_any_kind(tiny_model, tiny_inputs):
    model = tiny_model()
    x, _, y = tiny_inputs()
    expected = model(x, torch.tensor([500, 500, 500]), y).sample
    for t in (500, 500.0, torch.tensor(500), torch.tensor(500.0), torch.tensor([500]), torch.full((3,), 500.0)):
        assert_close(model(x, t, y).sample, expected, atol=1e-6, rtol=1e-5)
    assert (model(x, 500.5, y).sample - expected).abs().max() > 1e-3


@torch.no_grad()
def test_given_mask_drops_labels_in_any_mode(tiny_model, tiny_inputs):
    model = tiny_model()
    x, t, y = tiny_inputs()
    drop = torch.tensor([True, False, False])
    expected = model(x, t, y.masked_fill(drop, model.config.null_class_id)).sample
    for mode in (True, False):
        assert_close(model.train(mode)(x, t, y, drop_labels=drop).sample, expected)


@torch.no_grad()
def test_null_class_is_accepted(tiny_model, tiny_inputs):
    model = tiny_model()
    x, t, _ = tiny_inputs()
    assert model(x, t, torch.full((3,), model.config.null_class_id)).sample.isfinite().all()


@each_block
@torch.no_grad()
def test_unconditional_model_has_no_label_table(tiny_model, tiny_inputs, block_type):
    model = tiny_model(block_type=block_type, num_classes=0)
    x, t, _ = tiny_inputs()
    assert model.y_embedder is None
    assert model(x, t).sample.shape == (3, 8, 8, 8)
    assert model.condition(t).embedding.shape == {True: (3, 48), False: (3, 1, 48)}[BLOCKS[block_type].sums_embeddings]
    assert not torch.allclose(model(x, t).sample, model(x, 0).sample)


@torch.no_grad()
def test_model_without_learned_variance_returns_the_inputs_channels(tiny_model):
    model = tiny_model(learn_sigma=False, in_channels=3)
    assert model(torch.randn(2, 3, 8, 8), 5, torch.tensor([0, 1])).sample.shape == (2, 3, 8, 8)


@each_block
@torch.no_grad()
def test_rectangular_latents_keep_their_shape(tiny_model, block_type):
    model = tiny_model(block_type=block_type, sample_size=(4, 8))
    assert model.pos_embed.shape == (1, 8, 48)
    assert model(torch.randn(2, 4, 4, 8), 5, torch.tensor([0, 1])).sample.shape == (2, 8, 4, 8)


@each_block
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("num_hidden_layers", [2, 12])
@torch.no_grad()
def test_half_precision_stays_close_to_float32(tiny_model, tiny_inputs, block_type, dtype, limit, num_hidden_layers):
    fields = {"block_type": block_type, "num_hidden_layers": num_hidden_layers}
    x, t, y = tiny_inputs()
    exact = tiny_model(**fields)(x, t, y).sample
    half = tiny_model(**fields).to(dtype)(x.to(dtype), t, y).sample
    with torch.autocast("cpu", dtype):
        autocast = tiny_model(**fields)(x, t, y).sample
    assert half.dtype == dtype
    for out in (half, autocast):
        error = (out - exact) / exact.std()
        assert error.square().mean().sqrt() < limit / 4
        if num_hidden_layers == 2:  # the largest of many errors grows with the depth
            assert error.abs().max() < limit


@each_block
@torch.no_grad()
def test_residual_stream_is_float32_in_half_precision_and_contiguous_in_memory(tiny_model, tiny_inputs, block_type):
    model = tiny_model(block_type=block_type).to(torch.bfloat16)
    x, t, y = tiny_inputs()
    states = model(x, t, y, output_hidden_states=True).hidden_states
    assert {state.dtype for state in states} == {torch.float32}
    assert all(state.is_contiguous() for state in states)  # else every norm copies it


@each_block
@torch.no_grad()
def test_hidden_states_and_attentions_are_returned_when_asked(tiny_model, tiny_inputs, block_type):
    model = tiny_model(block_type=block_type)
    model.set_attn_implementation("eager")
    x, t, y = tiny_inputs()
    out = model(x, t, y, output_hidden_states=True, output_attentions=True)
    num_tokens = 18 if block_type == "in_context" else 16
    assert [tuple(state.shape) for state in out.hidden_states] == [(3, num_tokens, 48)] * 3
    assert [tuple(weights.shape) for weights in out.attentions] == [(3, 4, num_tokens, num_tokens)] * 2
    assert_close(out.attentions[0].sum(-1), torch.ones(3, 4, num_tokens))
    plain = model(x, t, y)
    assert (plain.hidden_states, plain.attentions) == (None, None)
    assert torch.equal(model(x, t, y, return_dict=False)[0], out.sample)


@pytest.mark.parametrize("block_type", ["adaln_zero", *(slow(block) for block in BLOCKS if block != "adaln_zero")])
@pytest.mark.parametrize("mode", ["eval", slow("train"), slow("checkpointed")])
def test_compiles_without_graph_breaks(tiny_model, tiny_inputs, block_type, mode):
    torch._dynamo.reset()
    model = tiny_model(block_type=block_type).train(mode != "eval")
    if mode == "checkpointed":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x, t, y = tiny_inputs()
    drop = torch.tensor([True, False, False])
    for timestep in (t, torch.tensor(7)):
        assert_close(compiled(x, timestep, y, drop_labels=drop).sample, model(x, timestep, y, drop_labels=drop).sample)
    if mode == "eval":
        assert_close(compiled(x, 7, y).sample, model(x, 7, y).sample)
        assert_close(compiled(x, conditioning=model.condition(t, y)).sample, model(x, t, y).sample)
    else:
        compiled(x, t, y).sample.mean().backward()
        assert model.x_embedder.proj.weight.grad.any()


@pytest.mark.slow
@torch.no_grad()
def test_compiles_to_kernels(tiny_model, tiny_inputs):
    torch._dynamo.reset()
    model = tiny_model()
    compiled = torch.compile(model, fullgraph=True)
    assert_close(compiled(*tiny_inputs()).sample, model(*tiny_inputs()).sample, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_model_travels_in_one_file_that_gives_the_same_output(tiny_model, tiny_inputs, tmp_path):
    (tmp_path / "alone.py").write_text(flatten(Path(inspect.getfile(DiTModel))))
    spec = importlib.util.spec_from_file_location("alone", tmp_path / "alone.py")
    alone = importlib.util.module_from_spec(spec)
    sys.modules["alone"] = alone
    spec.loader.exec_module(alone)
    model = tiny_model()
    other = alone.DiTModel(alone.DiTConfig(**model.config.to_dict())).eval()
    other.load_state_dict(model.state_dict())
    assert_close(other(*tiny_inputs()).sample, model(*tiny_inputs()).sample, atol=0, rtol=0)


@pytest.mark.slow
def test_importing_the_package_leaves_diffusers_alone():
    code = "import sys, dit_hf; assert 'diffusers' not in sys.modules; dit_hf.DiTPipeline; import diffusers"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600, env=environment)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_states": torch.zeros(3, 3, 8, 8)}, r"\(3, 3, 8, 8\).*in_channels=4.*\(B, 4, 8, 8\)"),
        ({"hidden_states": torch.zeros(3, 4, 8, 16)}, r"\(3, 4, 8, 16\).*sample_size=8"),
        ({"hidden_states": torch.zeros(4, 8, 8)}, r"\(4, 8, 8\)"),
        ({"timestep": None}, "timestep=None"),
        ({"timestep": torch.zeros(3, 1)}, r"timestep of shape \(3, 1\)"),
        ({"timestep": torch.zeros(2)}, "2 timesteps for 3 labels"),
        ({"class_labels": None}, "class_labels=None for 10 classes"),
        ({"class_labels": torch.tensor([0, 11, 2])}, r"\[0, 11, 2\]: pass 0..9, or 10 for no class"),
        ({"class_labels": torch.tensor([0, -1, 2])}, r"\[0, -1, 2\]"),
        ({"class_labels": torch.tensor([0.0, 1.0, 2.0])}, "float32"),
        ({"class_labels": torch.tensor([[0], [1], [2]])}, r"\(3, 1\)"),
        ({"class_labels": torch.tensor([0, 1])}, "3 timesteps for 2 labels"),
        ({"timestep": 5, "class_labels": torch.tensor([0, 1])}, "2 don't fit 3 latents"),
        ({"drop_labels": torch.tensor([1, 0, 0])}, "drop_labels torch.int64"),
        ({"drop_labels": torch.tensor([True])}, r"drop_labels.*\(1,\)"),
        ({"conditioning": "model.condition"}, "without them"),
        ({"output_attentions": True}, "'sdpa' attention has no weights.*eager"),
    ],
)
def test_bad_input_is_refused_with_its_value(tiny_model, tiny_inputs, arguments, message):
    model = tiny_model()
    x, t, y = tiny_inputs()
    with pytest.raises(ValueError, match=message):
        model(**{"hidden_states": x, "timestep": t, "class_labels": y, **arguments})


def test_labels_are_refused_where_there_is_nothing_to_do_with_them(tiny_model, tiny_inputs):
    x, t, y = tiny_inputs()
    with pytest.raises(ValueError, match="unconditional"):
        tiny_model(num_classes=0)(x, t, y)
    with pytest.raises(ValueError, match="no null class"):
        tiny_model(class_dropout_prob=0.0)(x, t, y.clamp(max=9), drop_labels=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"pass 0..9$"):
        tiny_model(class_dropout_prob=0.0)(x, t, y)


def test_configuration_changed_after_construction_is_checked_again(tiny_config):
    config = tiny_config()
    config.patch_size = 3
    with pytest.raises(ValueError, match="patch_size=3"):
        DiTModel(config)


def test_version_is_public():
    assert dit_hf.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="no attribute 'DiT'"):
        _ = dit_hf.DiT
