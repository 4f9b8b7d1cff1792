"""Parameters that are split over the processes: by FSDP2 along their first axis, or by ZeRO-3 as flat parts.

Example: of a weight (6, 4) on two processes, FSDP2 gives each process three rows, (3, 4), and ZeRO-3 gives each half of
its 24 numbers, (12,). An exponential moving average works element by element, so each process averages its part.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: torch.nn.Module) -> bool:
    """Return whether the model's parameters are split over the processes."""
    return any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_tensor") for parameter in model.parameters())


def local_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a parameter, or the parameter itself if it is not split."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return getattr(tensor, "ds_tensor", tensor)


def make_whole(parameter: Any, part: Tensor) -> Tensor:
    """Return a whole tensor from its parts. Every process has to call this.

    Args:
        parameter: Parameter of the model, which says how the tensor is split.
        part: This process's part of the tensor.
    """
    if isinstance(parameter, DTensor):
        mesh, placements, shape = parameter.device_mesh, parameter.placements, parameter.shape
        return DTensor.from_local(part, mesh, placements, shape=shape, stride=parameter.stride()).full_tensor()
    if hasattr(parameter, "ds_tensor"):
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)  # without the padding of the last part
    return part


def cut_part(parameter: Tensor, whole: Tensor) -> Tensor:
    """Return this process's part of a tensor.

    Args:
        parameter: Parameter of the model, which says how the tensor is split.
        whole: Whole tensor, on every process.
    """
    if isinstance(parameter, DTensor):  # src_data_rank=None: each process cuts its own part
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
    if hasattr(parameter, "ds_tensor"):
        size = parameter.ds_tensor.numel()
        filled = whole.new_zeros(size * torch.distributed.get_world_size())
        filled[: whole.numel()] = whole.flatten()
        return filled[size * torch.distributed.get_rank() :][:size]
    return whole
