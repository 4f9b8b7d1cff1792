"""A technique of the tests: guess the mean colour of an image from the tokens of the first block.

It has a module, needs the images, draws a number for each sample, and reads the model's tokens.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dit_hf.diffusion import Objective
from dit_hf.training.batch import LatentBatch
from dit_hf.training.setting_row import row
from dit_hf.training.techniques import ForwardPass, Technique, recorded_blocks


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

    def around(self, model: Any, forward: ForwardPass) -> AbstractContextManager[None]:
        self.tokens: dict[int, Tensor] = {}
        return recorded_blocks(model, [0], self.tokens)

    def losses(self, forward: ForwardPass) -> dict[str, Tensor]:
        colour = forward.batch.extras["images"].mean((2, 3))  # (B, 3)
        guess = self.network(self.tokens[0].mean(1))  # (B, 3)
        return {"colour": self.weight * forward.own_draws * ((guess - colour) ** 2).mean(1)}  # (B,)
