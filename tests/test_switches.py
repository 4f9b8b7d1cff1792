"""The switches of the architecture beyond the paper: oracles of each, and what every one survives in every design."""

import importlib.util
import inspect
import math
import sys
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import SeaCacheConfig
from switches import ALL, CASES, SWITCHES
from torch.export import Dim
from torch.testing import assert_close

from dit_hf import DiTConfig, DiTModel, DiTPipeline
from dit_hf.blocks import BLOCKS
from dit_hf.configuration_dit import PAPER_SIZES
from dit_hf.conversion import to_diffusers, to_original
from dit_hf.embeddings import rotations
from dit_hf.finetuning import add_lora, merge_lora, resize_positions
from dit_hf.hub.flatten import flatten
from dit_hf.layers import NORMS, HeadNorm, Mlp, SwiGlu, rotate

each_block = pytest.mark.parametrize("block_type", BLOCKS)
each_switch = pytest.mark.parametrize("switches", [*SWITCHES.values(), ALL], ids=[*SWITCHES, "all"])


def sweep(block_type: str, name: str, switches: dict) -> object:
    """A case of a test that takes a second: one is fast, each design and each switch is slow, all pairs are long."""
    marks = [[pytest.mark.long], [pytest.mark.slow], []][(block_type == "adaln_zero") + (name == "all")]
    return pytest.param(block_type, switches, id=f"{name}-{block_type}", marks=marks)


each_combination = pytest.mark.parametrize(
    ("block_type", "switches"),
    [sweep(block, name, switches) for name, switches in (SWITCHES | {"all": ALL}).items() for block in BLOCKS],
)
pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")


# Oracles of the parts. tests/test_blocks.py writes out whole models in float64.


def test_rotary_scores_depend_on_differences_of_rows_and_columns_only(tiny_config):
    table = rotations(tiny_config(), (7, 9)).unflatten(1, (7, 9))[0].double()  # (7, 9, d)
    query, key = torch.randn(2, 1, 1, 1, 12, dtype=torch.float64)

    def score(at: tuple[int, int], of: tuple[int, int]) -> float:
        turned = [rotate(x, table[place][None]) for x, place in ((query, at), (key, of))]  # (1, 1, 1, d)
        return (turned[0] * turned[1]).sum().item()

    for row, column in ((2, 3), (-2, 5), (0, 0)):
        scores = [score((2 + i, 0 + j), (2 + i + row, 0 + j + column)) for i in (0, 2) for j in (0, 2, 3)]
        assert scores == pytest.approx([scores[0]] * 6, abs=1e-5)  # the table is float32
    assert score((0, 0), (1, 0)) != pytest.approx(score((0, 0), (0, 1)), abs=1e-3)


def test_tokens_beyond_the_positions_are_not_turned(tiny_config):
    x, table = torch.randn(2, 18, 4, 12), rotations(tiny_config(), (4, 4))
    turned = rotate(x, table)
    assert torch.equal(turned[:, 16:], x[:, 16:])
    assert torch.equal(turned[:, :1], x[:, :1])  # row 0, column 0
    assert (turned[:, 1:16] - x[:, 1:16]).abs().amax((0, 2, 3)).gt(0.01).all()


def test_rotary_positions_extend_exactly_and_interpolate_by_scale(tiny_config):
    config = tiny_config(position_embedding="rope", rope_theta=50.0)
    small, large = rotations(config, (4, 4)).unflatten(1, (4, 4)), rotations(config, (6, 9)).unflatten(1, (6, 9))
    assert torch.equal(large[:, :4, :4], small)
    stretched = rotations(config, (8, 4), (0.5, 1.0)).unflatten(1, (8, 4))
    # the centre of row 6 of eight over the four trained ones lies at 6.5 / 2 - 0.5 = 2.75
    angles = [place * 50.0 ** (-i / 3) for place in (2.75, 3.0) for i in range(3)]
    by_hand = [*map(math.cos, angles), *map(math.sin, angles)]
    assert_close(stretched[0, 6, 3], torch.tensor(by_hand), atol=1e-6, rtol=0)


