"""Pushes beside a training: one at a time, in a thread. A push that fails is logged, and the training continues."""

import logging
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard

from ..files import announce, folder_written_whole
from .card import check_card
from .errors import HubError
from .push import check_push, push_folder

logger = logging.getLogger("dit_hf.training")


class Card(Protocol):
    """What a push needs of a training's card, `dit_hf.cards.training.TrainingCard`."""

    def outline(self) -> ModelCard: ...
    def write(self, pipeline: Any, folder: Path) -> None: ...


def save_training_pipeline(pipeline: DiffusionPipeline, output_dir: Path, card: Card) -> Path:
    """Save the pipeline of a training and its card to `output_dir/pipeline`, whole or not at all; return that folder.

    Args:
        pipeline: Pipeline with the averaged weights.
        output_dir: Folder of the training.
        card: Card that is written beside the weights.
    """
    with folder_written_whole(output_dir / "pipeline") as partial:
        announce("write", partial)
        pipeline.save_pretrained(partial)
        card.write(pipeline, partial)
    return output_dir / "pipeline"


class BackgroundPush:
    """Pushes the pipeline of a training, at its checkpoints and at its end.

    Args:
        repo_id: Repository "user/name", or a name in one's own account.
        card: Card of the training, which is written at each checkpoint.
        private: Whether the repository must be private; False for a repository that everybody sees.
        save: Function that saves what is pushed at a checkpoint, and returns its folder.

    Raises:
        HubError: If pushes will not be allowed, before the training starts.
        ValueError: If the repository is public and `private` is not False, or if the Hub refuses the card.
    """

    def __init__(
        self,
        repo_id: str,
        card: Card,
        *,
        private: bool = True,
        save: Callable[[DiffusionPipeline, Path, Card], Path] = save_training_pipeline,
    ) -> None:
        self.repo_id, self.private = check_push(repo_id, private=private), private
        check_card(str(card.outline()), self.repo_id)
        self._card, self._save, self._api = card, save, HfApi()
        self._running: Future[str | None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a push still reads the folder, which must not change then."""
        return self._running is not None and not self._running.done()

    def push_checkpoint(self, pipeline: DiffusionPipeline, output_dir: Path, step: int) -> None:
        """Save what is pushed and begin to push it; while another push runs, log that and do nothing.

        Args:
            pipeline: Pipeline with the averaged weights.
            output_dir: Folder of the training.
            step: Number of steps that the pipeline was trained for.
        """
        if self.is_busy:
            logger.info(f"step {step} is not pushed: the push before it still runs")
            return
        self.start(self._save(pipeline, output_dir, self._card), f"Step {step}")

    def start(self, folder: Path, message: str) -> None:
        """Begin to push a folder in the background; the push before must be over.

        Args:
            folder: Folder of a pipeline or of an adapter.
            message: First line of the commit.
        """
        assert not self.is_busy, "a push reads the folder while another one starts"
        self._running = self._api.run_as_future(self._push, folder, message)

    def wait(self) -> str | None:
        """Wait for the push that runs, if one does; its tries are bounded.

        Returns:
            The reason if the newest push has not arrived, in one line; None if it has, or if there was none.
        """
        if self._running is None:
            return None
        error = self._running.exception()
        if error is None:
            return self._running.result()
        logger.error(f"the push failed, the training continues: {error!r}")  # an error that `_push` does not expect
        return repr(error)

    def check_arrived(self) -> None:
        """Wait for the newest push, as `wait` does, and raise an error if it has not arrived.

        Raises:
            HubError: If it has not; the message says why and what to do.
        """
        reason = self.wait()
        if reason is not None:
            raise HubError(
                f"the training is finished and its files are whole, but {self.repo_id} does not have them: {reason}. "
                "Run the same command again: it pushes without training"
            )

    def _push(self, folder: Path, message: str) -> str | None:
        """Push a folder, and return why it has not arrived, or None."""
        try:
            commit = push_folder(folder, self.repo_id, private=self.private, commit_message=message)
        except (OSError, ValueError) as error:
            kept = f"The files stay in {folder.name}/"
            logger.error(f"{message}: the push failed, the training continues: {error}. {kept}")
            return str(error)
        logger.info(f"{message}: {commit.commit_url}")
        return None
