"""From a model to the numbers of a row: samples drawn by the pipeline, their features, and the metrics.

Legend: N samples, M real images, C channels, S the side, D features, K classes.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from numpy.typing import NDArray
from torch import Tensor

from ..diffusion import DiscreteObjective, Objective
from ..evaluation import frechet_distance
from ..evaluation.features.extractors import POOL
from ..evaluation.metrics import precision_recall
from ..evaluation.run import ExtractorChoice
from ..files import written_whole
from ..pipeline_dit import DiTPipeline
from .classifier import Classifier, describe
from .images import LabelledImages, PixelLatents

logger = logging.getLogger(__name__)

BATCH = 250  # number of samples drawn together; the seed of a batch's noise is the same for every model
SECOND_REFERENCE = 5000  # number of training images that the second network looks at
MANIFOLD_IMAGES = 5000  # number of real images that precision and recall compare the samples with


class Measures(NamedTuple):
    """The metrics of a set of samples, as in `analysis.results.Row`."""

    distance: float
    class_agreement: float
    precision: float
    recall: float


def choose_sampler(objective: Objective, num_steps: int) -> tuple[str, SchedulerMixin]:
    """Return a sampler that covers the whole range of timesteps with any number of steps, and its name.

    An objective on a noise schedule is sampled by DDIM, any other by the scheduler that its pipeline stores.

    diffusers' `DDIMScheduler` takes the timesteps 0, k, 2k, ... with k = T // N. If N does not divide T, the highest of
    them is well below T: 765 of 1000 for N = 256. DPM-Solver++ of order 1 is the same solver (Lu et al. 2022, arXiv
    2211.01095, section 4) and takes any timesteps; the ones used here go from T - 1 down to about T / N.

    Args:
        objective: Objective that the model was trained with, of T timesteps.
        num_steps: Number of steps N.
    """
    if not isinstance(objective, DiscreteObjective):
        stored = objective.scheduler_config()
        name = stored.pop("_class_name")
        return name, getattr(diffusers, name)(**stored)
    config = {**objective.schedule.config, "prediction_type": objective.prediction_type}
    if objective.num_train_timesteps % num_steps == 0:
        return "DDIM", DDIMScheduler(**config, timestep_spacing="leading", set_alpha_to_one=True, clip_sample=False)
    return "DDIM as DPM-Solver++ of order 1", DPMSolverMultistepScheduler(
        **config, solver_order=1, timestep_spacing="trailing", final_sigmas_type="zero"
    )


def generate_samples(
    pipeline: DiTPipeline,
    latents: PixelLatents,
    num_samples: int,
    num_steps: int,
    guidance_scale: float,
) -> Tensor:
    """Draw samples of the classes 0, 1, ..., K-1, 0, ... as (N, C, S, S) uint8.

    Sample k starts from the same noise for every model, scheduler and `num_samples`, so that samples can be compared.

    Args:
        pipeline: Model to sample, and the scheduler to sample with.
        latents: Map from latents back to pixels.
        num_samples: Number of samples N.
        num_steps: Number of steps of the scheduler.
        guidance_scale: Scale of classifier-free guidance; 1 is no guidance.
    """
    pipeline.set_progress_bar_config(disable=True)
    labels = [index % pipeline.transformer.config.num_classes for index in range(num_samples)]
    batches = []
    for start in range(0, num_samples, BATCH):
        generator = torch.Generator().manual_seed(10**6 + start)
        output = pipeline(
            class_labels=labels[start : start + BATCH],
            guidance_scale=guidance_scale,
            num_inference_steps=num_steps,
            generator=generator,
            output_type="latent",
        )
        batches.append(latents.decode(output.images.cpu()))
    return torch.cat(batches)


class Scorer:
    """Compare images with a training set in the features of a classifier.

    Args:
        net: The classifier.
        train: The training set.
    """

    def __init__(self, net: Classifier, train: LabelledImages) -> None:
        self.net = net
        features, _ = describe(net, train.images)
        self.mean, self.covariance = moments(features)
        self.real = features[:MANIFOLD_IMAGES].numpy()

    def __call__(self, images: Tensor, labels: Tensor) -> Measures:
        """Measure images.

        Args:
            images: Images (N, C, S, S), uint8.
            labels: Classes (N,) that the images were asked to show.
        """
        features, predicted = describe(self.net, images)
        agreement = (predicted == labels).float().mean().item()
        distance = frechet_distance(self.mean, self.covariance, *moments(features))
        return Measures(distance, agreement, *precision_recall(self.real, features.numpy()))


class SecondScorer:
    """Compare images with a training set in the features of a second network, which shares nothing with the first.

    The training set is represented by its first images, whose moments are kept in a file.

    Args:
        extractor: Network, as `dit-hf evaluate --extractor` takes it.
        train: The training set.
        folder: Folder for the file of moments.

    Raises:
        ValueError: If there is no such network.
    """

    def __init__(self, extractor: str, train: LabelledImages, folder: Path) -> None:
        self.extractor = ExtractorChoice(extractor).open()
        facts = {"reference": f"first {SECOND_REFERENCE} training images", **self.extractor.settings}
        described = [f"{name} {str(value)[:40]}" for name, value in facts.items()]
        self.name = ", ".join([self.extractor.name, f"{self.extractor.taps[POOL]} features", *described])
        file = folder / "second_extractor.npz"
        kept = dict(np.load(file)) if file.is_file() else {}
        if kept.get("name") != self.name:
            logger.info(f"computing the features of {SECOND_REFERENCE:,} training images in {self.extractor.name}")
            mean, covariance = moments(self._features(train.images[:SECOND_REFERENCE]))
            kept = {"name": np.array(self.name), "mean": mean, "covariance": covariance}
            folder.mkdir(parents=True, exist_ok=True)
            with written_whole(file) as partial, partial.open("wb") as opened:
                np.savez(opened, **kept)
        self.mean, self.covariance = kept["mean"], kept["covariance"]

    def __call__(self, images: Tensor) -> float:
        """Return the Fréchet distance of images (N, C, S, S), uint8."""
        return frechet_distance(self.mean, self.covariance, *moments(self._features(images)))

    def _features(self, images: Tensor) -> Tensor:
        """Return the features (N, D) of images, grey ones in three equal channels."""
        batches = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).split(BATCH)  # (B, S, S, 3)
        return torch.cat([self.extractor(batch)[POOL].cpu() for batch in batches])


def moments(features: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean (D,) and covariance (D, D) of features (N, D), in float64."""
    x = features.double().numpy()
    return x.mean(0), np.cov(x, rowvar=False)