def test_rms_norm_and_head_norm_are_torch_s_in_float64():
    x = torch.randn(2, 5, 48, dtype=torch.float64)
    norm = NORMS["rms"](48, eps=1e-3)
    assert not [*norm.parameters()]
    assert_close(norm(x, torch.float64), torch.nn.RMSNorm(48, eps=1e-3, elementwise_affine=False)(x))
    head, oracle = HeadNorm(12), torch.nn.RMSNorm(12, eps=1e-6).double()
    head.weight.data.uniform_(0.5, 2)
    oracle.weight.data.copy_(head.weight)
    heads = torch.randn(2, 4, 5, 12)
    assert_close(head(heads).double(), oracle(heads.double()), atol=1e-5, rtol=0)
    assert head(heads.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_swiglu_has_the_parameters_of_the_gelu_to_half_a_percent(name):
    with torch.device("meta"):
        counts = [
            sum(weight.numel() for weight in layer(DiTConfig.from_name(name, mlp=mlp)).parameters())
            for layer, mlp in ((Mlp, "gelu"), (SwiGlu, "swiglu"))
        ]
    assert counts[1] == pytest.approx(counts[0], rel=0.005)
    assert DiTConfig.from_name(name, mlp="swiglu").mlp_width % 8 == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"position_embedding": "extend"}, "position_embedding='extend'.*one of sincos, rope, both"),
        ({"mlp": "SwiGLU"}, "mlp='SwiGLU'.*one of gelu, swiglu"),
        ({"norm": ["rms"]}, "norm=.*one of layer, rms"),
        ({"qk_norm": 1}, "qk_norm=1 .*True or False"),
        ({"value_residual": "yes"}, "value_residual='yes'.*True or False"),
        ({"rope_theta": 0.5}, "rope_theta=0.5.*a number in"),
        ({"position_embedding": "rope", "hidden_size": 48, "num_attention_heads": 8}, "multiple of 4 . num_attention"),
    ],
)
def test_wrong_switch_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DiTConfig(**fields)


# Every switch in every design.


@each_switch
def test_fresh_adaln_zero_model_stays_the_identity_also_after_saving_and_loading(tiny_config, tmp_path, switches):
    model = DiTModel(tiny_config(**switches))
    model.save_pretrained(tmp_path)
    x, c, positions = torch.randn(2, 16, 48), torch.randn(2, 48), model.positions().attention
    for fresh in (model, DiTModel.from_pretrained(tmp_path)):
        for block in fresh.blocks:
            answer = block(x, c, None, positions)
            assert torch.equal(answer[0] if fresh.config.value_residual else answer, x)
        for name, weight in fresh.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight", "v_mix")):
                assert set(weight.tolist()) == {0.5 if name.endswith("v_mix") else 1.0}


def test_switches_leave_the_random_stream_of_the_other_weights_alone(tiny_config):
    def weights(**switches) -> dict[str, torch.Tensor]:
        torch.manual_seed(3)
        return DiTModel(tiny_config(**switches)).state_dict()

    plain, switched = weights(), weights(qk_norm=True, norm="rms", value_residual=True, position_embedding="both")
    assert plain.keys() < switched.keys()
    for name, weight in plain.items():
        assert torch.equal(switched[name], weight), name


