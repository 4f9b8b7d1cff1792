"""Exponential moving averages (EMA) of the weights: constant decay from the first step, begun as a copy (section 4)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .processes.shards import cut_part, is_sharded, local_part, make_whole


def make_ema(model: torch.nn.Module, decay: float) -> AveragedModel:
    """Return an average of parameters: call `update_parameters(model)` after each step; `.module` is the average.

    Args:
        model: Unwrapped model.
        decay: Weight of the old average, in [0, 1); the paper's is 0.9999.
    """
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    ema.module.eval().requires_grad_(False)
    ema.n_averaged += 1  # the copy counts as the first average: torch would overwrite it with the weights of step one
    return ema


class LocalShards(torch.nn.Module):
    """This process's part of a model that is split. An average is taken element by element, so the parts suffice."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        shards = [local_part(parameter).detach() for parameter in model.parameters()]
        self.shards = torch.nn.ParameterList(torch.nn.Parameter(shard, requires_grad=False) for shard in shards)


class EMA:
    """Averages of one model, each with its own decay; previews and the pipeline use the first.

    Args:
        model: Unwrapped model, whole or split over the processes.
        decays: Weights of the old average, in [0, 1).
    """

    def __init__(self, model: torch.nn.Module, decays: Sequence[float]) -> None:
        self.is_sharded = is_sharded(model)
        self.averages = {decay: make_ema(LocalShards(model) if self.is_sharded else model, decay) for decay in decays}

    @property
    def module(self) -> Any:
        """First average as a model, if the model is not split."""
        assert not self.is_sharded
        return next(iter(self.averages.values())).module

    def update(self, model: torch.nn.Module) -> None:
        """Move each average towards the model's weights by one step."""
        source = LocalShards(model) if self.is_sharded else model
        for average in self.averages.values():
            average.update_parameters(source)

    def gather(self, decay: float, model: torch.nn.Module) -> dict[str, Tensor]:
        """Return a whole average, by the names of the model's parameters. Every process has to call this."""
        parts = self._parts(decay, model)
        return {name: make_whole(parameter, part).detach().cpu() for (name, parameter), part in parts}

    @torch.no_grad()
    def set(self, decay: float, model: torch.nn.Module, whole: dict[str, Tensor]) -> None:
        """Overwrite an average with one that every process holds whole."""
        for (name, parameter), part in self._parts(decay, model):
            part.copy_(cut_part(parameter, whole[name].to(part.device)))

    def _parts(self, decay: float, model: torch.nn.Module) -> list[tuple[tuple[str, Tensor], Tensor]]:
        return list(zip(model.named_parameters(), self.averages[decay].module.parameters(), strict=True))
