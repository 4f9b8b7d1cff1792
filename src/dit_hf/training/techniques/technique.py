"""What a technique may change of a training, and how the loop applies it, whatever the objective is.

A technique is one file: a dataclass of settings and a subclass of `Technique` that overrides the methods it needs. It
joins a step in this order:

    draw      its random numbers, one generator per sample
    around    a context around the model's forward, in which blocks may be read or changed
    weigh     a factor on the squared error of each sample
    losses    terms to add, for example from a module of its own that the optimiser trains as well
"""

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ...diffusion import Objective
from ..batch import Draws, LatentBatch


@dataclass
class ForwardPass:
    """What a technique sees of one forward.

    Args:
        batch: Latents, labels, positions, and the extras that the technique needs.
        draws: Timesteps, noise and dropped labels.
        own_draws: What the technique's `draw` has returned.
        step: Number of optimiser steps done before this forward, since the start of the training.
    """

    batch: LatentBatch
    draws: Draws
    own_draws: Any
    step: int = 0


class Technique:
    """A technique of training; each method does nothing here.

    Attributes:
        Settings: Dataclass of its settings, each a `row`. The defaults leave the technique off.
        extras: Names of what a batch must carry besides latents and labels, keys of `batches.EXTRAS`.
        module: Module of its own, if it has one. The optimiser trains it and checkpoints hold it; it is not averaged,
            and the pipeline does not contain it.
        network: The module as Accelerate has wrapped it, to be called in `losses`, so that processes share gradients.
    """

    Settings: ClassVar[type]
    extras: ClassVar[frozenset[str]] = frozenset()
    module: torch.nn.Module | None = None
    network: torch.nn.Module | None = None

    @classmethod
    def build(cls, settings: Any, objective: Objective, model: Any) -> Self | None:
        """Return the technique, or None if its settings leave it off.

        Args:
            settings: An instance of `Settings`.
            objective: Objective of the training.
            model: The `DiTModel`, on the CPU, whose configuration may size a module.

        Raises:
            ValueError: If the technique does not fit the objective or the model.
        """
        raise NotImplementedError

    def draw(self, batch: LatentBatch, generators: Sequence[np.random.Generator]) -> Any:
        """Draw the random numbers of a batch.

        Args:
            batch: Batch of B samples.
            generators: One generator per sample, which depends on (seed, epoch, offset) and the technique alone.
        """
        return None

    def around(self, model: Any, forward: ForwardPass) -> AbstractContextManager[None]:
        """Return a context around the model's forward, in which `changed_blocks` may read or change the blocks.

        Args:
            model: The `DiTModel` without the wrapper of Accelerate.
            forward: What the technique sees of this forward.
        """
        return contextlib.nullcontext()

    def weigh(self, forward: ForwardPass) -> Tensor | None:
        """Return the factor of each sample's squared error, `mse` of the objective, (B,); None for no change."""
        return None

    def losses(self, forward: ForwardPass) -> dict[str, Tensor]:
        """Return terms to add to each sample's loss, (B,) each, by the name that metrics give them."""
        return {}


class Techniques:
    """The techniques of one training, applied in their order.

    Args:
        active: Techniques by name.
        seed: Seed of the training.
    """

    def __init__(self, active: Mapping[str, Technique] | None = None, seed: int = 0) -> None:
        self.active, self.seed = dict(active or {}), seed

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        """Modules of the techniques that have one, by name."""
        return {name: each.module for name, each in self.active.items() if each.module is not None}

    @property
    def that_change_blocks(self) -> list[str]:
        """Names of the techniques that read or change blocks while the model runs."""
        return [name for name, each in self.active.items() if type(each).around is not Technique.around]

    @property
    def networks(self) -> list[torch.nn.Module]:
        """The same modules as Accelerate has wrapped them."""
        return [each.network for each in self.active.values() if each.network is not None]

    @property
    def extras(self) -> dict[str, list[str]]:
        """What batches must carry: name -> techniques that need it."""
        names = sorted({extra for each in self.active.values() for extra in each.extras})
        return {extra: [name for name, each in self.active.items() if extra in each.extras] for extra in names}

    def apply(
        self,
        compute: Callable[[], dict[str, Tensor]],
        model: torch.nn.Module,
        batch: LatentBatch,
        draws: Draws,
        step: int = 0,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch with every technique.

        Args:
            compute: Function that calls the objective, which calls the model.
            model: Model without the wrapper of Accelerate.
            batch: Batch of B samples.
            draws: Random part of the objective's loss.
            step: Number of optimiser steps done before.

        Returns:
            The objective's losses, (B,) each, with the techniques' terms added. `mse` is not weighed, so that it can be
            compared; `loss`, which is trained on, is.
        """
        forwards = {
            name: ForwardPass(batch, draws, each.draw(batch, list(self._generators(name, batch))), step)
            for name, each in self.active.items()
        }
        with contextlib.ExitStack() as stack:
            for name, each in self.active.items():
                stack.enter_context(each.around(model, forwards[name]))
            losses = compute()
        terms = {term: values for term, values in losses.items() if term != "loss"}  # whose sum is the loss
        for name, each in self.active.items():
            if (weight := each.weigh(forwards[name])) is not None:
                terms["mse"] = weight * terms["mse"]
        for name, each in self.active.items():
            added = each.losses(forwards[name])
            if taken := added.keys() & losses.keys():
                raise ValueError(f"the technique {name} adds a loss {min(taken)!r}, which exists already: rename it")
            losses, terms = {**losses, **added}, {**terms, **added}
        return {**losses, "loss": reduce(add, terms.values())} if self.active else losses

    def _generators(self, name: str, batch: LatentBatch) -> Iterator[np.random.Generator]:
        for position in batch.positions:
            yield np.random.default_rng([self.seed, 7, zlib.crc32(name.encode()), *position])
