"""diffusers' caches on a DiT: which of them skip work there, and which settings each needs.

Consecutive steps of sampling give a block nearly the same input. A cache reuses or extrapolates what blocks, or layers
of blocks, computed in earlier steps; sampling is faster, and the images change a little. What a cache may touch is
stated by the layers themselves: see `BlockLayer` in layers.py.
"""

import dataclasses
import re
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.hooks.pyramid_attention_broadcast import _apply_pyramid_attention_broadcast_hook
from diffusers.models import CacheMixin

# Class name of a cache's configuration -> None, or the reason why the cache cannot serve a DiT.
CACHES: dict[str, str | None] = {
    "FirstBlockCacheConfig": None,
    "TaylorSeerCacheConfig": None,
    "MagCacheConfig": None,
    "PyramidAttentionBroadcastConfig": None,
    "SeaCacheConfig": None,
    "FasterCacheConfig": "it hooks diffusers' own attention classes, of which a DiT has none, and would do nothing",
    "TextKVCacheConfig": "it keeps the keys and values of a text, and a DiT reads none",
}


class _PairMetadata(TransformerBlockMetadata):
    """A block with `value_residual`, which returns the residual stream and the first block's values.

    diffusers knows blocks that take and return a second stream, and calls it `encoder_hidden_states`.
    """

    def _get_parameter_from_args_kwargs(self, identifier: str, args: Any = (), kwargs: Any = None) -> Any:
        name = "first_values" if identifier == "encoder_hidden_states" else identifier
        return super()._get_parameter_from_args_kwargs(name, args, kwargs)


def _metadata(model: Any) -> TransformerBlockMetadata:
    """What diffusers' caches have to know of the arguments and results of a block."""
    if not model.config.value_residual:
        return TransformerBlockMetadata(return_hidden_states_index=0)
    return _PairMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1)


def _modules_stated(model: Any, fact: str) -> list[str]:
    """Patterns for the modules that the layers of a model state under a name, such as "cache_outputs"."""
    names = [f"{name}.{part}" for name, layer in model.named_modules() for part in getattr(type(layer), fact, ())]
    if not names:
        raise ValueError(f"no layer of {type(model).__module__} states {fact}: load it as dit_hf.DiTModel")
    return [re.escape(name) for name in names]


def _taylorseer_for(config: Any, model: Any) -> Any:
    if config.use_lite_mode:
        raise ValueError("use_lite_mode names modules that a DiT does not have: leave it out")
    given = [*(config.cache_identifiers or []), *(config.skip_predict_identifiers or [])]
    if not given:
        outputs, inputs = (_modules_stated(model, fact) for fact in ("cache_outputs", "cache_inputs"))
        return dataclasses.replace(config, cache_identifiers=outputs, skip_predict_identifiers=inputs)
    for pattern in given:
        if not any(re.fullmatch(pattern, name) for name, _ in model.named_modules()):
            raise ValueError(f"no module of the transformer matches {pattern!r}: name some like 'blocks.0.attn.proj'")
    return config


def _broadcast_attention(config: Any, model: Any) -> None:
    # diffusers' own function takes instances of its attention classes only
    current_timestep = config.current_timestep_callback
    for block in model.blocks:
        if config.spatial_attention_block_skip_range is not None:
            timesteps, period = config.spatial_attention_timestep_skip_range, config.spatial_attention_block_skip_range
            _apply_pyramid_attention_broadcast_hook(block.attn, timesteps, period, current_timestep)
        if config.cross_attention_block_skip_range is not None:
            timesteps, period = config.cross_attention_timestep_skip_range, config.cross_attention_block_skip_range
            _apply_pyramid_attention_broadcast_hook(block.cross_attn, timesteps, period, current_timestep)


def _broadcast_for(config: Any, model: Any) -> Any:
    if config.temporal_attention_block_skip_range is not None:
        raise ValueError("temporal_attention_block_skip_range: a DiT has no temporal attention, leave it out")
    if config.cross_attention_block_skip_range is not None and not hasattr(model.blocks[0], "cross_attn"):
        raise ValueError(
            "cross_attention_block_skip_range is for blocks with cross-attention, and "
            f"block_type={model.config.block_type!r} has none: leave it out"
        )
    if config.spatial_attention_block_skip_range is None and config.cross_attention_block_skip_range is None:
        config = dataclasses.replace(config, spatial_attention_block_skip_range=2)
    if config.current_timestep_callback is None:
        config = dataclasses.replace(config, current_timestep_callback=lambda: model.current_timestep)
    return config


def enable(pipeline: DiffusionPipeline, config: Any) -> None:
    """Switch a cache on; `DiTPipeline.enable_cache` calls this function.

    Args:
        pipeline: A `DiTPipeline`.
        config: Configuration of a cache, of one of the classes in `CACHES`.

    Raises:
        ValueError: If the cache or one of its settings would do nothing, or cannot serve a DiT.
    """
    name, model = type(config).__name__, getattr(pipeline.transformer, "_orig_mod", pipeline.transformer)
    reason = CACHES.get(name, "it is no cache's configuration")
    if reason is not None:
        supported = ", ".join(key for key, refusal in CACHES.items() if refusal is None)
        raise ValueError(f"{name} is not supported, {reason}: choose from {supported}")
    if getattr(model, "_cache_config", None) is not None:
        raise ValueError(f"{type(model._cache_config).__name__} is on: call disable_cache() before enable_cache()")
    if len(model.blocks) < 2:
        raise ValueError("num_hidden_layers=1: a cache needs at least two blocks")
    if name == "SeaCacheConfig" and model.config.value_residual:
        raise ValueError("SeaCacheConfig skips nothing where blocks return two tensors: take another cache")
    if name == "TaylorSeerCacheConfig":
        config = _taylorseer_for(config, model)
    elif name == "PyramidAttentionBroadcastConfig":
        config = _broadcast_for(config, model)
    elif name == "SeaCacheConfig" and config.raw_vision_callback is None:
        # the callback takes a list of videos (C, frames, H, W): a latent is a video of one frame
        config = dataclasses.replace(config, raw_vision_callback=lambda model, args, _: [*args[0].unsqueeze(2)])
    # diffusers' caches find the blocks by their class in this registry, without the wrapper of torch.compile
    block = getattr(model.blocks[0], "_orig_mod", model.blocks[0])
    TransformerBlockRegistry.register(type(block), _metadata(model))
    model.is_cache_enabled = False
    CacheMixin.enable_cache(model, config)
    if name == "PyramidAttentionBroadcastConfig":
        _broadcast_attention(config, model)


def check(config: Any, guided: list[bool]) -> None:
    """Refuse a sampling run that the enabled cache cannot follow; `DiTPipeline` calls this function before each run.

    Args:
        config: Configuration of the enabled cache.
        guided: One value for each evaluation of the model: whether it is guided, which doubles the batch.

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
