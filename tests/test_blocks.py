"""The four block designs: written out by hand, at initialisation, trained, and as the rest of the package sees them."""

import itertools
import math
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, TaylorSeerCacheConfig
from switches import CASES
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from dit_hf import DiTModel, DiTPipeline, configuration_dit
from dit_hf.analysis import count_gmacs, count_macs, count_parameters, flops
from dit_hf.blocks import BLOCKS, AdaLNZeroBlock
from dit_hf.cards.pipeline import make_card
from dit_hf.configuration_dit import BlockType
from dit_hf.finetuning import add_lora
from dit_hf.layers import Attention, BlockLayer, Mlp

each_block = pytest.mark.parametrize("block_type", BLOCKS)


@each_block
@pytest.mark.parametrize("switches", CASES.values(), ids=CASES)
@torch.no_grad()
def test_output_equals_the_design_written_out_in_float64(tiny_model, block_type, switches):
    fixed = {"sample_size": (4, 8), "timestep_freq_shift": 1.0, "mlp_norm_eps": 1e-2}
    model = tiny_model(block_type=block_type, **fixed, **switches)
    for name, weight in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight", "v_mix")):
            weight += 0.3 * torch.randn(weight.shape)  # so that each number matters
    x, t, y = torch.randn(3, 4, 4, 8), torch.tensor([999.0, 3.5, 0.0]), torch.tensor([7, 10, 0])
    expected = by_hand(model.state_dict(), block_type, switches, x.double(), t.double(), y)
    assert_close(model(x, t, y).sample.double(), expected, atol=1e-4, rtol=0)  # float32 sines of angles up to 999


