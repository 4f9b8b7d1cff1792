"""Adapters in a model that samples: several by name, each with a scale and its own classes; fused, and taken out again.

An adapter brings a label table, so one adapter at a time decides which classes the model has: the first of those in
use. Example: `set_adapters(model, ["my-dog", "watercolour"], [1.0, 0.6])` draws the classes of "my-dog", with 0.6 of
what "watercolour" changes in the attention and the MLP of each block.
"""

import copy
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import nn

from ..extras import require
from ..modeling_dit import DiTModel
from ..places import check_adapter_source, places_to_look
from .adapter_files import FILES, Adapter, Labels, read_adapter
from .lora import ADAPTER, has_adapter


@dataclass
class LoadedAdapters:
    """The adapters of a model, kept in its attribute `_adapters`.

    Args:
        base: Label table of the model itself.
        known: Adapters by name, in the order of loading.
        scales: Scale of each adapter in use, by name, the first of which gives the classes.
        fused: Scale of each adapter that was added to the weights, while none is loaded.
    """

    base: Labels
    known: dict[str, Adapter] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    fused: dict[str, float] = field(default_factory=dict)


def load_lora(
    model: DiTModel,
    source: str | Path,
    adapter_name: str | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> dict[int, str] | None:
    """Load an adapter into a model, in place, and use it alone, with its classes.

    Args:
        model: Model that the adapter was trained for.
        source: Folder of the adapter, or its id on the Hub.
        adapter_name: Name for `set_adapters`. Default: "default_0" for the first, "default_1" for the next.
        revision: Branch, tag or commit on the Hub.
        token: Token for the Hub; None for the one of `hf auth login` or HF_TOKEN.
        cache_dir: Folder of downloaded files.
        local_files_only: Whether to take files from the cache only.

    Returns:
        The adapter's `id2label`, or None if its classes have no names.

    Raises:
        ImportError: If PEFT is not installed.
        ValueError: If the name is taken, or if the source is no adapter or was trained for another model. The model is
            then unchanged.
    """
    require("LoRA", "peft")
    state = _state(model)
    name = adapter_name or _free_name(state)
    if name in state.known:
        raise ValueError(f"an adapter {name!r} is loaded already: choose another adapter_name, or delete it first")
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"adapter_name={name!r}: use letters, digits, - and _ only")
    options: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir}
    options["local_files_only"] = local_files_only
    check_adapter_source(source, **places_to_look(options))
    is_folder = Path(source).is_dir()
    folder = Path(source) if is_folder else Path(snapshot_download(str(source), allow_patterns=FILES, **options))
    adapter = read_adapter(model, folder, str(source))
    state.known[name] = adapter
    model._adapters = state
    _inject(model, name, adapter)
    return set_adapters(model, name)


def set_adapters(
    model: DiTModel, names: str | Sequence[str], scales: float | Sequence[float] = 1.0
) -> dict[int, str] | None:
    """Use loaded adapters, each at a scale; the first one gives the classes.

    Args:
        model: Model with loaded adapters.
        names: Names of the adapters to use, one or several.
        scales: Scale of each, 1 as it was trained; one number for all.

    Returns:
        `id2label` of the first adapter.

    Raises:
        ValueError: If an adapter is unknown or named twice, or if a scale is missing or no finite number.
    """
    state = _loaded(model)
    names = _known_names(state, names)
    numbers = list(scales) if isinstance(scales, Sequence) else [scales] * len(names)
    if len(numbers) != len(names):
        raise ValueError(f"{len(numbers)} scales for {len(names)} adapters: pass one for each, or one number for all")
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"scale={number!r} is no finite number")
    state.scales = dict(zip(names, map(float, numbers), strict=True))
    for layer in _layers(model):
        layer.enable_adapters(True)
        layer.set_adapter(names)
        for name, scale in state.scales.items():
            layer.set_scale(name, scale)
    for parameter_name, parameter in model.named_parameters():
        if ".lora_" in parameter_name:
            parameter.requires_grad_(False)  # PEFT makes the adapters in use trainable
    return _use(model, state.known[names[0]].labels)


