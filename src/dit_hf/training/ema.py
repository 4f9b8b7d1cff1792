"""The exponential moving average of the paper: constant decay from the first step, started as a copy (section 4)."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def make_ema(model: torch.nn.Module, decay: float) -> AveragedModel:
    """An average of the model's parameters: `update_parameters(model)` after each step, `.module` is the average.

    Args:
        model: the unwrapped model.
        decay: weight of the old average, in [0, 1); the paper's is 0.9999.
    """
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    ema.module.eval().requires_grad_(False)
    ema.n_averaged += 1  # the copy counts as the first average: torch would overwrite it with the weights of step one
    return ema
