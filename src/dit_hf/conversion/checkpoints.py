"""Which tensors of a file are the weights of a DiT: by name of the dictionary and prefix of the keys that hold them.

Files of others hold weights at many places. Each place that has a DiT's first layer gets a name:

    {"ema": {"x_embedder.proj.weight": ...}}                          "ema"
    {"state_dict": {"ema_model.x_embedder.proj.weight": ...}}         "state_dict.ema_model"
    {"n_averaged": ..., "module.x_embedder.proj.weight": ...}         "", the only place in the file
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ..weight_files import strip_wrappers
from .stored import CheckpointError, StoredTensor, readable, stored

FIRST_LAYER = "x_embedder.proj.weight"
AVERAGE = re.compile(r"(?:^|[._-])ema|ema(?:$|[._-])", re.IGNORECASE)  # in the name of a place
COUNTERS = ("n_averaged", "initted", "step")  # which averages of weights keep beside them
MAX_DEPTH = 3

Weights = dict[str, StoredTensor]


def choose_weights(content: Mapping[str, Any], weights: str) -> Weights:
    """Return the tensors of one model, without the prefixes of wrappers.

    Args:
        content: What a file holds.
        weights: "ema" or "model", if there is one place of that kind; or the name of a place.

    Raises:
        CheckpointError: If the file has no weights of a DiT, or no place of that kind or several.
        ValueError: If the file has no place of that name.
    """
    places = dict(_find_places(content))
    if not places:
        raise CheckpointError(
            f"the checkpoint lacks {FIRST_LAYER}, so it is of another model than DiT: it holds {_describe(content)}"
        )
    if weights in places:
        return places[weights]
    averages = [name for name in places if AVERAGE.search(name)]
    others = [name for name in places if name not in averages]
    kinds = {"ema": averages, "model": others}
    if weights not in kinds:
        names = ", ".join(["ema", "model", *(name for name in places if name not in ("", *kinds))])
        raise ValueError(f"weights={weights!r}: choose from {names}")
    chosen = kinds[weights]
    if weights == "ema" and not averages and others != ["model"]:  # the original's `model` has an average beside it
        chosen = others
    if not chosen:
        raise CheckpointError(
            f"the training checkpoint holds {_describe(content)}, no {weights!r}: pass weights="
            f"{'model' if weights == 'ema' else 'ema'!r} for the other"
        )
    if len(chosen) > 1:
        found = ", ".join(f"{name!r} ({len(places[name])} tensors)" for name in chosen)
        raise CheckpointError(f"the checkpoint holds several DiTs: {found}. Choose one by its name, as in weights=...")
    return places[chosen[0]]


def leave_out(tensors: Weights, ignore: tuple[str, ...]) -> Weights:
    """Return the tensors without those that a training needed beside the model.

    Args:
        tensors: Tensors by their keys.
        ignore: Beginnings of keys, such as "projectors" for "projectors.0.weight".

    Raises:
        ValueError: If no key has such a beginning.
    """
    for prefix in ignore:
        if not any(_begins(key, prefix) for key in tensors):
            raise ValueError(f"ignore={prefix!r}: no key begins so, leave it out")
    return {key: tensor for key, tensor in tensors.items() if not any(_begins(key, prefix) for prefix in ignore)}


def check_left_over(tensors: Weights, expected: set[str]) -> None:
    """Refuse keys that a DiT does not have, and say how to leave them out.

    Raises:
        CheckpointError: If there are such keys; the message counts them by their beginnings.
    """
    counts: dict[str, int] = {}
    for key in map(readable, tensors.keys() - expected):
        parts = key.split(".")
        prefix = key if parts[0] == "blocks" or any(name.startswith(f"{parts[0]}.") for name in expected) else parts[0]
        counts[prefix] = counts.get(prefix, 0) + 1
    if counts:
        names = sorted(counts)[:5]
        listed = ", ".join(f"{name} ({counts[name]} tensors)" if counts[name] > 1 else name for name in names)
        more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
        raise CheckpointError(
            f"the checkpoint has, of another model, {listed}{more}. What only the training needed, such as REPA's "
            f"projectors, can be left out: pass ignore={names!r}"
        )


def _begins(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def _find_places(content: Mapping[Any, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Weights]]:
    """Yield each place that has a DiT's first layer: its name, and its tensors."""
    keys = {key: strip_wrappers(key) for key in content if isinstance(key, str)}
    ends = [key for key in keys.values() if key == FIRST_LAYER or key.endswith(f".{FIRST_LAYER}")]
    for prefix in dict.fromkeys(key.removesuffix(FIRST_LAYER) for key in ends):
        yield ".".join([*path, *prefix.split(".")[:-1]]), _collect(content, keys, prefix)
    if len(path) < MAX_DEPTH:
        for key in keys:
            if isinstance(content[key], Mapping):
                yield from _find_places(content[key], (*path, key))


def _collect(content: Mapping[Any, Any], keys: Mapping[str, str], prefix: str) -> Weights:
    """Return the tensors of one place by their keys in the model."""
    tensors: Weights = {}
    for key, value in content.items():
        name = keys.get(key)
        if name is not None and not name.startswith(prefix):
            continue
        if name in COUNTERS:
            continue
        if name is None or not isinstance(value, StoredTensor | Tensor):
            raise CheckpointError(
                f"{readable(key)!r} is a {type(value).__name__}: a state dict has tensors by name only"
            )
        name = name.removeprefix(prefix)
        if name in tensors:
            raise CheckpointError(f"{readable(name)} is there twice, with and without the prefix of a wrapper")
        tensors[name] = value if isinstance(value, StoredTensor) else stored(value)
    return tensors


def _describe(content: Mapping[Any, Any]) -> str:
    names = [readable(key) for key in content]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
