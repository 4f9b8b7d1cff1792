"""The last line of a generated card, which says what weights the card is of, and whether people have edited the card.

    <!-- dit-hf: weights 5feceb66..., text 6b86b273... -->

A card is made again when the weights have changed, since its results and samples are of the old ones. A card that
people have edited is theirs: it stays.
"""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

from .page import LOCAL_ID

STAMP = re.compile(r"\n*<!-- dit-hf: weights (?P<weights>[0-9a-f]{64}), text (?P<text>[0-9a-f]{64}) -->\s*")
LOADED = re.compile(r'(from_pretrained|load_lora_weights)\("[^"]*"')


class Stamp(NamedTuple):
    """What the last line of a card says.

    Args:
        weights: Digest of the weights that the card was generated for.
        is_edited: Whether the card was changed since.
    """

    weights: str
    is_edited: bool


def digest_of_weights(folder: Path) -> str:
    """Return one SHA-256 of the names, types, shapes and bytes of the weights of a saved pipeline's transformer.

    Args:
        folder: Folder of the pipeline. The digest is the same for one file and for shards.
    """
    places: dict[str, Path] = {}
    for file in sorted((folder / "transformer").glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            places |= dict.fromkeys(weights.keys(), file)
    digest = hashlib.sha256()
    for key in sorted(places):
        with safe_open(places[key], framework="pt") as weights:
            tensor = weights.get_tensor(key)
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def stamped(card: str, weights: str) -> str:
    """Return a generated card with its last line, for weights of this digest."""
    text = STAMP.sub("\n", card)
    return f"{text.rstrip()}\n\n<!-- dit-hf: weights {weights}, text {_digest_of_text(text)} -->\n"


def read_stamp(card: str) -> Stamp | None:
    """Read the last line of a card; None if the card was not generated here."""
    match = STAMP.search(card)
    if match is None:
        return None
    return Stamp(match["weights"], match["text"] != _digest_of_text(STAMP.sub("\n", card)))


def stamped_as(card: str, before: str) -> str:
    """Give a card that this package has changed the last line that belongs to it.

    Args:
        card: Card after the change.
        before: Card before the change. If it was generated and nobody has edited it, the same holds for the new one.
    """
    stamp = read_stamp(before)
    return card if stamp is None or stamp.is_edited else stamped(card, stamp.weights)


def _digest_of_text(text: str) -> str:
    """Return the digest of a card's text; a push changes what its snippets load, and is no edit."""
    return hashlib.sha256(LOADED.sub(rf'\1("{LOCAL_ID}"', text).strip().encode()).hexdigest()
