"""Diffusion: noise schedules and the objectives that train on them. Torch only; a model is any callable."""

from .objectives import (
    OBJECTIVES,
    DiscreteObjective,
    EpsilonLoss,
    FlowLoss,
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
    "HybridLoss",
    "Objective",
    "SampleLoss",
    "Schedule",
    "VelocityLoss",
]
