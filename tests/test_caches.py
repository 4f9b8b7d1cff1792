"""diffusers' caches on a DiT: each must skip work, told by counts of calls, and stay near the full computation."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import SeaCacheConfig, TextKVCacheConfig
from diffusers.hooks._helpers import TransformerBlockRegistry

from dit_hf import DiTConfig, DiTModel, DiTPipeline
from dit_hf.caches import CACHES
from dit_hf.modeling_dit import BLOCKS

STEPS = 20


def pipeline(num_hidden_layers: int = 5, **config) -> DiTPipeline:
    """A random model whose answers change slowly from step to step, as those of a trained one do."""
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "sample_size": 8, "num_classes": 10, "learn_sigma": False}
    model = DiTModel(DiTConfig(num_hidden_layers=num_hidden_layers, **sizes, **config)).eval()
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        scale = 0.01 if "_embedder.mlp" in name or "table" in name else 0.1
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    pipe = DiTPipeline(model, None, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, **arguments) -> torch.Tensor:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = {"guidance_scale": 2.0, "num_inference_steps": STEPS, "latents": latents, "output_type": "latent"}
    return pipe([3, 7], **{**settings, **arguments}).images


def count_calls(pipe, part: str) -> list[str]:
    """Names of the leaf modules that compute, as they come, whose name has the part; to call before `enable_cache`."""
    called = []
    for name, module in pipe.transformer.named_modules():
        if part in name and not [*module.children()]:

            def counted(x, name=name, forward=module.forward):
                called.append(name)
                return forward(x)

            module.forward = counted
    return called


# Configuration; module; how many of its calls remain of STEPS in each of five blocks, from the cache's own rule.
SUPPORTED = {
    "FirstBlockCacheConfig": (lambda: FirstBlockCacheConfig(threshold=1e9), "mlp.fc2", STEPS + 4),
    "TaylorSeerCacheConfig": (
        # in full: the first three, and then steps 4, 9, 14, 19
        lambda: TaylorSeerCacheConfig(cache_interval=5, disable_cache_before_step=3, taylor_factors_dtype=None),
        "mlp.fc2",
        5 * 7,
    ),
    "MagCacheConfig": (
        # the first four in full, then three of four left out
        lambda: MagCacheConfig(threshold=9.0, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS),
        "mlp.fc2",
        5 * (4 + 4),
    ),
    "PyramidAttentionBroadcastConfig": (
        # t = 950 .. 800 and 100 .. 0 in full, of the 13 between every other
        lambda: PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2),
        "attn.qkv",
        5 * (4 + 3 + 7),
    ),
    "SeaCacheConfig": (
        # the first and the last in full, then one of three
        lambda: SeaCacheConfig(threshold=1e9, max_consecutive_cached=2),
        "mlp.fc2",
        5 * 8,
    ),
}


def test_every_supported_cache_is_tested():
    assert set(SUPPORTED) == {name for name, reason in CACHES.items() if reason is None}


@pytest.mark.parametrize(("make", "module", "remaining"), SUPPORTED.values(), ids=SUPPORTED)
def test_cache_leaves_out_calls(make, module, remaining):
    pipe = pipeline()
    full = run(pipe)
    called = count_calls(pipe, module)
    pipe.enable_cache(make())
    cached = run(pipe)
    assert len(called) == remaining
    distance = (cached - full).norm() / full.norm()
    assert 0 < distance < 0.3
    # nothing is left of the run before
    del called[:]
    torch.testing.assert_close(run(pipe), cached, rtol=0, atol=0)
    assert len(called) == remaining
    pipe.disable_cache()
    torch.testing.assert_close(run(pipe), full, rtol=0, atol=0)
    assert len(called) == remaining + 5 * STEPS


@pytest.mark.parametrize("block_type", BLOCKS)
def test_caches_serve_every_design(block_type):
    pipe = pipeline(block_type=block_type)
    for make, module, remaining in SUPPORTED.values():
        called = count_calls(pipe, f".{module}")
        pipe.enable_cache(make())
        run(pipe)
        assert len(called) == remaining, make()
        pipe.disable_cache()


@pytest.mark.slow
@pytest.mark.parametrize(("make", "module", "remaining"), SUPPORTED.values(), ids=SUPPORTED)
def test_caches_serve_blocks_wrapped_by_the_compiler(make, module, remaining, monkeypatch):
    plain, wrapped = pipeline(), pipeline()
    plain.enable_cache(make())
    monkeypatch.setattr(TransformerBlockRegistry, "_registry", {})  # as before any cache was enabled
    blocks = wrapped.transformer.blocks
    called = count_calls(wrapped, module)
    for number, block in enumerate(blocks):
        blocks[number] = torch.compile(block, backend="eager")
    wrapped.enable_cache(make())
    torch.testing.assert_close(run(wrapped), run(plain))
    assert len(called) == remaining


def test_batches_with_and_without_guidance_keep_apart():
    pipe = pipeline()
    arguments = {"guidance_interval": (0.25, 0.75)}
    full = run(pipe, **arguments)
    called = count_calls(pipe, "mlp.fc2")
    pipe.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    cached = run(pipe, **arguments)
    assert len(called) == STEPS + 4 + 4  # the other four blocks once with and once without guidance
    assert (cached - full).norm() / full.norm() < 0.3


def test_threshold_of_zero_computes_everything():
    pipe = pipeline()
    full = run(pipe)
    pipe.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    torch.testing.assert_close(run(pipe), full, rtol=0, atol=0)


REFUSED = {
    "FasterCache": (FasterCacheConfig, "FasterCacheConfig.*attention classes.*FirstBlockCacheConfig"),
    "TextKVCache": (TextKVCacheConfig, "TextKVCacheConfig.*text"),
    "no cache": (dict, "dict is not supported"),
    "TaylorSeer's lite mode": (lambda: TaylorSeerCacheConfig(use_lite_mode=True), "use_lite_mode"),
    "an identifier without a module": (lambda: TaylorSeerCacheConfig(cache_identifiers=["layers.0"]), "'layers.0'"),
    "temporal attention": (
        lambda: PyramidAttentionBroadcastConfig(temporal_attention_block_skip_range=2),
        "no temporal attention",
    ),
    "cross-attention": (lambda: PyramidAttentionBroadcastConfig(cross_attention_block_skip_range=2), "block_type"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_cache_that_would_do_nothing_is_refused(make, message):
    pipe = pipeline()
    with pytest.raises(ValueError, match=message):
        pipe.enable_cache(make())
    called = count_calls(pipe, "mlp.fc2")
    run(pipe)
    assert len(called) == 5 * STEPS


def test_cache_is_refused_where_it_would_mix_up_steps():
    pipe = pipeline()
    pipe.enable_cache(MagCacheConfig(num_inference_steps=10, mag_ratios=[1.0] * 10))
    with pytest.raises(ValueError, match="num_inference_steps=10, this run evaluates the model 20 times"):
        run(pipe)
    with pytest.raises(ValueError, match="MagCacheConfig is on"):
        pipe.enable_cache(FirstBlockCacheConfig())
    pipe.disable_cache()
    pipe.enable_cache(PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2))
    with pytest.raises(ValueError, match="one batch from step to step"):
        run(pipe, guidance_interval=(0.0, 0.5))
    with pytest.raises(ValueError, match="two blocks"):
        pipeline(num_hidden_layers=1).enable_cache(FirstBlockCacheConfig())


def test_cache_of_a_shared_model_follows_the_pipeline_that_samples():
    first = pipeline()
    first.enable_cache(PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2))
    other = DiTPipeline.from_pipe(first)
    other.set_progress_bar_config(disable=True)
    arguments = {"num_inference_steps": 8, "guidance_scale": 1, "output_type": "latent"}
    images = [pipe(1, generator=torch.Generator().manual_seed(0), **arguments).images for pipe in (other, first, other)]
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=0)
    torch.testing.assert_close(images[2], images[1], rtol=0, atol=0)
