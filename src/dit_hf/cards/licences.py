"""The licence of weights, as a card states it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HTTPError
from transformers.utils import logging
from yaml import YAMLError

from ..network import reason_of
from .metadata import check_license
from .page import CARD
from .stamp import stamped_as

logger = logging.get_logger(__name__)

ORIGINAL_LICENSE = "cc-by-nc-4.0"
ORIGINAL_TEXT = (
    "The [original weights](https://github.com/facebookresearch/DiT) are licensed CC-BY-NC 4.0: not for commercial use."
)
BASE_TEXT = " The licence of the base model applies as well."
UNKNOWN = "The author has not stated a licence: ask the author before you use or share the weights."


@dataclass(frozen=True)
class Licence:
    """The licence of weights.

    Args:
        license: Id of the licence on the Hub, such as "apache-2.0"; None if it is not known.
        license_name: Name of a licence that the Hub does not list; `license` is then "other".
        license_link: Address of the text of such a licence.
        text: Sentence for the page, if the id alone says too little.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    text: str = ""

    def __bool__(self) -> bool:
        return self.license is not None or self.license_name is not None

    @property
    def metadata(self) -> dict[str, str]:
        """Fields for the top of a card."""
        fields = {"license": self.license, "license_name": self.license_name, "license_link": self.license_link}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def section(self) -> str:
        """Markdown for the section of the page."""
        return self.text or (f"`{self.license_name or self.license}`." if self else UNKNOWN)


ORIGINAL = Licence(ORIGINAL_LICENSE, text=ORIGINAL_TEXT)
SIT = Licence("mit", text="The [original weights](https://github.com/willisma/SiT) of SiT are licensed MIT.")


def stated_licence(source: str, hub: Mapping[str, Any] | None = None) -> Licence:
    """Return the licence that the card of a model states; an empty one if there is no card that can be read.

    Args:
        source: Folder of the model, or an id on the Hub. The file of a checkpoint has no card.
        hub: Arguments of `huggingface_hub.hf_hub_download`.
    """
    if os.path.isfile(source):
        return Licence()
    try:
        file = Path(source, CARD) if os.path.isdir(source) else hf_hub_download(source, CARD, **(hub or {}))
        data = ModelCard.load(file).data.to_dict() if Path(file).is_file() else {}
    except EntryNotFoundError:  # also without the network, if the card was not fetched before
        return Licence()
    except (HTTPError, OSError, ValueError, YAMLError) as error:
        logger.warning(f"The card of {source} cannot be read, so its licence is not known: {reason_of(error)}")
        return Licence()
    fields = ("license", "license_name", "license_link")
    return Licence(**{name: data[name] for name in fields if isinstance(data.get(name), str)})


def with_licence(card: str, license: str) -> str:
    """Return a card with another licence, in its metadata and in its section "Licence".

    Raises:
        ValueError: If the licence is none of the Hub's.
    """
    check_license(license)
    parsed = ModelCard(card)
    data = parsed.data
    for field, value in {"license": license, "license_name": None, "license_link": None}.items():
        setattr(data, field, value)
    section = rf"\g<1>{Licence(license).section}{BASE_TEXT if data.get('base_model') else ''}\n\n"
    text = re.sub(r"^(## Licence\n+).*?(?=^## |^<!-- dit-hf|\Z)", section, parsed.text, flags=re.MULTILINE | re.DOTALL)
    return stamped_as(f"---\n{data.to_yaml()}\n---\n{text}", card)
