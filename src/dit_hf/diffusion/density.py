"""Timestep densities: how often a training draws each timestep.

A density is given by its inverse distribution function, which maps a uniform number to a time in [0, 1): 0 is data, 1
is noise. So a caller that draws the uniform number by a key of its own draws the same time again.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = ("uniform", "logit_normal")
BELOW_ONE = 1 - 2**-24  # the largest float32 below 1


@dataclass(frozen=True)
class TimestepDensity:
    """A distribution of times t in [0, 1), where 0 is data and 1 is noise.

    "uniform" draws every time equally often. "logit_normal" draws t = 1 / (1 + exp(-z)) with z ~ N(mean, std^2), which
    is dense in the middle (Esser et al. 2024, arXiv 2403.03206, section 3.1). The shift then moves t to
    shift t / (1 + (shift - 1) t), towards noise if it is above 1 (the same paper, eq. 23).

    Args:
        name: "uniform" or "logit_normal".
        mean: Mean of z. Above 0, most draws are noisier than t = 1/2. Papers and code in which 1 is data, such as JiT,
            and diffusers' scripts for SD3, count the other way round: their mean is this one with the sign turned.
        std: Standard deviation of z, above 0.
        shift: Factor of the shift, above 0; 1 is no shift.

    Raises:
        ValueError: If the name is unknown, or a number is outside its limits.
    """

    name: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"timestep density {self.name!r} is unknown: choose one of {', '.join(NAMES)}")
        if not math.isfinite(self.mean):
            raise ValueError(f"mean={self.mean} of a timestep density: pass a finite number")
        for name in ("std", "shift"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} of a timestep density: pass a finite number above 0")

    def quantile(self, uniform: Tensor) -> Tensor:
        """Map uniform numbers in [0, 1) to times in [0, 1), in the same dtype and shape.

        The computation is in float64. A uniform density without a shift returns the numbers as they are.
        """
        if self.name == "uniform" and self.shift == 1:
            return uniform
        t = uniform.double()
        if self.name == "logit_normal":
            t = torch.sigmoid(self.mean + self.std * torch.special.ndtri(t))
        t = self.shift * t / (1 + (self.shift - 1) * t)
        return t.clamp(max=BELOW_ONE).to(uniform.dtype)