def active_adapters(model: DiTModel) -> list[str]:
    """Return the names of the adapters in use, the one that gives the classes first; none while they are disabled."""
    state = _find(model)
    is_disabled = any(layer.disable_adapters for layer in _layers(model)) if state else True
    return list(state.scales) if state is not None and not is_disabled else []


def loaded_adapters(model: DiTModel) -> list[str]:
    """Return the names of all loaded adapters."""
    state = _find(model)
    return list(state.known) if state is not None else []


def disable_adapters(model: DiTModel) -> None:
    """Use the model itself, with its own classes, and keep the adapters loaded.

    Raises:
        ValueError: If no adapter is loaded.
    """
    state = _loaded(model)
    for layer in _layers(model):
        layer.enable_adapters(False)
    _use(model, state.base)


def enable_adapters(model: DiTModel) -> dict[int, str] | None:
    """Use the adapters again that were in use before `disable_adapters`; return `id2label` of the first.

    Raises:
        ValueError: If no adapter is loaded.
    """
    state = _loaded(model)
    return set_adapters(model, list(state.scales), list(state.scales.values()))


def delete_adapters(model: DiTModel, names: str | Sequence[str]) -> dict[int, str] | None:
    """Remove some of the loaded adapters, and use the others that were in use, or the first of them.

    Adapters that are disabled stay disabled.

    Returns:
        `id2label` of the adapter that gives the classes then; None if no adapter is left or in use.

    Raises:
        ValueError: If an adapter is unknown.
    """
    state = _loaded(model)
    names = _known_names(state, names)
    is_in_use = bool(active_adapters(model))
    if len(names) == len(state.known):
        remove_lora(model)
        return None
    for name in names:
        for layer in _layers(model):
            layer.delete_adapter(name)
        del model.peft_config[name], state.known[name]
    kept = {name: scale for name, scale in state.scales.items() if name not in names}
    kept = kept or {next(iter(state.known)): 1.0}
    id2label = set_adapters(model, list(kept), list(kept.values()))
    if not is_in_use:
        disable_adapters(model)
    return id2label if is_in_use else None


def merge_lora(
    model: DiTModel, scale: float = 1.0, adapter_names: str | Sequence[str] | None = None
) -> dict[int, str] | None:
    """Add adapters to a model's weights, in place; the result is a plain model that saves as any other.

    Args:
        model: Model with an adapter, loaded or in training.
        scale: Factor of the adapters' scales: 1 as they are in use, 0 without them. The label table is that of the
            first adapter at any scale.
        adapter_names: Adapters to add; by default those in use.

    Returns:
        `id2label` of the first adapter, if it was loaded.

    Raises:
        ValueError: If there is no such adapter, if the adapters are disabled and none is named, or if merging gives
            weights that are not finite.
    """
    if not has_adapter(model):
        raise ValueError("the model has no adapter: load one first")
    state = _find(model)
    if state is None:  # in training
        _take_out(model, {ADAPTER: scale})
        return None
    if not adapter_names and not active_adapters(model):
        raise ValueError("the adapters are disabled: call enable_lora first, or pass adapter_names")
    names = _known_names(state, adapter_names or list(state.scales))
    id2label = set_adapters(model, names, [state.scales.get(name, 1.0) * scale for name in names])
    _take_out(model, state.scales)
    state.fused = dict(state.scales)
    return id2label


