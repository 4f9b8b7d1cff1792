"""Diffusion: noise schedules, and the objectives that train a network on them.

A diffusion model learns to undo noise. Training takes a clean sample x_0, Gaussian noise eps and a random timestep t,
and mixes them into

    x_t = a_t x_0 + s_t eps,    where t = 0 is almost clean and the last t almost pure noise.

A `Schedule` fixes a_t = sqrt(alpha_bar_t) and s_t = sqrt(1 - alpha_bar_t) by T small steps beta_t; flow matching takes
the straight path a_t = 1 - t, s_t = t instead. The network sees x_t and t and predicts one of four targets: the noise
eps, the sample x_0, the velocity v = a_t eps - s_t x_0, or the direction eps - x_0 of the straight path. Any of them
gives the others by the equation above, but they weigh the timesteps differently. The loss is the mean squared error of
the prediction; `HybridLoss` also learns the variance of the reverse step. A sampler then starts from pure noise and
walks back to t = 0 with a scheduler of diffusers, which `Objective.scheduler_config` describes.

This package needs torch only, and a model is any callable.
"""

from .density import TimestepDensity
from .objectives import (
    OBJECTIVES,
    DiscreteObjective,
    EpsilonLoss,
    FlowLoss,
    FlowSampleLoss,
    HybridLoss,
    Objective,
    SampleLoss,
    VelocityLoss,
)
from .schedule import BETA_SCHEDULES, Schedule

__all__ = [
    "BETA_SCHEDULES",
    "OBJECTIVES",
    "DiscreteObjective",
    "EpsilonLoss",
    "FlowLoss",
    "FlowSampleLoss",
    "HybridLoss",
    "Objective",
    "SampleLoss",
    "Schedule",
    "TimestepDensity",
    "VelocityLoss",
]