@each_combination
def test_every_way_to_run_the_model_gives_the_same_numbers(tiny_model, tiny_inputs, block_type, switches):
    model, (x, t, y) = tiny_model(block_type=block_type, num_hidden_layers=3, **switches), tiny_inputs()
    with torch.no_grad():
        expected = model(x, t, y, output_hidden_states=True)
        assert len(expected.hidden_states) == 4
        assert {states.shape[-1] for states in expected.hidden_states} == {48}
        assert_close(model(x, conditioning=model.condition(t, y)).sample, expected.sample, atol=0, rtol=0)
        assert_close(model(x, t, y, positions=model.positions()).sample, expected.sample, atol=0, rtol=0)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert_close(compiled(x, t, y).sample, expected.sample, atol=0, rtol=0)
        model.set_attn_implementation("eager")
        eager = model(x, t, y, output_attentions=True)
        assert_close(eager.sample, expected.sample, atol=1e-5, rtol=0)
        assert len(eager.attentions) == 3
        half = tiny_model(block_type=block_type, num_hidden_layers=3, **switches).to(torch.bfloat16)
        assert_close(half(x, t, y).sample.float(), expected.sample, atol=0.15, rtol=0)  # eight bits of mantissa
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(model(x, t, y).sample.float(), expected.sample, atol=0.1, rtol=0)


@each_block
@each_switch
def test_checkpointed_gradients_are_those_of_the_plain_model(tiny_model, tiny_inputs, block_type, switches):
    model, (x, t, y) = tiny_model(block_type=block_type, num_hidden_layers=3, **switches).train(), tiny_inputs()
    drop = torch.zeros(3, dtype=torch.bool)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(x, t, y, drop_labels=drop).sample.square().mean().backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}

    expected = gradients()
    assert all(gradient.any() for name, gradient in expected.items() if name != "blocks.0.attn.v_mix")
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for name, gradient in gradients().items():
            assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@each_block
@each_switch
@torch.no_grad()
def test_block_takes_the_rows_of_positions_that_belong_to_its_tokens(tiny_model, block_type, switches):
    """As token routing hands them: a permutation of the tokens, another one for each sample, permutes the result."""
    model = tiny_model(block_type=block_type, **switches)
    design = BLOCKS[block_type]
    x = torch.randn(2, 16 + 2 * design.extends_sequence, 48)
    embedding = torch.randn(2, 48) if design.sums_embeddings else torch.randn(2, 2, 48)
    order = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    tokens = torch.cat([order, torch.arange(16, x.shape[1]).expand(2, -1)], 1)[..., None]  # context stays at the end
    positions = model.positions().attention

    def stream(answer):
        return answer[0] if model.config.value_residual else answer

    block, values = model.blocks[1], torch.randn_like(x) if model.config.value_residual else None
    expected = stream(block(x, embedding, None, positions, values))
    own = None if positions is None else positions.expand(2, -1, -1).gather(1, order[..., None].expand(-1, -1, 12))
    shuffled, shuffled_values = (
        each if each is None else each.gather(1, tokens.expand(-1, -1, 48)) for each in (x, values)
    )
    answer = stream(block(shuffled, embedding, None, own, shuffled_values))
    assert_close(answer, expected.gather(1, tokens.expand(-1, -1, 48)), atol=1e-5, rtol=0)
    if positions is not None:  # the rows matter: those of other tokens give something else
        assert not torch.allclose(
            stream(block(shuffled, embedding, None, positions, shuffled_values)), answer, atol=1e-3
        )
        subset = stream(block(shuffled[:, :5], embedding, None, own[:, :5], None if values is None else values[:, :5]))
        assert subset.shape == (2, 5, 48)


@each_switch
@torch.no_grad()
def test_model_of_another_size_is_that_of_its_positions_and_saves_them(tiny_model, tmp_path, switches):
    x, y = torch.randn(2, 4, 12, 4), torch.tensor([1, 2])
    outputs = {}
    for policy in ("extend", "interpolate"):
        model, resized = tiny_model(**switches), tiny_model(**switches)
        outputs[policy] = model(x, 7, y, positions=model.positions(12, 4, policy)).sample
        resize_positions(resized, (12, 4), policy)
        assert_close(resized(x, 7, y).sample, outputs[policy], atol=1e-6, rtol=0)
        resized.save_pretrained(tmp_path / policy)
        again = DiTModel.from_pretrained(tmp_path / policy)
        assert_close(again(x, 7, y).sample, outputs[policy], atol=1e-6, rtol=0)
    assert not torch.allclose(outputs["extend"], outputs["interpolate"], atol=1e-3)
    if switches.get("position_embedding") == "rope":
        with pytest.raises(ValueError, match=r"adds none to the tokens: call positions\(height, width, policy\)"):
            model.resize_pos_embed(12, 4, "extend")


