"""A technique of the tests: guess the mean colour of an image from the tokens of the first block.

It has a module, needs the images, draws a number for each sample, and hooks into the model.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dit_hf.diffusion import Objective
from dit_hf.training.batch import LatentBatch
from dit_hf.training.setting_row import row
from dit_hf.training.techniques import ForwardPass, Technique


@dataclass
class ColourSettings:
    colour_weight: float | None = row(
        None, "Weight of the error of the colour.", at_least=0.0, card="weight of colours"
    )


class Colour(Technique):
    Settings = ColourSettings
    extras = frozenset({"images"})

    def __init__(self, width: int, weight: float) -> None:
        self.module, self.weight = torch.nn.Linear(width, 3), weight

    @classmethod
    def build(cls, settings: Any, objective: Objective, model: Any) -> Self | None:
        return None if settings.colour_weight is None else cls(model.config.hidden_size, settings.colour_weight)

    def draw(self, batch: LatentBatch, generators: Sequence[np.random.Generator]) -> Tensor:
        uniform = [generator.random(dtype=np.float32) for generator in generators]
        return torch.tensor(uniform, device=batch.x_0.device)  # (B,)

    @contextlib.contextmanager
    def around(self, model: Any, forward: ForwardPass) -> Iterator[None]:
        hook = model.blocks[0].register_forward_hook(lambda block, inputs, output: setattr(self, "tokens", output))
        yield
        hook.remove()

    def losses(self, forward: ForwardPass) -> dict[str, Tensor]:
        colour = forward.batch.extras["images"].mean((2, 3))  # (B, 3)
        guess = self.network(self.tokens.mean(1))  # (B, 3)
        return {"colour": self.weight * forward.own_draws * ((guess - colour) ** 2).mean(1)}  # (B,)
