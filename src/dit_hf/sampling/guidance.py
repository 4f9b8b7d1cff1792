"""Guidance: move the model's answer for a class away from its answer for no class.

Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6) with scale w replaces the predicted noise by

    eps(x, none) + w (eps(x, class) - eps(x, none))

where "none" is the null class, which training puts in the place of some labels. Variations: a weaker model takes the
place of the null class (autoguidance, Karras et al. 2024, arXiv 2406.02507); only an interval of the steps is guided
(Kynkaanniemi et al. 2024, arXiv 2404.07724); a guider of diffusers combines the two answers in another way.
"""

import copy
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
from diffusers.guiders import BaseGuidance
from torch import Tensor
from transformers import PreTrainedModel

# How many channels of epsilon guidance moves; None is all. The published numbers of DiT guide the first three of four.
GUIDANCE_CHANNELS: dict[str, int | None] = {"first_three": 3, "all": None}

# Those of diffusers' guiders that work on a conditional and an unconditional answer alone.
GUIDERS = (
    "ClassifierFreeGuidance",
    "ClassifierFreeZeroStarGuidance",
    "AdaptiveProjectedGuidance",
    "AdaptiveProjectedMixGuidance",
    "TangentialClassifierFreeGuidance",
)


def guide(cond: Tensor, uncond: Tensor, scale: float, num_channels: int) -> Tensor:
    """Move the first channels away from the unconditional answer (Ho & Salimans 2022, arXiv 2207.12598, eq. 6)."""
    guided = uncond[:, :num_channels] + scale * (cond[:, :num_channels] - uncond[:, :num_channels])
    return torch.cat([guided, cond[:, num_channels:]], dim=1)  # (B, C or 2C, H, W)


def check_guidance_channels(guidance_channels: Any) -> None:
    """Refuse a name that is not in `GUIDANCE_CHANNELS`."""
    if guidance_channels not in GUIDANCE_CHANNELS:
        raise ValueError(f"guidance_channels={guidance_channels!r}: choose from {', '.join(GUIDANCE_CHANNELS)}")


class Guidance:
    """How one call is guided: by what, how far, in which channels, at which steps.

    Args:
        scale: Scale w of classifier-free guidance, at least 0; 1 and below is no guidance. Or a guider of diffusers.
        guidance_channels: Key of `GUIDANCE_CHANNELS`.
        guide_model: Weaker DiT that takes the place of the null class; None for the null class.
        config: Configuration of the model that is guided.

    Raises:
        ValueError: If a value is outside its limits, the model has no null class, or the weaker model does not fit.
    """

    def __init__(
        self, scale: float | BaseGuidance, guidance_channels: str, guide_model: PreTrainedModel | None, config: Any
    ) -> None:
        check_scale(scale)
        check_guidance_channels(guidance_channels)
        self.scale = copy.deepcopy(scale)  # a guider keeps a state: calls in several threads may share it
        self.guide_model = guide_model
        self.num_channels = 0  # that guidance moves
        self.is_guided: list[bool] = []  # for each evaluation of the model; `plan` fills it
        if not isinstance(scale, BaseGuidance) and scale <= 1:
            return
        if guide_model is not None:
            _check_guide_model(guide_model.config, config)
        elif not config.has_null_class:
            raise ValueError(
                f"guidance_scale={scale}: a model with num_classes={config.num_classes} and class_dropout_prob="
                f"{config.class_dropout_prob} has no null class to guide with: pass guidance_scale=1 or a guide_model"
            )
        self.num_channels = min(GUIDANCE_CHANNELS[guidance_channels] or config.in_channels, config.in_channels)

    def plan(
        self,
        timesteps: Tensor,
        interval: tuple[float, float] | None,
        unit: str,
        noise_levels: Callable[[Tensor], np.ndarray],
    ) -> None:
        """Decide which evaluations of the model are guided.

        Args:
            timesteps: Timestep of each evaluation (N,).
            interval: Guide only from the first to the second of these; None guides all.
            unit: "steps": fractions of the steps from 0 (the start) to 1, the end left out. "sigma": noise levels, the
                lower one left out.
            noise_levels: Function from timesteps to noise levels.

        Raises:
            ValueError: If the interval or the unit is outside its limits.
        """
        _check_interval(interval, unit)
        num_steps = len(timesteps)
        self.is_guided = [self.num_channels > 0] * num_steps
        if interval is not None and unit == "steps":
            within = [interval[0] <= step / num_steps < interval[1] for step in range(num_steps)]
        elif interval is not None:
            within = [interval[0] < sigma <= interval[1] for sigma in noise_levels(timesteps)]
        else:
            within = [True] * num_steps
        if isinstance(self.scale, BaseGuidance):
            for step, t in enumerate(timesteps):
                self.scale.set_state(step, num_steps, t)
                within[step] &= self.scale.num_conditions == 2
            self.scale.set_state(0, num_steps, timesteps[0])
            self.scale.prepare_inputs({})  # which forgets the last call
        self.is_guided = [guided and inside for guided, inside in zip(self.is_guided, within, strict=True)]

    def is_paired(self, step: int) -> bool:
        """Whether the model evaluates labels and null class in one batch of twice the rows."""
        return self.is_guided[step] and self.guide_model is None

    def combine(self, step: int, timestep: Tensor, cond: Tensor, other: Tensor) -> Tensor:
        """Combine the answer for the labels with the answer to move away from; both (B, C or 2C, H, W)."""
        if not isinstance(self.scale, BaseGuidance):
            return guide(cond, other, self.scale, self.num_channels)
        self.scale.set_state(step, len(self.is_guided), timestep)
        moved = self.scale.forward(cond[:, : self.num_channels], other[:, : self.num_channels]).pred
        return torch.cat([moved, cond[:, self.num_channels :]], dim=1)


def check_scale(scale: Any) -> None:
    """Refuse what is neither a finite number from 0 on nor one of `GUIDERS`."""
    if isinstance(scale, BaseGuidance):
        if (name := type(scale).__name__) not in GUIDERS:
            raise ValueError(f"guidance_scale={name} hooks parts that no DiT has: choose from {', '.join(GUIDERS)}")
    elif isinstance(scale, bool) or not isinstance(scale, (int, float, np.number)) or not 0 <= scale < math.inf:
        raise ValueError(f"guidance_scale={scale!r}: pass a finite number from 0 on; 1 is no guidance")


def _check_guide_model(weak: Any, config: Any) -> None:
    for name in ("model_type", "in_channels", "sample_size", "num_classes"):
        if getattr(weak, name, None) != getattr(config, name):
            raise ValueError(
                f"guide_model has {name}={getattr(weak, name, None)!r}, the transformer {getattr(config, name)!r}: "
                "they must be equal"
            )


def _check_interval(interval: Any, unit: str) -> None:
    if unit not in ("steps", "sigma"):
        raise ValueError(f"guidance_interval_unit={unit!r}: choose from steps, sigma")
    if interval is None:
        return
    most = 1 if unit == "steps" else math.inf
    ok = isinstance(interval, (tuple, list)) and len(interval) == 2 and all(isinstance(end, Real) for end in interval)
    if not (ok and 0 <= interval[0] < interval[1] <= most):
        raise ValueError(f"guidance_interval={interval!r}: pass (low, high) with 0 <= low < high <= {most}, in {unit}")
