"""One training of a study, with the package's own loop: from the newest checkpoint to a given number of images.

Legend: B batch, N images of the training set.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ..configuration_dit import DiTConfig
from ..modeling_dit import DiTModel
from ..training.assembly import assemble_as_set, build_techniques, make_objective
from ..training.loop import KeyedDraws, LatentBatch, train_steps
from ..training.saving.checkpoint import Progress, newest_whole, prune, read_info, write_checkpoint
from .images import LabelledImages, PixelLatents, to_unit
from .recipe import Recipe, Variant

SAVE_SECONDS = 120  # between checkpoints: a killed study loses at most this much of a training
LOSS_STEPS = 500  # number of last steps whose mean loss a row holds


def make_config(recipe: Recipe, variant: Variant, data: LabelledImages) -> DiTConfig:
    """Return the configuration of a variant's model, with the channels and classes of the data."""
    channels = 4 * data.images.shape[1]
    return recipe.config(
        variant.model, block_type=variant.block_type, in_channels=channels, num_classes=data.num_classes
    )


class Training:
    """A model with its average and its optimiser, restored from the newest checkpoint if there is one.

    Args:
        recipe: Recipe of the study.
        variant: Model, block design and seed of this training.
        data: The training set.
        latents: Map from the images to the latents that the model is trained on.
        folder: Folder of the checkpoints.
        accelerator: Accelerator whose device trains.

    Raises:
        ValueError: If the training set is smaller than a batch, or the checkpoint was trained with another recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        variant: Variant,
        data: LabelledImages,
        latents: PixelLatents,
        folder: Path,
        accelerator: Accelerator,
    ) -> None:
        self.recipe, self.variant, self.data, self.latents, self.folder = recipe, variant, data, latents, folder
        self.accelerator = accelerator
        settings = recipe.settings(variant.seed)
        self.objective, self.max_grad_norm = make_objective(settings), settings.max_grad_norm
        self.config = make_config(recipe, variant, data)
        self.progress, self.seconds, self.cpu_seconds = Progress(), 0.0, 0.0
        self.losses: list[float] = []  # of the last LOSS_STEPS steps
        if len(data.images) < recipe.batch_size:
            raise ValueError(f"{len(data.images)} images are fewer than batch_size={recipe.batch_size}: lower it")
        accelerator.free_memory()  # releases the model that was trained before
        torch.manual_seed(variant.seed)
        model = DiTModel(self.config)
        self.techniques = build_techniques(settings, self.objective, model)
        if missing := self.techniques.extras.keys() - {"images"}:
            raise ValueError(f"a study's batches lack {min(missing)!r}: leave that technique out")
        assembly = assemble_as_set(settings, accelerator, model, self.techniques)
        self.state, self.model, self.optimizer = assembly.state, assembly.model, assembly.optimizer
        if newest := newest_whole(folder):
            self.state.restore(newest)
            record = read_info(newest)
            self.progress, saved = record.progress, {"additions": {}, **record.settings}
            self.seconds, self.losses = saved.pop("seconds"), saved.pop("losses")
            self.cpu_seconds = saved.pop("cpu_seconds", math.nan)  # older checkpoints did not count them
            if saved != (fields := recipe.training_fields()):
                raise ValueError(f"{folder} was trained with {saved}, not {fields}: choose a new folder")

    @property
    def train_loss(self) -> float:
        """Mean squared error over the last `LOSS_STEPS` steps."""
        return float(np.mean(self.losses)) if self.losses else float("nan")

    def advance(self, images_seen: int, is_late: Callable[[], bool]) -> bool:
        """Train until the model has seen a number of images; return whether it has.

        Args:
            images_seen: Number of images, counted from the start of the training.
            is_late: Function that is called after each step. If it returns True, the training is saved and stops.

        Raises:
            ValueError: If the training has already seen more images.
            FloatingPointError: If the loss is not finite.
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
            KeyedDraws(self.variant.seed, self.objective, dropout),
            techniques=self.techniques,
            first_step=self.progress.step,
            images_seen=self.progress.images_seen,
            max_grad_norm=self.max_grad_norm,
        )
        losses: list[torch.Tensor] = []
        began, cpu_began = time.monotonic(), time.process_time()
        for record in steps:
            losses.append(record.losses["mse"])
            self.progress = Progress(record.step, record.images_seen, *record.position)
            done = record.images_seen >= images_seen
            stops, now = done or is_late(), time.monotonic()
            if stops or now - began > SAVE_SECONDS:
                self.seconds += now - began
                self.cpu_seconds += time.process_time() - cpu_began
                self.losses = [*self.losses, *torch.stack(losses).tolist()][-LOSS_STEPS:]
                losses.clear()
                self._save()
                began, cpu_began = time.monotonic(), time.process_time()
            if stops:
                break
        return done

    def _save(self) -> None:
        if not np.isfinite(self.train_loss):
            raise FloatingPointError(f"{self.variant}: the loss is {self.train_loss} at step {self.progress.step}")
        spent = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "losses": self.losses}
        settings = {**self.recipe.training_fields(), **spent}
        write_checkpoint(self.folder, self.state.snapshot(), self.progress, settings)
        prune(self.folder, total_limit=1)

    def _batches(self) -> Iterator[LatentBatch]:
        """Yield batches without end; each epoch has its own order and leaves out what does not fill a batch."""
        size, (epoch, offset) = self.recipe.batch_size, (self.progress.epoch, self.progress.offset)
        num_images, device = len(self.data.images), self.accelerator.device
        while True:
            order = torch.from_numpy(np.random.default_rng([self.variant.seed, 1, epoch]).permutation(num_images))
            for start in range(offset, num_images - size + 1, size):
                chosen = order[start : start + size]
                images = self.data.images[chosen]  # (B, C, S, S)
                colours = {"images": to_unit(images).expand(-1, 3, -1, -1)} if self.techniques.extras else {}
                yield LatentBatch(
                    x_0=self.latents.encode(images).to(device),
                    class_labels=self.data.labels[chosen].to(device),
                    positions=[(epoch, start + k) for k in range(size)],
                    next_position=(epoch, start + size),
                    extras={name: extra.to(device) for name, extra in colours.items()},
                )
            epoch, offset = epoch + 1, 0
