"""diffusers' caches on a DiT: which of them skip work there, and what each has to be told.

A cache leaves out blocks, or parts of them, in steps that resemble the last ones; the images change a little.
"""

import dataclasses
import re
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.hooks.pyramid_attention_broadcast import _apply_pyramid_attention_broadcast_hook
from diffusers.models import CacheMixin

# By the names of their configurations: None, or why one cannot serve a DiT.
CACHES: dict[str, str | None] = {
    "FirstBlockCacheConfig": None,
    "TaylorSeerCacheConfig": None,
    "MagCacheConfig": None,
    "PyramidAttentionBroadcastConfig": None,
    "SeaCacheConfig": None,
    "FasterCacheConfig": "it hooks diffusers' own attention classes, of which a DiT has none, and would do nothing",
    "TextKVCacheConfig": "it keeps the keys and values of a text, and a DiT reads none",
}

# TaylorSeer extrapolates what a branch adds to the residual stream; what feeds it need not run then.
EXTRAPOLATED = [r"blocks\.\d+\.(attn|cross_attn)\.proj", r"blocks\.\d+\.mlp\.fc2"]
LEFT_OUT = [r"blocks\.\d+\.(attn\.qkv|cross_attn\.q)", r"blocks\.\d+\.mlp\.fc1"]


def _taylorseer_for(config: Any, model: Any) -> Any:
    if config.use_lite_mode:
        raise ValueError("use_lite_mode names modules that a DiT does not have: leave it out")
    given = [*(config.cache_identifiers or []), *(config.skip_predict_identifiers or [])]
    if not given:
        return dataclasses.replace(config, cache_identifiers=EXTRAPOLATED, skip_predict_identifiers=LEFT_OUT)
    for pattern in given:
        if not any(re.fullmatch(pattern, name) for name, _ in model.named_modules()):
            raise ValueError(f"no module of the transformer matches {pattern!r}: name some like 'blocks.0.attn.proj'")
    return config


def _broadcast_attention(config: Any, model: Any) -> None:
    # diffusers' own function takes instances of its attention classes only
    now = config.current_timestep_callback
    for block in model.blocks:
        if config.spatial_attention_block_skip_range is not None:
            when, every = config.spatial_attention_timestep_skip_range, config.spatial_attention_block_skip_range
            _apply_pyramid_attention_broadcast_hook(block.attn, when, every, now)
        if config.cross_attention_block_skip_range is not None:
            when, every = config.cross_attention_timestep_skip_range, config.cross_attention_block_skip_range
            _apply_pyramid_attention_broadcast_hook(block.cross_attn, when, every, now)


def _broadcast_for(config: Any, pipeline: DiffusionPipeline, model: Any) -> Any:
    if config.temporal_attention_block_skip_range is not None:
        raise ValueError("temporal_attention_block_skip_range: a DiT has no temporal attention, leave it out")
    if config.cross_attention_block_skip_range is not None and not hasattr(model.blocks[0], "cross_attn"):
        raise ValueError("cross_attention_block_skip_range is for block_type='cross_attention': leave it out")
    if config.spatial_attention_block_skip_range is None and config.cross_attention_block_skip_range is None:
        config = dataclasses.replace(config, spatial_attention_block_skip_range=2)
    if config.current_timestep_callback is None:
        config = dataclasses.replace(config, current_timestep_callback=lambda: pipeline.current_timestep)
    return config


def enable(pipeline: DiffusionPipeline, config: Any) -> None:
    """Switch a cache on; `DiTPipeline.enable_cache` calls this.

    Args:
        pipeline: A `DiTPipeline`.
        config: The configuration of a cache, one of `CACHES`.

    Raises:
        ValueError: For a cache or a setting that would do nothing, or that a DiT cannot serve.
    """
    name, model = type(config).__name__, getattr(pipeline.transformer, "_orig_mod", pipeline.transformer)
    why = CACHES.get(name, "it is no cache's configuration")
    if why is not None:
        supported = ", ".join(key for key, reason in CACHES.items() if reason is None)
        raise ValueError(f"{name} is not supported, {why}: choose from {supported}")
    if getattr(model, "_cache_config", None) is not None:
        raise ValueError(f"{type(model._cache_config).__name__} is on: call disable_cache() before another one")
    if len(model.blocks) < 2:
        raise ValueError("num_hidden_layers=1: a cache needs at least two blocks")
    if name == "TaylorSeerCacheConfig":
        config = _taylorseer_for(config, model)
    elif name == "PyramidAttentionBroadcastConfig":
        config = _broadcast_for(config, pipeline, model)
    elif name == "SeaCacheConfig" and config.raw_vision_callback is None:
        # each latent as a film of one picture (C, 1, H, W)
        config = dataclasses.replace(config, raw_vision_callback=lambda model, args, _: [*args[0].unsqueeze(2)])
    # the caches look blocks up by their class
    TransformerBlockRegistry.register(type(model.blocks[0]), TransformerBlockMetadata(return_hidden_states_index=0))
    model.is_cache_enabled = False
    CacheMixin.enable_cache(model, config)
    if name == "PyramidAttentionBroadcastConfig":
        _broadcast_attention(config, model)


def check(config: Any, guided: list[bool]) -> None:
    """Refuse a run that the enabled cache cannot follow; `DiTPipeline` calls this before each.

    Args:
        config: The cache's configuration.
        guided: Which evaluations of the model are guided, and so take twice the batch.

    Raises:
        ValueError: If the cache would mix up steps.
    """
    name = type(config).__name__
    if name in ("MagCacheConfig", "PyramidAttentionBroadcastConfig") and len({*guided}) > 1:
        raise ValueError(f"{name} keeps one batch from step to step: guide all steps or none, or take another cache")
    if name == "MagCacheConfig" and config.num_inference_steps != len(guided):
        raise ValueError(
            f"MagCacheConfig has num_inference_steps={config.num_inference_steps}, this run evaluates the model "
            f"{len(guided)} times: enable_cache with that number"
        )