def test_stretched_positions_keep_their_scale_where_they_go_on(tiny_model):
    model = tiny_model(position_embedding="rope", sample_size=8)
    resize_positions(model, (16, 8), "interpolate")  # rows at -0.25, 0.25 ... of 8
    assert model.config.rope_scale == [0.5, 1.0]
    expected = rotations(model.config, (12, 4), (0.5, 1.0))
    assert torch.equal(model.positions(24, 8, "extend").attention, expected)
    expected = rotations(model.config, (16, 8), (0.25, 0.5))
    assert torch.equal(model.positions(32, 16, "interpolate").attention, expected)
    resize_positions(model, 24, "extend")
    assert model.config.rope_scale == [0.5, 1.0]


@each_block
@each_switch
@torch.no_grad()
def test_saved_model_comes_back_with_the_package_and_as_one_file(
    alone, tiny_model, tiny_inputs, tmp_path, block_type, switches
):
    model = tiny_model(block_type=block_type, **switches)
    expected = model(*tiny_inputs()).sample
    model.save_pretrained(tmp_path)
    for loaded in (DiTModel.from_pretrained(tmp_path), alone.DiTModel.from_pretrained(tmp_path)):
        assert_close(loaded(*tiny_inputs()).sample, expected, atol=0, rtol=0)
        assert (loaded.pos_embed is None) == (switches.get("position_embedding") == "rope")
    half = DiTModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert_close(half(*tiny_inputs()).sample, model.to(torch.bfloat16)(*tiny_inputs()).sample, atol=0, rtol=0)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The model's module as it travels, which imports nothing of the package."""
    file = tmp_path_factory.mktemp("alone") / "dit_alone.py"
    file.write_text(flatten(Path(inspect.getfile(DiTModel))))
    spec = importlib.util.spec_from_file_location("dit_alone", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["dit_alone"] = module
    spec.loader.exec_module(module)
    return module


@each_combination
@torch.no_grad()
def test_exported_program_takes_any_batch(tiny_model, tiny_inputs, block_type, switches):
    model, arguments = tiny_model(block_type=block_type, **switches), tiny_inputs()
    program = torch.export.export(model, arguments, dynamic_shapes=[{0: Dim.DYNAMIC}] * 3).module()
    for batch in (1, 3):
        assert_close(program(*tiny_inputs(batch)).sample, model(*tiny_inputs(batch)).sample, atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the exporter, about itself
@pytest.mark.parametrize("switches", [ALL, SWITCHES["both"]], ids=["all", "both"])
@torch.no_grad()
def test_onnx_runtime_gives_the_same_numbers(tiny_model, tiny_inputs, tmp_path, switches):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, names = tiny_model(block_type="in_context", **switches), ["hidden_states", "timestep", "class_labels"]
    options = {"dynamo": True, "input_names": names, "output_names": ["sample"], "verbose": False}
    torch.onnx.export(model, tiny_inputs(), dynamic_shapes=[{0: Dim.DYNAMIC}] * 3, **options).save(
        tmp_path / "dit.onnx"
    )
    session = onnxruntime.InferenceSession(tmp_path / "dit.onnx")
    for batch in (1, 3):
        feed = dict(zip(names, (tensor.numpy() for tensor in tiny_inputs(batch)), strict=True))
        (sample,) = session.run(["sample"], feed)
        assert_close(torch.from_numpy(sample), model(*tiny_inputs(batch)).sample, atol=1e-5, rtol=1e-4)  # other kernels


@pytest.mark.slow
@each_switch
@pytest.mark.parametrize("block_type", ["adaln_zero", "cross_attention"])
@pytest.mark.parametrize("cache", ["FirstBlock", "Mag", "TaylorSeer", "Broadcast", "Sea"])
def test_cache_leaves_out_as_many_calls_as_without_the_switch(tiny_model, cache, block_type, switches):
    """As tests/test_caches.py counts them for the paper's model: 8 steps, four blocks."""
    make, part = {
        "FirstBlock": (lambda: FirstBlockCacheConfig(threshold=1e9), "fc2"),
        "Mag": (lambda: MagCacheConfig(threshold=9.0, num_inference_steps=8, mag_ratios=[1.0] * 8), "fc2"),
        "TaylorSeer": (lambda: TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=3), "fc2"),
        "Broadcast": (lambda: PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2), "qkv"),
        "Sea": (lambda: SeaCacheConfig(threshold=1e9, max_consecutive_cached=2), "fc2"),
    }[cache]
    counts = []
    for fields in ({}, switches):
        model = tiny_model(block_type=block_type, num_hidden_layers=4, learn_sigma=False, **fields)
        pipe = DiTPipeline(model, None, DDIMScheduler(clip_sample=False))
        pipe.set_progress_bar_config(disable=True)
        calls = []
        for block in model.blocks:
            module = block.mlp.fc2 if part == "fc2" else block.attn.qkv

            def counted(x, forward=module.forward, calls=calls):
                calls.append(1)
                return forward(x)

            module.forward = counted
        arguments = {"num_inference_steps": 8, "guidance_scale": 1.0, "output_type": "latent"}
        full = pipe([1], generator=torch.Generator().manual_seed(0), **arguments).images
        if cache == "Sea" and model.config.value_residual:
            with pytest.raises(ValueError, match="skips nothing where blocks return two tensors"):
                pipe.enable_cache(make())
            return
        pipe.enable_cache(make())
        calls.clear()
        cached = pipe([1], generator=torch.Generator().manual_seed(0), **arguments).images
        counts.append(len(calls))
        assert cached.isfinite().all()
        assert (cached - full).norm() > 0
        pipe.disable_cache()
        again = pipe([1], generator=torch.Generator().manual_seed(0), **arguments).images
        assert_close(again, full, atol=0, rtol=0)
    assert counts[0] == counts[1] < 8 * 4


