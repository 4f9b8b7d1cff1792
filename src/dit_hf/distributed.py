"""The processes that a launcher such as `torchrun` started, for work without training: drawing and measuring images."""

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs


def start_inference_accelerator() -> Accelerator:
    """Return Accelerate's view of this process and the others; without a launcher there is this process alone.

    Processes may wait for each other for 30 days, because one of them may have much more left to do.
    """
    patience = InitProcessGroupKwargs(timeout=timedelta(days=30))
    # Without `cpu`, Accelerate starts one process if there is no GPU, whatever the launcher asked for.
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=[patience])
