"""Measure what a results file lacks: train, sample, compute the metrics, append a row. A rerun continues."""

import logging
import math
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from .. import __version__
from ..analysis.flops import count_gmacs, count_parameters
from ..analysis.results import REAL, MeasurementKey, Row, append_rows, read_rows, write_rows
from ..modeling_dit import DiTModel
from ..pipeline_dit import DiTPipeline
from ..provenance import commit, hardware
from ..training.saving.checkpoint import find_checkpoints, read_info
from .classifier import NAME, load_or_train
from .images import PixelLatents, load_images
from .planner import expected_seconds, format_plan, measure_speed
from .recipe import Recipe, Variant, measurements
from .score import Scorer, SecondScorer, choose_sampler, generate_samples
from .train import Training, make_config

logger = logging.getLogger(__name__)

CLASSIFIER = "classifier.safetensors"


def missing(recipe: Recipe, results: Path) -> list[MeasurementKey]:
    """Return the measurements of a recipe that a results file lacks, in order."""
    present = {row.key for row in read_rows(results)}
    return [measurement for measurement in measurements(recipe) if measurement not in present]


class Study:
    """A recipe, and the folder in which it is carried out.

    Args:
        recipe: What is trained and measured.
        folder: Folder for the results file, the checkpoints, the samples and the classifier.

    Raises:
        ValueError: If the recipe names no data set, or if the folder has rows of another recipe or data set, or rows
            without the classifier that measured them.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        if not recipe.dataset:
            raise ValueError(
                "the study has no data set: name one with --dataset, or with `dataset:` in the file of --recipe, for "
                "example zalando-datasets/fashion_mnist on the Hub"
            )
        self.recipe, self.folder, self.results = recipe, folder, folder / "results.csv"
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self._check_rows()
        splits = ("train", recipe.test_split)
        logger.info(f"reading the images of {recipe.dataset}")
        self.train, self.test = (load_images(recipe.dataset, split, recipe.side) for split in splits)
        self.latents = PixelLatents.of(self.train.images)
        self.second = SecondScorer(recipe.second_extractor, self.train, folder) if recipe.second_extractor else None
        self._check_second_extractor()
        self.training: Training | None = None
        self.commit = commit() or __version__  # read now: the files may change while the study runs

    @cached_property
    def scorer(self) -> Scorer:
        """The measure of all images. A plan does not need it, nor the minutes that its classifier is trained for."""
        net = load_or_train(self.folder / CLASSIFIER, self.train, self.accelerator.device)
        logger.info(f"computing the features of {len(self.train.images):,} training images")
        return Scorer(net, self.train)

    def _check_rows(self) -> None:
        """Refuse to continue with rows that could not be compared with the new ones."""
        rows, expected = read_rows(self.results), (self.recipe.summary, Path(self.recipe.dataset).name)
        if rows and not (self.folder / CLASSIFIER).is_file():
            raise ValueError(
                f"{self.folder} has rows, but not the {CLASSIFIER} that measured them: put it there, or choose a new "
                "folder"
            )
        for row in rows:
            if row.model != REAL and (row.recipe, row.dataset) != expected:
                raise ValueError(
                    f"{self.results} has rows of {(row.recipe, row.dataset)}, but this study is {expected}: choose a "
                    "new folder"
                )

    def _check_second_extractor(self) -> None:
        """Refuse to continue with second distances of another network."""
        for row in read_rows(self.results):
            if self.second and row.second_extractor not in ("", self.second.name):
                raise ValueError(
                    f"{self.results} has second distances of {row.second_extractor}, but this study has "
                    f"{self.second.name}: choose a new folder"
                )

    def plan(self) -> str:
        """Return what is missing, in order, with the hours that it takes on this machine."""
        todo = missing(self.recipe, self.results)
        unfinished = dict.fromkeys(map(Variant.of, todo))
        models = {(variant.model, variant.block_type): variant for variant in unfinished}
        speeds = {}
        for number, ((model, design), variant) in enumerate(models.items(), start=1):
            logger.info(f"timing {model} with {design} blocks ({number} of {len(models)})")
            network = DiTModel(make_config(self.recipe, variant, self.train))
            speeds[model, design] = measure_speed(network, self.accelerator.device)
        images_seen = {variant: self._images_seen(variant) for variant in unfinished}
        return format_plan(todo, expected_seconds(todo, speeds, images_seen))

    def _images_seen(self, variant: Variant) -> int:
        """Return the number of images that the newest checkpoint of a training has seen."""
        checkpoints = find_checkpoints(self.folder / "checkpoints" / variant.folder)
        return read_info(checkpoints[-1]).progress.images_seen if checkpoints else 0

    def run(self, deadline: float = math.inf) -> None:
        """Train and measure what is missing; stop at the deadline, after a step, with a checkpoint.

        Args:
            deadline: Time of `time.monotonic`, in seconds.
        """
        self._measure_real_images()
        self._fill_second_distances(deadline)
        for measurement in missing(self.recipe, self.results):
            if time.monotonic() >= deadline or not self._measure(measurement, deadline):
                logger.info("the time is used up: run the same command again to continue")
                return
        logger.info(f"{self.results} is complete")

    def _fill_second_distances(self, deadline: float) -> None:
        """Add second distances to rows that lack them, if the checkpoint that they measured is still there."""
        if self.second is None:
            return
        for row in read_rows(self.results):
            if row.second_extractor or (images := self._measured_images(row)) is None:
                continue
            if time.monotonic() >= deadline:
                return
            filled = replace(row, second_distance=round(self.second(images), 5), second_extractor=self.second.name)
            rows = read_rows(self.results)
            write_rows(self.results, [filled if each.key == row.key else each for each in rows])
            logger.info(f"{row.model} after {row.images_seen} images: second distance {filled.second_distance}")

    def _measured_images(self, row: Row) -> torch.Tensor | None:
        """Return the images that a row has measured, or None if they are gone, or not of this recipe."""
        if row.model == REAL:
            return self.test.images[: row.num_samples]
        variant = Variant.of(row.key)
        if row.key not in measurements(self.recipe) or self._images_seen(variant) != row.images_seen:
            return None
        return self._draw(row.key, self._training(variant))[1]

    def _measure(self, measurement: MeasurementKey, deadline: float) -> bool:
        """Train as far as a measurement needs and append its row; return False if the deadline came first."""
        training = self._training(Variant.of(measurement))
        if not training.advance(measurement.images_seen, lambda: time.monotonic() >= deadline):
            return False
        began = time.monotonic()
        sampler, images = self._draw(measurement, training)
        sample_seconds = time.monotonic() - began
        self._keep_samples(measurement, images)
        self._append(measurement, images, sampler, sample_seconds, training)
        return True

    def _draw(self, measurement: MeasurementKey, training: Training) -> tuple[str, torch.Tensor]:
        """Return the name of the sampler, and the samples (N, C, S, S), uint8, of a trained model."""
        model = training.state.ema.module
        assert isinstance(model, DiTModel)
        num_samples, num_steps = measurement.num_samples, measurement.num_steps
        sampler, scheduler = choose_sampler(training.objective, num_steps)
        pipeline = DiTPipeline(model, None, scheduler, prediction_type=training.objective.prediction_type)
        images = generate_samples(pipeline, self.latents, num_samples, num_steps, measurement.guidance_scale)
        return sampler, images

    def _training(self, variant: Variant) -> Training:
        """Return the training of a variant; only one training is in memory at a time."""
        if self.training is None or self.training.variant != variant:
            self.training = None  # frees the memory of the training before
            folder = self.folder / "checkpoints" / variant.folder
            self.training = Training(self.recipe, variant, self.train, self.latents, folder, self.accelerator)
        return self.training

    def _keep_samples(self, measurement: MeasurementKey, images: torch.Tensor) -> None:
        """Save the first hundred samples for the figure of samples."""
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        np.savez_compressed(folder / f"{measurement.name}.npz", images[:100].permute(0, 2, 3, 1).numpy())

    def _measure_real_images(self) -> None:
        """Append rows of held-out real images, whose distance is the best that a model can be expected to reach."""
        counts = {self.recipe.num_samples, self.recipe.num_final_samples, self.recipe.num_sampling_samples}
        present = {row.key for row in read_rows(self.results)}
        for num_samples in sorted(counts | {len(self.test.labels)}):
            measurement = MeasurementKey(REAL, "", 0, 0, 0, 1.0, num_samples)
            if measurement not in present:
                self._append(measurement, self.test.images[:num_samples], "", 0.0, None)

    def _append(
        self,
        measurement: MeasurementKey,
        images: torch.Tensor,
        sampler: str,
        sample_seconds: float,
        training: Training | None,
    ) -> None:
        """Measure images, samples of a training or real ones, and append their row."""
        asked = torch.arange(len(images)) % self.train.num_classes
        measures = self.scorer(images, asked if training else self.test.labels[: len(images)])
        row = Row(
            **measurement._asdict(),
            **{name: round(value, 5) for name, value in measures._asdict().items()},
            train_loss=round(training.train_loss, 5) if training else 0.0,
            gmacs=count_gmacs(training.config) if training else 0.0,
            parameters=count_parameters(training.config) if training else 0,
            train_seconds=round(training.seconds, 3) if training else 0.0,
            sample_seconds=round(sample_seconds, 3),
            train_cpu_seconds=round(training.cpu_seconds, 3) if training else 0.0,
            dataset=Path(self.recipe.dataset).name,
            recipe=self.recipe.summary if training else "",
            sampler=sampler,
            extractor=NAME,
            commit=self.commit,
            hardware=hardware(self.accelerator.device),
            second_distance=round(self.second(images), 5) if self.second else math.nan,
            second_extractor=self.second.name if self.second else "",
            date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        append_rows(self.results, [row])
        trained = f"{Variant.of(measurement).folder} after {row.images_seen} images" if training else "real images"
        logger.info(f"{trained}: distance {row.distance} of {row.num_samples}")
