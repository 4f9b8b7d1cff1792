"""The card of a push: whether the Hub takes it, and which card a pipeline gets."""

import json
import logging
from pathlib import Path
from typing import NamedTuple

from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard
from yaml import YAMLError

from ..cards.licences import Licence, stated_licence, with_licence
from ..cards.metadata import hub_id
from ..cards.page import CARD
from ..cards.pipeline import make_card
from ..cards.stamp import digest_of_weights, read_stamp, stamped
from ..network import retried
from .errors import HubError, one_line_errors

logger = logging.getLogger(__name__)


class ChosenCard(NamedTuple):
    """The card of a push.

    Args:
        text: Text of the card.
        is_of_origin: Whether the card is that of the folder from which the pipeline was loaded, with its pictures.
    """

    text: str
    is_of_origin: bool = False


def check_card(text: str, repo_id: str) -> None:
    """Ask the Hub whether it takes a card, as it refuses a commit whose card has wrong metadata.

    Args:
        text: Text of the card, metadata included.
        repo_id: Repository, for messages.

    Raises:
        HubError: If the Hub cannot be asked.
        ValueError: If the Hub refuses the card; the message says why, in one line.
    """
    with one_line_errors(repo_id):
        try:
            retried(ModelCard(text).validate)
        except (ValueError, YAMLError) as error:
            raise ValueError(f"{CARD} for {repo_id} is refused: {_reasons(error)}. Correct its metadata") from error


def choose_card(
    pipeline: DiffusionPipeline, folder: Path, published: str | None, license: str | None, repo_id: str
) -> ChosenCard:
    """Return the card that goes along with a pipeline.

    A card that people have edited on the Hub stays. A generated one stays as long as it is of these weights; otherwise
    its results and samples would be those of other weights. If none stays, the card goes along that lies in the folder
    from which the pipeline was loaded, if it is of these weights; without that, a card is made.

    Args:
        pipeline: Pipeline that is pushed.
        folder: Folder that the pipeline was saved to.
        published: Card that is on the Hub, or None.
        license: Licence that the card gets; None for the licence of the model that the pipeline was loaded from.
        repo_id: Repository that is pushed to.

    Raises:
        ValueError: If the licence is none of the Hub's.
    """
    weights = digest_of_weights(folder)
    card = _kept_card(published, weights, repo_id) or _card_of_origin(pipeline, weights)
    if card is None:
        return ChosenCard(_new_card(pipeline, weights, license, repo_id))
    return card._replace(text=with_licence(card.text, license)) if license else card


def _kept_card(published: str | None, weights: str, repo_id: str) -> ChosenCard | None:
    stamp = read_stamp(published) if published else None
    if published is None or (stamp and not stamp.is_edited and stamp.weights != weights):
        return None
    if stamp and stamp.weights != weights:
        logger.warning(
            f"{CARD} of {repo_id} was edited, so it stays, but it is of other weights: look whether its results and "
            "samples still hold, or delete it on the Hub for a new one"
        )
    return ChosenCard(published)


def _card_of_origin(pipeline: DiffusionPipeline, weights: str) -> ChosenCard | None:
    origin = Path(pipeline.name_or_path or "")
    has_card = (origin / CARD).is_file() and (origin / "model_index.json").is_file()
    if not has_card or digest_of_weights(origin) != weights:
        return None
    return ChosenCard((origin / CARD).read_text(encoding="utf-8"), is_of_origin=True)


def _new_card(pipeline: DiffusionPipeline, weights: str, license: str | None, repo_id: str) -> str:
    source = str(pipeline.name_or_path or "")
    base = hub_id(source)
    if base is not None and (base == repo_id or not _is_on_hub(base)):
        base = None
    licence = Licence(license)
    if not licence and (base or Path(source).is_dir()):
        licence = stated_licence(source)
    return stamped(str(make_card(pipeline, license=licence, base_model=base)), weights)


def _is_on_hub(repo_id: str) -> bool:
    """Whether a name is a model that the Hub has; a folder that is gone has such a name too."""
    try:
        with one_line_errors(repo_id):
            retried(lambda: HfApi().model_info(repo_id))
    except HubError:
        return False
    return True


def _reasons(error: Exception) -> str:
    """Return what the Hub or YAML says, in one line."""
    try:
        return "; ".join(reason["message"] for reason in json.loads(str(error))["errors"])
    except (ValueError, KeyError, TypeError):
        return " ".join(str(error).split())
