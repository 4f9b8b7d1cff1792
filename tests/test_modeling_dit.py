"""The model against the original's golden files, the paper's numbers, and transformers' conventions."""

import importlib.util
import inspect
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel

import dit_hf
from dit_hf import DiTConfig, DiTModel
from dit_hf.configuration_dit import PAPER_SIZES
from dit_hf.modeling_dit import BLOCKS, position_embedding, unpatchify

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


def tiny_config(**overrides) -> DiTConfig:
    fields = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "sample_size": 8, "num_classes": 10}
    return DiTConfig(**{**fields, **overrides})


def tiny_model(seed: int = 0, **overrides) -> DiTModel:
    """A small model in evaluation mode, whose zeros are replaced so that every weight has its say."""
    torch.manual_seed(seed)
    model = DiTModel(tiny_config(**overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def tiny_inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 4, 8, 8, generator=generator)
    return x, torch.tensor([999, 500, 3, 0][:batch]), torch.tensor([7, 10, 2, 0][:batch])


def golden_model(golden_dir: Path) -> DiTModel:
    model = DiTModel(tiny_config()).eval()
    model.load_state_dict(load_file(golden_dir / "dit_p2_c4.safetensors"), strict=True)
    return model


# The original implementation.


@torch.no_grad()
def test_output_equals_the_original(golden, golden_dir):
    out = golden_model(golden_dir)(golden["x"], timestep=golden["t"], class_labels=golden["y"]).sample
    assert_close(out, golden["out"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_guided_output_equals_the_original(golden, golden_dir):
    model = golden_model(golden_dir)
    labels = torch.cat([golden["cfg_y"], torch.full_like(golden["cfg_y"], model.config.null_class_id)])
    out = model(golden["x"].repeat(2, 1, 1, 1), golden["t"].repeat(2), labels).sample
    conditional, unconditional = out.chunk(2)
    guided = conditional.clone()
    guided[:, :3] = unconditional[:, :3] + 4 * (conditional[:, :3] - unconditional[:, :3])
    # The second half of the file keeps its own fourth channel and variance, which no pipeline uses.
    assert_close(guided, golden["cfg_out_scale4"][:3], atol=1e-5, rtol=0)


def test_position_embedding_equals_the_original(golden_dir):
    expected = load_file(golden_dir / "dit_p2_c4.safetensors")["pos_embed"]
    assert_close(DiTModel(tiny_config()).pos_embed.data, expected, atol=1e-6, rtol=0)


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


def test_position_embedding_of_a_rectangle_has_the_column_first():
    embedding = position_embedding((2, 3), 8)[0]
    for token, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]):
        angles = [position / 10000 ** (i / 2) for position in (column, row) for i in (0, 1)]
        x_0, x_1, y_0, y_1 = angles
        by_hand = [math.sin(x_0), math.sin(x_1), math.cos(x_0), math.cos(x_1)]
        by_hand += [math.sin(y_0), math.sin(y_1), math.cos(y_0), math.cos(y_1)]
        assert_close(embedding[token], torch.tensor(by_hand), atol=1e-6, rtol=0)


def test_timestep_freq_shift_changes_the_frequencies_as_in_diffusers():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    for shift in (0.0, 1.0):
        embedder = DiTModel(tiny_config(timestep_freq_shift=shift)).t_embedder
        captured = []
        embedder.mlp.register_forward_pre_hook(lambda _, args, captured=captured: captured.append(args[0]))
        t = torch.tensor([0.0, 0.5, 999.0])
        embedder(t)
        expected = embeddings.get_timestep_embedding(t, 256, flip_sin_to_cos=True, downscale_freq_shift=shift)
        assert_close(captured[0], expected, atol=1e-4, rtol=0)  # float32 sines of angles up to 999


@each_block
@torch.no_grad()
def test_output_equals_the_design_written_out_in_float64(block_type):
    model = tiny_model(block_type=block_type, sample_size=(4, 8), timestep_freq_shift=1.0, mlp_norm_eps=1e-2)
    x, t, y = torch.randn(3, 4, 4, 8), torch.tensor([999.0, 3.5, 0.0]), torch.tensor([7, 10, 0])
    expected = by_hand(model.state_dict(), block_type, x.double(), t.double(), y)
    assert_close(model(x, t, y).sample.double(), expected, atol=1e-4, rtol=0)  # float32 sines of angles up to 999


def by_hand(weights: dict[str, Tensor], block_type: str, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The four designs for 4 x 8 latents of 4 channels, patches of 2, width 48, 4 heads, 2 blocks."""
    weights = {name: weight.double() for name, weight in weights.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, eps: float = 1e-6) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = []
        for q_h, k_h, v_h in zip(q.split(12, -1), k.split(12, -1), v.split(12, -1), strict=True):
            heads.append((q_h @ k_h.transpose(1, 2) / math.sqrt(12)).softmax(-1) @ v_h)
        return torch.cat(heads, -1)

    def self_attention(d: int, x: Tensor) -> Tensor:
        return linear(f"blocks.{d}.attn.proj", attention(*linear(f"blocks.{d}.attn.qkv", x).split(48, -1)))

    def mlp(d: int, x: Tensor) -> Tensor:
        z = linear(f"blocks.{d}.mlp.fc1", x)
        gelu = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        return linear(f"blocks.{d}.mlp.fc2", gelu)

    patches = [x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(3, 16) for i in range(2) for j in range(4)]
    kernel = weights["x_embedder.proj.weight"].reshape(48, 16)
    x = torch.stack(patches, 1) @ kernel.T + weights["x_embedder.proj.bias"] + weights["pos_embed"]
    angles = t[:, None] * 10000 ** (-torch.arange(128).double() / 127)
    t_emb = linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], -1))
    t_emb = linear("t_embedder.mlp.2", silu(t_emb))
    y_emb = weights["y_embedder.embedding_table.weight"][y]
    tokens, c = torch.stack([t_emb, y_emb], 1), t_emb + y_emb

    if block_type == "in_context":
        x = torch.cat([x, tokens], 1)
    for d in range(2):
        if block_type.startswith("adaln"):
            modulation = linear(f"blocks.{d}.adaLN_modulation.1", silu(c))[:, None].split(48, -1)
            if block_type == "adaln":
                shift_1, scale_1, shift_2, scale_2 = modulation
                gate_1 = gate_2 = 1
            else:
                shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation
        else:
            shift_1 = scale_1 = shift_2 = scale_2 = 0
            gate_1 = gate_2 = 1
        x = x + gate_1 * self_attention(d, norm(x) * (1 + scale_1) + shift_1)
        if block_type == "cross_attention":
            name = f"blocks.{d}.cross_attn"
            out = attention(linear(f"{name}.q", norm(x)), *linear(f"{name}.kv", tokens).split(48, -1))
            x = x + linear(f"{name}.proj", out)
        x = x + gate_2 * mlp(d, norm(x, eps=1e-2) * (1 + scale_2) + shift_2)

    x = norm(x[:, :8])
    if block_type.startswith("adaln"):
        shift, scale = linear("final_layer.adaLN_modulation.1", silu(c))[:, None].split(48, -1)
        x = x * (1 + scale) + shift
    patches = linear("final_layer.linear", x).reshape(3, 2, 4, 2, 2, 8)
    out = torch.empty(3, 8, 4, 8, dtype=torch.float64)
    for i, j, p, q in itertools.product(range(2), range(4), range(2), range(2)):
        out[:, :, 2 * i + p, 2 * j + q] = patches[:, i, j, p, q]
    return out


# The paper's numbers.


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_sizes_have_the_papers_parameters_and_multiply_adds(name):
    num_parameters, gmacs = count(DiTConfig.from_name(name))[0::2]
    assert num_parameters == PAPER_SIZES[name].num_parameters
    assert gmacs == pytest.approx(PAPER_SIZES[name].gmacs, abs=0.02)  # the paper's two decimals, without biases


def test_xl_2_at_512_px_has_the_papers_parameters_and_multiply_adds():
    num_parameters, _, gmacs = count(DiTConfig.from_name("DiT-XL/2", sample_size=64))
    assert num_parameters == 676_014_368
    assert gmacs == pytest.approx(524.6, abs=0.07)


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


# Initialisation.


@each_block
def test_fresh_model_outputs_zero_also_after_saving_and_loading(block_type, tmp_path):
    model = DiTModel(tiny_config(block_type=block_type)).eval()
    model.save_pretrained(tmp_path)
    for fresh in (model, DiTModel.from_pretrained(tmp_path)):
        assert not fresh(*tiny_inputs()).sample.any()


def test_adaln_zero_block_is_identity_at_init_also_after_saving_and_loading(tmp_path):
    model = DiTModel(tiny_config())
    model.save_pretrained(tmp_path)
    x, c = torch.randn(2, 16, 48), torch.randn(2, 48)
    for fresh in (model, DiTModel.from_pretrained(tmp_path)):
        for block in fresh.blocks:
            assert torch.equal(block(x, c), x)


def test_adaln_block_starts_unmodulated():
    block = DiTModel(tiny_config(block_type="adaln")).blocks[0]
    assert not block.adaLN_modulation[1].weight.any()
    x, c = torch.randn(2, 16, 48), torch.randn(2, 48)
    assert not torch.equal(block(x, c), x)  # there are no gates: it is not the identity
    assert torch.equal(block(x, c), block(x, torch.zeros_like(c)))


@pytest.mark.parametrize("owner", ["fresh", "missing from the file"])
def test_weights_start_as_the_originals(owner, tmp_path):
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


# Training.


@each_block
def test_block_overfits_one_batch(block_type):
    torch.manual_seed(0)
    model = DiTModel(tiny_config(block_type=block_type, class_dropout_prob=0.0)).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    x, t, y = torch.randn(4, 4, 8, 8), torch.tensor([10, 10, 900, 900]), torch.tensor([0, 1, 0, 1])
    x[:] = x[0]  # so that timestep and label alone can tell the targets apart
    target = torch.randn(4, 8, 8, 8)
    for _ in range(120):
        loss = (model(x, t, y).sample - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05  # 1 at the start, 0.75 without the conditioning


@each_block
def test_gradients_do_not_depend_on_attention_or_checkpointing(block_type):
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


def test_checkpointing_saves_activations():
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


# Timestep and label.


@each_block
@torch.no_grad()
def test_conditioning_computed_beforehand_gives_the_same_output(block_type):
    model = tiny_model(block_type=block_type)
    x, t, y = tiny_inputs()
    conditioning = model.condition(t, y)
    assert len(conditioning.blocks) == 2
    assert_close(model(x, conditioning=conditioning).sample, model(x, t, y).sample, atol=0, rtol=0)
    shared = model.condition(7, y[:1])
    assert len(shared.embedding) == 1
    assert_close(model(x, conditioning=shared).sample, model(x, 7, y[:1].repeat(3)).sample, atol=1e-6, rtol=1e-5)


@each_block
@torch.no_grad()
def test_conditioning_computed_beforehand_leaves_nothing_of_it_to_compute(block_type):
    model = tiny_model(block_type=block_type)
    x, t, y = tiny_inputs()
    conditioning = model.condition(t, y)
    for name, module in model.named_modules():
        if name.endswith(("_embedder", "adaLN_modulation", "cross_attn.kv")) and name != "x_embedder":
            module.forward = None
    model(x, conditioning=conditioning)


@torch.no_grad()
def test_timestep_may_be_a_number_or_a_tensor_of_any_kind():
    model = tiny_model()
    x, _, y = tiny_inputs()
    expected = model(x, torch.tensor([500, 500, 500]), y).sample
    for t in (500, 500.0, torch.tensor(500), torch.tensor(500.0), torch.tensor([500]), torch.full((3,), 500.0)):
        assert_close(model(x, t, y).sample, expected, atol=1e-6, rtol=1e-5)
    assert (model(x, 500.5, y).sample - expected).abs().max() > 1e-3


@torch.no_grad()
def test_given_mask_drops_labels_in_any_mode():
    model = tiny_model()
    x, t, y = tiny_inputs()
    drop = torch.tensor([True, False, False])
    expected = model(x, t, y.masked_fill(drop, model.config.null_class_id)).sample
    for mode in (True, False):
        assert_close(model.train(mode)(x, t, y, drop_labels=drop).sample, expected)


@torch.no_grad()
def test_labels_are_dropped_at_random_in_training_mode_only():
    torch.manual_seed(0)
    model = tiny_model(class_dropout_prob=0.25)
    labels = torch.zeros(4000, dtype=torch.long)
    null = model.y_embedder.embedding_table.weight[10]
    shares = {}
    for training in (True, False):
        embeddings = model.train(training).y_embedder(labels, None)
        shares[training] = (embeddings == null).all(dim=1).float().mean()
    assert shares[False] == 0
    assert shares[True] == pytest.approx(0.25, abs=0.03)  # four standard deviations


@torch.no_grad()
def test_null_class_is_accepted():
    model = tiny_model()
    x, t, _ = tiny_inputs()
    assert model(x, t, torch.full((3,), model.config.null_class_id)).sample.isfinite().all()


# The other configurations.


@each_block
@torch.no_grad()
def test_unconditional_model_has_no_label_table(block_type):
    model = tiny_model(block_type=block_type, num_classes=0)
    x, t, _ = tiny_inputs()
    assert model.y_embedder is None
    assert model(x, t).sample.shape == (3, 8, 8, 8)
    assert model.condition(t).embedding.shape == {True: (3, 48), False: (3, 1, 48)}[BLOCKS[block_type].sums_embeddings]
    assert not torch.allclose(model(x, t).sample, model(x, 0).sample)


@torch.no_grad()
def test_model_without_learned_variance_returns_the_inputs_channels():
    model = tiny_model(learn_sigma=False, in_channels=3)
    assert model(torch.randn(2, 3, 8, 8), 5, torch.tensor([0, 1])).sample.shape == (2, 3, 8, 8)


@each_block
@torch.no_grad()
def test_rectangular_latents_keep_their_shape(block_type):
    model = tiny_model(block_type=block_type, sample_size=(4, 8))
    assert model.pos_embed.shape == (1, 8, 48)
    assert model(torch.randn(2, 4, 4, 8), 5, torch.tensor([0, 1])).sample.shape == (2, 8, 4, 8)


def test_unpatchify_puts_every_pixel_in_its_place():
    config = tiny_config(sample_size=(4, 6), learn_sigma=False, in_channels=3)
    latent = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    tokens = torch.empty(2, 6, 12)
    for n in range(6):
        for i in range(2):
            for j in range(2):
                for channel in range(3):
                    pixel = latent[:, channel, n // 3 * 2 + i, n % 3 * 2 + j]
                    tokens[:, n, (i * 2 + j) * 3 + channel] = pixel
    assert torch.equal(unpatchify(tokens, config), latent)


def test_mlp_norm_eps_is_that_of_the_second_norm_alone():
    block = DiTModel(tiny_config(mlp_norm_eps=1e-5)).blocks[0]
    assert (block.norm1.eps, block.norm2.eps) == (1e-6, 1e-5)


# Precision.


@each_block
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("num_hidden_layers", [2, 12])
@torch.no_grad()
def test_half_precision_stays_close_to_float32(block_type, dtype, limit, num_hidden_layers):
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
def test_residual_stream_stays_float32_in_half_precision_and_token_by_token_in_memory(block_type):
    model = tiny_model(block_type=block_type).to(torch.bfloat16)
    x, t, y = tiny_inputs()
    states = model(x, t, y, output_hidden_states=True).hidden_states
    assert {state.dtype for state in states} == {torch.float32}
    assert all(state.is_contiguous() for state in states)  # else every norm copies it


# Transformers' conventions.


@each_block
@torch.no_grad()
def test_hidden_states_and_attentions_are_returned_when_asked(block_type):
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


@each_block
@pytest.mark.parametrize("implementation", ["eager", slow("flex_attention")])
@torch.no_grad()
def test_attention_implementations_agree(block_type, implementation):
    model = tiny_model(block_type=block_type)
    assert model.config._attn_implementation == "sdpa"
    expected = model(*tiny_inputs()).sample
    model.set_attn_implementation(implementation)
    assert model.config._attn_implementation == implementation
    assert_close(model(*tiny_inputs()).sample, expected, atol=1e-5, rtol=1e-4)


@each_block
@torch.no_grad()
def test_saving_and_loading_keeps_every_weight(block_type, tmp_path):
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


def test_auto_classes_know_the_model(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is DiTConfig
    assert type(AutoModel.from_config(tiny_config())) is DiTModel
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is DiTModel
    assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)


@torch.no_grad()
def test_loading_takes_dtype_device_map_and_attention(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = DiTModel.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu", attn_implementation="eager")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert (loaded.dtype, loaded.device.type) == (torch.bfloat16, "cpu")
    assert loaded.config._attn_implementation == "eager"


@each_block
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules:UserWarning")  # pos_embed
@torch.no_grad()
def test_blocks_may_be_offloaded(block_type, tmp_path):
    model = tiny_model(block_type=block_type)
    model.save_pretrained(tmp_path / "model")
    device_map = dict.fromkeys(["x_embedder", "pos_embed", "y_embedder", "t_embedder", "blocks.0"], "cpu")
    device_map.update({"blocks.1": "disk", "final_layer": "disk"})
    loaded = DiTModel.from_pretrained(tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload")
    assert loaded.blocks[1].mlp.fc1.weight.device.type == "meta"
    x, t, y = tiny_inputs()
    assert_close(loaded(x, t, y).sample, model(x, t, y).sample)
    assert_close(loaded(x, conditioning=loaded.condition(t, y)).sample, model(x, t, y).sample)


def test_device_maps_never_split_a_block():
    accelerate = pytest.importorskip("accelerate")
    model = tiny_model(num_hidden_layers=8)
    block_bytes = sum(p.nbytes for p in model.blocks[0].parameters())
    budget = {0: int(5.5 * block_bytes), "cpu": 10**9}
    device_map = accelerate.infer_auto_device_map(model, budget, no_split_module_classes=model._no_split_modules)
    assert set(map(str, device_map.values())) == {"0", "cpu"}
    assert not [name for name in device_map if name.startswith("blocks.") and name.count(".") > 1]


@pytest.mark.parametrize("block_type", ["adaln_zero", *(slow(block) for block in BLOCKS if block != "adaln_zero")])
@pytest.mark.parametrize("mode", ["eval", slow("train"), slow("checkpointed")])
def test_compiles_without_graph_breaks(block_type, mode):
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
def test_compiles_to_kernels():
    torch._dynamo.reset()
    model = tiny_model()
    compiled = torch.compile(model, fullgraph=True)
    assert_close(compiled(*tiny_inputs()).sample, model(*tiny_inputs()).sample, atol=1e-5, rtol=1e-4)


def test_model_stands_alone_in_one_file(tmp_path):
    # The form that travels: one file with the configuration pasted in.
    line = "from .configuration_dit import DiTConfig\n"
    source = inspect.getsource(sys.modules["dit_hf.modeling_dit"])
    assert source.count("from .") == source.count(line) == 1
    assert "dit_hf" not in source
    configuration = inspect.getsource(sys.modules["dit_hf.configuration_dit"])
    (tmp_path / "alone.py").write_text(source.replace(line, configuration))
    spec = importlib.util.spec_from_file_location("alone", tmp_path / "alone.py")
    alone = importlib.util.module_from_spec(spec)
    sys.modules["alone"] = alone
    spec.loader.exec_module(alone)
    fields = {"num_hidden_layers": 1, "hidden_size": 48, "num_attention_heads": 4}
    model = alone.DiTModel(alone.DiTConfig(**fields))
    assert model.state_dict().keys() == DiTModel(DiTConfig(**fields)).state_dict().keys()


@pytest.mark.slow
def test_importing_the_package_leaves_diffusers_alone():
    code = "import sys, dit_hf; assert 'diffusers' not in sys.modules; dit_hf.DiTPipeline; import diffusers"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


# What a user may get wrong.


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
def test_bad_input_is_refused_with_its_value(arguments, message):
    model = tiny_model()
    x, t, y = tiny_inputs()
    with pytest.raises(ValueError, match=message):
        model(**{"hidden_states": x, "timestep": t, "class_labels": y, **arguments})


def test_labels_are_refused_where_there_is_nothing_to_do_with_them():
    x, t, y = tiny_inputs()
    with pytest.raises(ValueError, match="unconditional"):
        tiny_model(num_classes=0)(x, t, y)
    with pytest.raises(ValueError, match="no null class"):
        tiny_model(class_dropout_prob=0.0)(x, t, y.clamp(max=9), drop_labels=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"pass 0..9$"):
        tiny_model(class_dropout_prob=0.0)(x, t, y)


def test_configuration_changed_after_construction_is_checked_again():
    config = tiny_config()
    config.patch_size = 3
    with pytest.raises(ValueError, match="patch_size=3"):
        DiTModel(config)


def test_version_is_public():
    assert dit_hf.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="no attribute 'DiT'"):
        _ = dit_hf.DiT


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
def test_weights_that_do_not_make_the_model_whole_are_refused_by_name(tmp_path, message):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    edit_weights(tmp_path, WRONG_WEIGHTS[message])
    with pytest.raises(ValueError, match=message):
        DiTModel.from_pretrained(tmp_path)
    assert isinstance(DiTModel.from_pretrained(tmp_path, strict=False), DiTModel)


def test_weights_of_another_shape_are_refused(tmp_path):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({"final_layer.linear.bias": torch.zeros(3)}))
    with pytest.raises(ValueError, match="1 weights are of another shape: final_layer.linear.bias"):
        DiTModel.from_pretrained(tmp_path)
    assert isinstance(DiTModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True), DiTModel)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
@pytest.mark.parametrize("safe", [True, False])
def test_whole_numbers_are_refused_as_weights_by_file_and_key(tmp_path, dtype, safe):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update(pos_embed=weights["pos_embed"].to(dtype)))
    file = tmp_path / "model.safetensors"
    if not safe:
        torch.save(load_file(file), tmp_path / "pytorch_model.bin")
        file.unlink()
        file = tmp_path / "pytorch_model.bin"
    with pytest.raises(ValueError, match=f"{file}: pos_embed is {dtype}, weights are floating point numbers"):
        DiTModel.from_pretrained(tmp_path)


def test_folder_without_configuration_is_refused(tmp_path):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        DiTModel.from_pretrained(tmp_path)


def test_loading_information_is_returned_when_asked_for(tmp_path):
    DiTModel(tiny_config()).save_pretrained(tmp_path)
    model, info = DiTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, DiTModel)
    assert not info["missing_keys"]
