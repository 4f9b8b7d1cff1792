"""Work off what a results file lacks: plan, train, sample, score, append a row; a rerun goes on where it stopped."""

import logging
import math
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from .. import __version__
from ..analysis.flops import count_gmacs, count_parameters
from ..analysis.results import REAL, MeasurementKey, Row, append_rows, read_rows
from ..diffusion import OBJECTIVES, DiscreteObjective
from ..modeling_dit import DiTModel
from ..provenance import commit, hardware
from ..training.saving.checkpoint import find_checkpoints, read_info
from .classifier import NAME, load_or_train
from .images import PixelLatents, load_images
from .planner import expected_seconds, format_plan, measure_speed
from .recipe import Recipe, Variant, measurements
from .score import Measures, Scorer, choose_sampler, generate_samples
from .train import Training, make_config

logger = logging.getLogger(__name__)

CLASSIFIER = "classifier.safetensors"


def missing(recipe: Recipe, results: Path) -> list[MeasurementKey]:
    """What the recipe asks for and the results file does not have, in order."""
    present = {row.key for row in read_rows(results)}
    return [key for key in measurements(recipe) if key not in present]


class Study:
    """A recipe at work in a folder.

    Args:
        recipe: what is trained and measured.
        folder: for the results file, checkpoints, samples and the classifier.

    Raises:
        ValueError: if the folder holds rows of another recipe or data set, or without their classifier.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder, self.results = recipe, folder, folder / "results.csv"
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self._check_rows()
        splits = ("train", recipe.test_split)
        self.train, self.test = (load_images(recipe.dataset, split, recipe.side) for split in splits)
        self.latents = PixelLatents.of(self.train.images)
        net = load_or_train(folder / CLASSIFIER, self.train, self.accelerator.device)
        self.scorer = Scorer(net, self.train)
        self.training: Training | None = None
        self.commit = commit() or __version__  # of the code that was imported: files may change while it runs

    def _check_rows(self) -> None:
        """Refuse to go on with rows that would not compare with the new ones."""
        rows, here = read_rows(self.results), (self.recipe.summary, Path(self.recipe.dataset).name)
        if rows and not (self.folder / CLASSIFIER).is_file():
            raise ValueError(
                f"{self.folder} has rows but no {CLASSIFIER} that measured them: put it there, or choose a new folder"
            )
        for row in rows:
            if row.model != REAL and (row.recipe, row.dataset) != here:
                raise ValueError(
                    f"{self.results} has rows of {(row.recipe, row.dataset)}, this is {here}: choose a new folder"
                )

    def plan(self) -> str:
        """What is missing, in order, and the hours that it takes on this machine."""
        keys = missing(self.recipe, self.results)
        todo = {(key.model, key.block_type): Variant(key.model, key.block_type, key.seed) for key in keys}
        speeds = {
            name: measure_speed(DiTModel(make_config(self.recipe, cell, self.train)), self.accelerator.device)
            for name, cell in todo.items()
        }
        begun = {Variant(*key[:3]): self._images_seen(Variant(*key[:3])) for key in keys}
        return format_plan(keys, expected_seconds(keys, speeds, begun))

    def _images_seen(self, cell: Variant) -> int:
        checkpoints = find_checkpoints(self.folder / "checkpoints" / cell.folder)
        return read_info(checkpoints[-1]).progress.images_seen if checkpoints else 0

    def run(self, deadline: float = math.inf) -> None:
        """Work off what is missing until the deadline, of `time.monotonic`; then stop at a step, with a checkpoint."""
        self._measure_real_images()
        for key in missing(self.recipe, self.results):
            if time.monotonic() >= deadline or not self._measure(key, deadline):
                logger.info("the budget is spent: the same command goes on")
                return
        logger.info(f"{self.results} is complete")

    def _measure(self, key: MeasurementKey, deadline: float) -> bool:
        training = self._training(Variant(key.model, key.block_type, key.seed))
        if not training.advance(key.images_seen, lambda: time.monotonic() >= deadline):
            return False
        began = time.monotonic()
        objective = OBJECTIVES[self.recipe.objective]()
        assert isinstance(objective, DiscreteObjective)
        model = training.state.ema.module
        assert isinstance(model, DiTModel)
        name, scheduler = choose_sampler(objective, key.num_steps)
        images = generate_samples(model, scheduler, self.latents, key.num_samples, key.num_steps, key.guidance_scale)
        labels = torch.arange(key.num_samples) % self.train.num_classes
        sample_seconds = time.monotonic() - began
        self._keep_samples(key, images)
        self._append(key, self.scorer(images, labels), name, sample_seconds, training)
        return True

    def _training(self, cell: Variant) -> Training:
        if self.training is None or self.training.cell != cell:
            self.training = None  # its memory is free before the next one takes any
            folder = self.folder / "checkpoints" / cell.folder
            self.training = Training(self.recipe, cell, self.train, self.latents, folder, self.accelerator)
        return self.training

    def _keep_samples(self, key: MeasurementKey, images: torch.Tensor) -> None:
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        np.savez_compressed(folder / f"{key.name}.npz", images[:100].permute(0, 2, 3, 1).numpy())

    def _measure_real_images(self) -> None:
        """Rows of held-out images, which no model can be expected to beat."""
        counts = {self.recipe.num_samples, self.recipe.num_final_samples, self.recipe.num_sampling_samples}
        keys = [
            MeasurementKey(REAL, "", 0, 0, 0, 1.0, num_samples)
            for num_samples in sorted(counts | {len(self.test.labels)})
        ]
        present = {row.key for row in read_rows(self.results)}
        for key in keys:
            if key not in present:
                chosen = slice(key.num_samples)
                self._append(key, self.scorer(self.test.images[chosen], self.test.labels[chosen]), "", 0.0, None)

    def _append(
        self, key: MeasurementKey, measures: Measures, sampler: str, sample_seconds: float, training: Training | None
    ) -> None:
        row = Row(
            **key._asdict(),
            **{name: round(value, 5) for name, value in measures._asdict().items()},
            train_loss=round(training.train_loss, 5) if training else 0.0,
            gmacs=count_gmacs(training.config) if training else 0.0,
            parameters=count_parameters(training.config) if training else 0,
            train_seconds=round(training.seconds, 3) if training else 0.0,
            sample_seconds=round(sample_seconds, 3),
            dataset=Path(self.recipe.dataset).name,
            recipe=self.recipe.summary if training else "",
            sampler=sampler,
            extractor=NAME,
            commit=self.commit,
            hardware=hardware(self.accelerator.device),
            date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        append_rows(self.results, [row])
        logger.info(
            f"{Variant(*key[:3]).folder} after {key.images_seen} images: distance {row.distance} of {key.num_samples}"
        )
