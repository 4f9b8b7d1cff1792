"""Parameters that are split over the processes, by FSDP2 along an axis or by DeepSpeed's ZeRO-3 as flat parts."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether the model's parameters are split over the processes."""
    return any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_tensor") for parameter in model.parameters())


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a parameter; the parameter itself where nothing is split."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return getattr(tensor, "ds_tensor", tensor)


def make_whole(parameter: Any, part: Tensor) -> Tensor:
    """Of a tensor that is split like a parameter, the whole; every process has to ask for it."""
    if isinstance(parameter, DTensor):
        mesh, placements, shape = parameter.device_mesh, parameter.placements, parameter.shape
        return DTensor.from_local(part, mesh, placements, shape=shape, stride=parameter.stride()).full_tensor()
    if hasattr(parameter, "ds_tensor"):
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)  # the last part is filled up
    return part


def cut_part(parameter: Tensor, whole: Tensor) -> Tensor:
    """This process's part of a tensor that every process holds whole, as the parameter is split."""
    if isinstance(parameter, DTensor):  # src_data_rank=None: each process cuts its own part
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()
    if hasattr(parameter, "ds_tensor"):
        size = parameter.ds_tensor.numel()
        filled = whole.new_zeros(size * torch.distributed.get_world_size())
        filled[: whole.numel()] = whole.flatten()
        return filled[size * torch.distributed.get_rank() :][:size]
    return whole
