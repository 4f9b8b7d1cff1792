"""From a model to the numbers of a row: samples by the pipeline, features, distance, precision and recall.

Legend: N samples, M real images, C channels, S the side, D features, K classes.
"""

from typing import NamedTuple

import numpy as np
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from numpy.typing import NDArray
from torch import Tensor

from ..diffusion import DiscreteObjective
from ..evaluation import frechet_distance
from ..evaluation.metrics import precision_recall
from ..modeling_dit import DiTModel
from ..pipeline_dit import DiTPipeline
from .classifier import Classifier, describe
from .images import LabelledImages, PixelLatents

BATCH = 250  # samples drawn together; each batch has noise of its own seed, the same for every model
MANIFOLD_IMAGES = 5000  # real images that precision and recall know


class Measures(NamedTuple):
    """What a row says of samples."""

    distance: float
    class_agreement: float
    precision: float
    recall: float


def choose_sampler(objective: DiscreteObjective, num_steps: int) -> tuple[str, SchedulerMixin]:
    """DDIM over the whole range for any number of steps: what a row calls it, and the scheduler.

    diffusers' `DDIMScheduler` spaces timesteps by T // N, from (N - 1) (T // N) to 0. Where N divides T that begins
    within a step of the end, else late: at 765 of 1000 for 256 steps. DPM-Solver++ of the first order is the same
    solver (Lu et al. 2022, arXiv 2211.01095, section 4) and takes any timesteps; these go from T - 1 to a step above 0.

    Args:
        objective: that the model was trained with, of T timesteps.
        num_steps: N.
    """
    config = {**objective.schedule.config, "prediction_type": objective.prediction_type}
    if objective.num_train_timesteps % num_steps == 0:
        return "DDIM", DDIMScheduler(**config, timestep_spacing="leading", set_alpha_to_one=True, clip_sample=False)
    return "DDIM as DPM-Solver++ of order 1", DPMSolverMultistepScheduler(
        **config, solver_order=1, timestep_spacing="trailing", final_sigmas_type="zero"
    )


def generate_samples(
    model: DiTModel,
    scheduler: SchedulerMixin,
    latents: PixelLatents,
    num_samples: int,
    num_steps: int,
    guidance_scale: float,
) -> Tensor:
    """Samples (N, C, S, S) uint8 of classes 0, 1, ..., K-1, 0, ..., from noise that only their place decides.

    Args:
        model: whose samples are drawn.
        scheduler: by which.
        latents: of the study.
        num_samples: N.
        num_steps: of the scheduler.
        guidance_scale: 1 for none.
    """
    pipeline = DiTPipeline(model, None, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    labels = [index % model.config.num_classes for index in range(num_samples)]
    batches = []
    for start in range(0, num_samples, BATCH):
        generator = torch.Generator().manual_seed(10**6 + start)
        answer = pipeline(
            class_labels=labels[start : start + BATCH],
            guidance_scale=guidance_scale,
            num_inference_steps=num_steps,
            generator=generator,
            output_type="latent",
        )
        batches.append(latents.decode(answer.images.cpu()))
    return torch.cat(batches)


class Scorer:
    """Compares images with a training set in the features of a classifier.

    Args:
        net: the classifier.
        train: the training set.
    """

    def __init__(self, net: Classifier, train: LabelledImages) -> None:
        self.net = net
        features, _ = describe(net, train.images)
        self.mean, self.covariance = moments(features)
        self.real = features[:MANIFOLD_IMAGES].numpy()

    def __call__(self, images: Tensor, labels: Tensor) -> Measures:
        """Measure images (N, C, S, S) uint8 that were to be of the classes (N,)."""
        features, predicted = describe(self.net, images)
        agreement = (predicted == labels).float().mean().item()
        distance = frechet_distance(self.mean, self.covariance, *moments(features))
        return Measures(distance, agreement, *precision_recall(self.real, features.numpy()))


def moments(features: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,) and covariance (D, D) of features (N, D), in float64."""
    x = features.double().numpy()
    return x.mean(0), np.cov(x, rowvar=False)