@pytest.mark.parametrize(("name", "fields"), [(name, fields) for name, fields in SWITCHES.items()])
def test_other_libraries_formats_refuse_the_switch_by_name(tiny_model, name, fields):
    model, (field, value) = tiny_model(mlp_ratio=4.0, **fields), next(iter(fields.items()))
    for convert, whose in ((to_original, "the original"), (to_diffusers, "diffusers' DiT")):
        with pytest.raises(ValueError, match=f"^{field}={value!r}: {whose} has {field}=.* only"):
            convert(model)


@each_block
@pytest.mark.parametrize("switches", CASES.values(), ids=CASES)
def test_adapter_has_every_linear_of_the_blocks_but_modulations(tiny_model, tiny_inputs, block_type, switches):
    model = tiny_model(block_type=block_type, **switches)
    linears = {name for name, module in model.blocks.named_modules() if isinstance(module, torch.nn.Linear)}
    expected = model(*tiny_inputs()).sample
    add_lora(model, 2, 4.0)
    adapted = {name.rpartition(".lora_A")[0] for name, _ in model.blocks.named_parameters() if ".lora_A." in name}
    assert adapted == {name for name in linears if "adaLN_modulation" not in name}
    assert_close(model(*tiny_inputs()).sample, expected, atol=0, rtol=0)  # a fresh adapter changes nothing
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    changed = model(*tiny_inputs()).sample
    assert not torch.allclose(changed, expected, atol=1e-3)
    merge_lora(model)
    assert_close(model(*tiny_inputs()).sample, changed, atol=1e-5, rtol=1e-4)  # W + B A in one product
