"""One training of a study: from the newest checkpoint to a number of images, with the package's own loop.

Legend: B batch, N images of the training set.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ..configuration_dit import DiTConfig
from ..diffusion import OBJECTIVES, Objective
from ..modeling_dit import DiTModel
from ..training.assembly import assemble
from ..training.loop import KeyedDraws, LatentBatch, train_steps
from ..training.saving.checkpoint import Progress, newest_whole, prune, read_info, write_checkpoint
from .images import LabelledImages, PixelLatents
from .recipe import Recipe, Variant

SAVE_SECONDS = 120  # a kill loses no more of a training than this
LOSS_STEPS = 500  # over which a row's error is a mean


def make_config(recipe: Recipe, cell: Variant, data: LabelledImages) -> DiTConfig:
    """The configuration of a cell's model, fitted to the data."""
    channels = 4 * data.images.shape[1]
    return recipe.config(cell.model, block_type=cell.block_type, in_channels=channels, num_classes=data.num_classes)


class Training:
    """A model, its average and its optimiser, and how far they have come.

    Args:
        recipe: of the study.
        cell: what is trained.
        data: the training set.
        latents: what the model sees of it.
        folder: of its checkpoints.
        accelerator: the device.
    """

    def __init__(
        self,
        recipe: Recipe,
        cell: Variant,
        data: LabelledImages,
        latents: PixelLatents,
        folder: Path,
        accelerator: Accelerator,
    ) -> None:
        self.recipe, self.cell, self.data, self.latents, self.folder = recipe, cell, data, latents, folder
        self.accelerator = accelerator
        self.objective: Objective = OBJECTIVES[recipe.objective]()
        self.config = make_config(recipe, cell, data)
        self.progress, self.seconds = Progress(), 0.0
        self.losses: list[float] = []  # of the last steps
        if len(data.images) < recipe.batch_size:
            raise ValueError(f"{len(data.images)} images are fewer than batch_size={recipe.batch_size}: lower it")
        accelerator.free_memory()  # of the model before
        torch.manual_seed(cell.seed)
        assembly = assemble(
            accelerator,
            DiTModel(self.config),
            learning_rate=recipe.learning_rate,
            ema_decays=[recipe.ema_decay],
            lr_scheduler="constant_with_warmup",
            lr_warmup_steps=recipe.warmup_steps,
        )
        self.state, self.model, self.optimizer = assembly.state, assembly.model, assembly.optimizer
        if newest := newest_whole(folder):
            self.state.restore(newest)
            record = read_info(newest)
            self.progress, saved = record.progress, record.settings
            self.seconds, self.losses = saved.pop("seconds"), saved.pop("losses")
            fields = recipe.training_fields()
            if any(fields.get(name) != value for name, value in saved.items()):
                raise ValueError(f"{folder} was trained with {saved}, not {fields}: choose a new folder")

    @property
    def train_loss(self) -> float:
        """Mean squared error over the last steps."""
        return float(np.mean(self.losses)) if self.losses else float("nan")

    def advance(self, images_seen: int, is_late: Callable[[], bool]) -> bool:
        """Train until that many images were seen, or until it is late; whether they were.

        Args:
            images_seen: since the start of the training.
            is_late: asked after each step.

        Raises:
            ValueError: if it has seen more already.
        """
        if self.progress.images_seen > images_seen:
            raise ValueError(
                f"{self.folder} has seen {self.progress.images_seen} images, too many for a measurement after "
                f"{images_seen}: choose a new folder, or move this one away to train it again"
            )
        done = self.progress.images_seen == images_seen
        if done:
            return True
        dropout = self.config.class_dropout_prob if self.config.has_null_class else 0.0
        steps = train_steps(
            self.accelerator,
            self.model,
            self.optimizer,
            self.state.lr_scheduler,
            self.state.ema,
            self.objective,
            self._batches(),
            KeyedDraws(self.cell.seed, self.objective, dropout),
            first_step=self.progress.step,
            images_seen=self.progress.images_seen,
        )
        losses: list[torch.Tensor] = []
        began, saved_at = time.monotonic(), time.monotonic()
        for record in steps:
            losses.append(record.losses["mse"])
            self.progress = Progress(record.step, record.images_seen, *record.position)
            done = record.images_seen >= images_seen
            stops, now = done or is_late(), time.monotonic()
            if stops or now - saved_at > SAVE_SECONDS:
                self.seconds, began = self.seconds + now - began, now
                self.losses = [*self.losses, *torch.stack(losses).tolist()][-LOSS_STEPS:]
                losses.clear()
                self._save()
                saved_at = time.monotonic()
            if stops:
                break
        return done

    def _save(self) -> None:
        if not np.isfinite(self.train_loss):
            raise FloatingPointError(f"{self.cell}: the loss is {self.train_loss} at step {self.progress.step}")
        about = {**self.recipe.training_fields(), "seconds": self.seconds, "losses": self.losses}
        write_checkpoint(self.folder, self.state.snapshot(), self.progress, about)
        prune(self.folder, total_limit=1)

    def _batches(self) -> Iterator[LatentBatch]:
        """Endless latents, each epoch in an order of its own; what does not fill a batch waits for the next epoch."""
        size, (epoch, offset) = self.recipe.batch_size, (self.progress.epoch, self.progress.offset)
        num_images, device = len(self.data.images), self.accelerator.device
        while True:
            order = torch.from_numpy(np.random.default_rng([self.cell.seed, 1, epoch]).permutation(num_images))
            for start in range(offset, num_images - size + 1, size):
                chosen = order[start : start + size]
                yield LatentBatch(
                    x_0=self.latents.encode(self.data.images[chosen]).to(device),
                    class_labels=self.data.labels[chosen].to(device),
                    positions=[(epoch, start + k) for k in range(size)],
                    next_position=(epoch, start + size),
                )
            epoch, offset = epoch + 1, 0