def by_hand(
    weights: dict[str, Tensor], block_type: str, switches: dict[str, Any], x: Tensor, t: Tensor, y: Tensor
) -> Tensor:
    """The four designs for 4 x 8 latents of 4 channels, patches of 2, width 48, 4 heads, 2 blocks."""
    positions = switches.get("position_embedding", "sincos")
    weights = {name: weight.double() for name, weight in weights.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, eps: float = 1e-6) -> Tensor:
        if switches.get("norm") == "rms":
            return F.rms_norm(x, (48,), eps=eps)
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def attention(name: str, q: Tensor, k: Tensor, v: Tensor, turn: Callable = lambda x: x) -> Tensor:
        heads = []
        for q_h, k_h, v_h in zip(q.split(12, -1), k.split(12, -1), v.split(12, -1), strict=True):
            if switches.get("qk_norm"):
                q_h = q_h / (q_h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.q_norm.weight"]
                k_h = k_h / (k_h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weights[f"{name}.k_norm.weight"]
            heads.append((turn(q_h) @ turn(k_h).transpose(1, 2) / math.sqrt(12)).softmax(-1) @ v_h)
        return torch.cat(heads, -1)

    def turn(x: Tensor) -> Tensor:
        """Six complex numbers a head: three turned by the row of their patch, three by its column."""
        frequencies = switches.get("rope_theta", 100.0) ** (-torch.arange(3).double() / 3)
        row, column = torch.arange(8).double().div(4).floor(), torch.arange(8).double() % 4
        angles = torch.cat([row[:, None] * frequencies, column[:, None] * frequencies], 1)
        z = torch.complex(x[..., :6], x[..., 6:])
        z = torch.cat([z[:, :8] * torch.polar(torch.ones(8, 6).double(), angles), z[:, 8:]], 1)
        return torch.cat([z.real, z.imag], -1)

    values = []

    def self_attention(d: int, x: Tensor) -> Tensor:
        q, k, v = linear(f"blocks.{d}.attn.qkv", x).split(48, -1)
        values.append(v)
        if switches.get("value_residual"):
            share = weights[f"blocks.{d}.attn.v_mix"]
            v = share * values[0] + (1 - share) * v
        attended = attention(f"blocks.{d}.attn", q, k, v, turn if positions != "sincos" else lambda x: x)
        return linear(f"blocks.{d}.attn.proj", attended)

    def mlp(d: int, x: Tensor) -> Tensor:
        if switches.get("mlp") == "swiglu":
            gate = silu(linear(f"blocks.{d}.mlp.gate", x))
            return linear(f"blocks.{d}.mlp.fc2", gate * linear(f"blocks.{d}.mlp.fc1", x))
        z = linear(f"blocks.{d}.mlp.fc1", x)
        gelu = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        return linear(f"blocks.{d}.mlp.fc2", gelu)

    patches = [x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(3, 16) for i in range(2) for j in range(4)]
    kernel = weights["x_embedder.proj.weight"].reshape(48, 16)
    x = torch.stack(patches, 1) @ kernel.T + weights["x_embedder.proj.bias"]
    if positions != "rope":
        x = x + weights["pos_embed"]
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
            out = attention(name, linear(f"{name}.q", norm(x)), *linear(f"{name}.kv", tokens).split(48, -1))
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


def test_adaln_zero_block_is_identity_at_init_also_after_saving_and_loading(tiny_config, tmp_path):
    model = DiTModel(tiny_config())
    model.save_pretrained(tmp_path)
    x, c = torch.randn(2, 16, 48), torch.randn(2, 48)
    for fresh in (model, DiTModel.from_pretrained(tmp_path)):
        for block in fresh.blocks:
            assert torch.equal(block(x, c), x)


def test_adaln_block_starts_unmodulated(tiny_config):
    block = DiTModel(tiny_config(block_type="adaln")).blocks[0]
    assert not block.adaLN_modulation[1].weight.any()
    x, c = torch.randn(2, 16, 48), torch.randn(2, 48)
    assert not torch.equal(block(x, c), x)  # there are no gates: it is not the identity
    assert torch.equal(block(x, c), block(x, torch.zeros_like(c)))


def test_mlp_norm_eps_is_that_of_the_second_norm_alone(tiny_config):
    block = DiTModel(tiny_config(mlp_norm_eps=1e-5)).blocks[0]
    assert (block.norm1.eps, block.norm2.eps) == (1e-6, 1e-5)


@pytest.mark.slow
@each_block
def test_block_overfits_one_batch(tiny_config, block_type):
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
@torch.no_grad()
def test_conditioning_computed_beforehand_gives_the_same_output(tiny_model, tiny_inputs, block_type):
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
def test_conditioning_computed_beforehand_leaves_nothing_of_it_to_compute(tiny_model, tiny_inputs, block_type):
    model = tiny_model(block_type=block_type)
    x, t, y = tiny_inputs()
    conditioning = model.condition(t, y)
    for name, module in model.named_modules():
        if name.endswith(("_embedder", "adaLN_modulation", "cross_attn.kv")) and name != "x_embedder":
            module.forward = None
    model(x, conditioning=conditioning)


# Designs as the rest of the package sees them. A new one is a block, its layers, a name and a row of costs.


class SwiGLU(BlockLayer):
    """A gated feed-forward (Shazeer 2020, arXiv 2002.05202)."""

    lora_targets = ("gate", "value", "out")
    cache_outputs = ("out",)
    cache_inputs = ("gate", "value")

    def __init__(self, config):
        super().__init__(config)
        width = int(config.hidden_size * config.mlp_ratio)
        self.gate = nn.Linear(config.hidden_size, width)
        self.value = nn.Linear(config.hidden_size, width)
        self.out = nn.Linear(width, config.hidden_size)

    def forward(self, x):
        return self.out(F.silu(self.gate(x)) * self.value(x))


class SwiGLUBlock(AdaLNZeroBlock):
    feed_forward = SwiGLU


def swiglu_cost(x: flops.Shape) -> flops.LayerCost:
    return flops.LayerCost(
        linears=3 * x.s * x.d * x.m,
        parameters=3 * x.d * x.m + 2 * x.m + x.d,
        activations=x.s * 4 * x.m,  # gate, its SiLU, value, their product
    )


@pytest.fixture(params=[*BLOCKS, "swiglu"])
def design(request, monkeypatch) -> str:
    """Each design of the package, and one that a user adds."""
    if request.param == "swiglu":
        add_design(monkeypatch, "swiglu", SwiGLUBlock)
        monkeypatch.setitem(flops.LAYER_COSTS, SwiGLU, swiglu_cost)
    return request.param


def add_design(monkeypatch, name: str, block: type) -> None:
    monkeypatch.setitem(BLOCKS, name, block)
    monkeypatch.setattr(configuration_dit, "BlockType", typing.Literal[*typing.get_args(BlockType), name])


def test_every_part_of_the_package_knows_every_design(design, tiny_config, tiny_model, tiny_inputs):
    config = tiny_config(block_type=design, mlp_ratio=2.5, num_hidden_layers=3)
    x, t, y = tiny_inputs(1)

    with torch.device("meta"):
        meta = DiTModel._from_config(config, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        meta(x.to("meta"), t.to("meta"), y.to("meta"))
    num_parameters = sum(parameter.numel() for parameter in meta.parameters())
    assert count_macs(config).total == counter.get_total_flops() // 2
    assert count_parameters(config) == num_parameters

    pipe = DiTPipeline(tiny_model(**config.to_diff_dict()), None, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    card = make_card(pipe).text
    for value in (design, f"{num_parameters:,}", f"{count_gmacs(config):.2f}"):
        assert f"| {value}" in card

    # TaylorSeer computes the layers in the first three steps and extrapolates in the fourth.
    linears = {name for name, module in meta.blocks.named_modules() if isinstance(module, nn.Linear)}
    linears -= {name for name in linears if "adaLN_modulation" in name}
    calls = dict.fromkeys((name for name in linears if not name.endswith("cross_attn.kv")), 0)
    for name in calls:
        module = pipe.transformer.blocks.get_submodule(name)

        def counted(x, name=name, forward=module.forward):
            calls[name] += 1
            return forward(x)

        module.forward = counted
    pipe.enable_cache(TaylorSeerCacheConfig(cache_interval=5, disable_cache_before_step=3))
    pipe([1], num_inference_steps=4, guidance_scale=1.0, output_type="latent")
    assert set(calls.values()) == {3}

    model = tiny_model(**config.to_diff_dict())
    add_lora(model, 2)
    adapted = {name.rpartition(".lora_A")[0] for name, _ in model.blocks.named_parameters() if ".lora_A." in name}
    assert adapted == linears


class Forgotten(Mlp):
    """Adds a Linear and says nothing about it."""

    def __init__(self, config):
        super().__init__(config)
        self.fc3 = nn.Linear(8, 8)


class Misnamed(Mlp):
    cache_outputs = ("fc3",)


class Unstated(BlockLayer):
    pass


class BuiltOtherwise(AdaLNZeroBlock):
    def __init__(self, config):
        super().__init__(config)
        self.mlp = SwiGLU(config)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (BuiltOtherwise, "BuiltOtherwise.mlp is a SwiGLU, the class states Mlp: "),
        (Forgotten, r"Forgotten has Linears \['fc1', 'fc2', 'fc3'\]: state which are its lora_targets"),
        (Misnamed, "Misnamed.cache_outputs names no modules of the layer"),
        (Unstated, "Unstated.lora_targets names no modules of the layer"),
    ],
)
def test_design_that_does_not_state_its_facts_is_refused(block, message, monkeypatch, tiny_model):
    if issubclass(block, BlockLayer):
        block = type("Block", (AdaLNZeroBlock,), {"feed_forward": block})
    add_design(monkeypatch, "new", block)
    with pytest.raises(ValueError, match=message):
        tiny_model(block_type="new")


def test_layer_without_a_row_of_costs_is_refused_by_name(monkeypatch, tiny_config):
    add_design(monkeypatch, "new", SwiGLUBlock)
    for count in (count_macs, count_parameters, flops.count_activations):
        with pytest.raises(ValueError, match=r"LAYER_COSTS of dit_hf/analysis/flops.py has no row for SwiGLU"):
            count(tiny_config(block_type="new"))


# Positions: a design whose attention uses them.


class PositionedAttention(Attention):
    """Stands for a rotary attention: its tokens depend on what `DiTModel.positions` made."""

    def forward(self, x, positions=None, first_values=None):
        return super().forward(x + positions, None, first_values)


class PositionedModel(DiTModel):
    def positions(self, height=None, width=None, policy=None):
        positions = super().positions(height, width, policy)
        return positions._replace(attention=torch.linspace(-1, 1, positions.embedding.shape[1])[None, :, None])


@pytest.fixture
def positioned(monkeypatch, tiny_model) -> PositionedModel:
    add_design(monkeypatch, "new", type("PositionedBlock", (AdaLNZeroBlock,), {"attention": PositionedAttention}))
    model = PositionedModel(tiny_model(block_type="new").config).eval()
    model.load_state_dict(tiny_model(block_type="new").state_dict())
    return model


def test_positions_reach_every_attention_however_the_model_is_run(positioned, tiny_model, tiny_inputs):
    x, t, y = tiny_inputs()
    expected = positioned(x, t, y).sample
    assert not torch.allclose(expected, tiny_model()(x, t, y).sample)
    assert_close(positioned(x, conditioning=positioned.condition(t, y)).sample, expected, atol=0, rtol=0)
    assert_close(positioned(x, t, y, positions=positioned.positions()).sample, expected, atol=0, rtol=0)
    compiled = torch.compile(positioned, fullgraph=True, backend="eager")
    assert_close(compiled(x, t, y).sample, expected, atol=0, rtol=0)
    for reentrant in (False, True):
        positioned.gradient_checkpointing_enable({"use_reentrant": reentrant})
        sample = positioned.train()(x, t, y, drop_labels=torch.zeros(3, dtype=torch.bool)).sample
        assert_close(sample, expected, atol=0, rtol=0)
        sample.square().mean().backward()
        assert positioned.blocks[1].attn.qkv.weight.grad.any()