def unmerge_lora(model: DiTModel) -> dict[int, str] | None:
    """Take fused adapters out of the weights again, up to rounding, and use them as loaded ones.

    Returns:
        `id2label` of the first adapter.

    Raises:
        ValueError: If no adapter is fused, or another one was loaded since.
    """
    state: LoadedAdapters | None = model.__dict__.get("_adapters")
    if state is None or not state.fused:
        raise ValueError("no adapter is fused that could be taken out: call fuse_lora first")
    fused, state.fused = state.fused, {}
    for name, adapter in state.known.items():
        _inject(model, name, adapter)
    id2label = set_adapters(model, list(fused), list(fused.values()))
    with torch.no_grad():
        for layer in _layers(model):
            for name in fused:
                layer.get_base_layer().weight.sub_(layer.get_delta_weight(name))
    return id2label


def merged(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Return a pipeline whose adapters in use are merged into a copy of the model; without adapters, itself."""
    if not has_adapter(pipeline.transformer):
        return pipeline
    model = copy.deepcopy(pipeline.transformer)
    if _find(model) is not None and not active_adapters(model):
        remove_lora(model)
    else:
        merge_lora(model)
    other = copy.copy(pipeline)
    other.register_modules(transformer=model)
    return other


def remove_lora(model: DiTModel) -> None:
    """Take all adapters out of a model, in place, and restore the classes that the model had before."""
    if not has_adapter(model):
        return
    state = _find(model)
    _take_out(model, {})
    model.__dict__.pop("_adapters", None)
    if state is not None:
        _use(model, state.base)


def _find(model: DiTModel) -> LoadedAdapters | None:
    """Return the loaded adapters; None if there are none, or if they are fused."""
    return model.__dict__.get("_adapters") if has_adapter(model) else None


def _state(model: DiTModel) -> LoadedAdapters:
    """Return the loaded adapters, or none of them; what is fused belongs to the model from now on."""
    if (state := _find(model)) is not None:
        return state
    if has_adapter(model):
        raise ValueError("the model has an adapter in training: merge_lora or remove_lora it first")
    return LoadedAdapters(Labels(model.y_embedder, model.config.num_classes))


def _loaded(model: DiTModel) -> LoadedAdapters:
    state = _find(model)
    if state is None:
        raise ValueError("no adapter is loaded: call load_lora_weights first")
    return state


def _free_name(state: LoadedAdapters) -> str:
    names = (f"default_{number}" for number in range(len(state.known) + 1))
    return next(name for name in names if name not in state.known)


def _known_names(state: LoadedAdapters, names: str | Sequence[str]) -> list[str]:
    names = [names] if isinstance(names, str) else list(names)
    if unknown := [name for name in names if name not in state.known]:
        raise ValueError(f"no adapter is called {unknown[0]!r}: loaded are {', '.join(state.known)}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"adapter names {names}: name at least one adapter, and each only once")
    return names


def _layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _use(model: DiTModel, labels: Labels) -> dict[int, str] | None:
    """Give the model a label table and its classes."""
    if labels.embedder is not None:
        labels.embedder.to(device=model.device, dtype=model.dtype)
    model.y_embedder = labels.embedder
    model.config.num_classes = labels.num_classes
    return labels.id2label


def _inject(model: DiTModel, name: str, adapter: Adapter) -> None:
    from peft import inject_adapter_in_model, set_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant here
        inject_adapter_in_model(adapter.config, model, name)
    set_peft_model_state_dict(model, adapter.matrices, adapter_name=name)
    model._hf_peft_config_loaded = True


def _take_out(model: DiTModel, scales: Mapping[str, float]) -> None:
    """Replace each layer of PEFT by the plain layer inside, to which the named adapters are added at their scales."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            for adapter, scale in scales.items():
                module.set_scale(adapter, scale)
            if scales:
                module.merge(safe_merge=True, adapter_names=list(scales))
            model.set_submodule(name, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(name, module.modules_to_save[ADAPTER] if scales else module.original_module)
    model.requires_grad_(True)
    if model.pos_embed is not None:
        model.pos_embed.requires_grad_(False)
    del model.peft_config
    model._hf_peft_config_loaded = False
    model.__dict__.pop("_weight_conversions", None)  # transformers would save the plain weights under PEFT's names
