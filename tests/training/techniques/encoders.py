"""Encoders of the tests, named as a user names his own."""

import os
from pathlib import Path

import torch
from torch import Tensor


class MeanColour(torch.nn.Module):
    """The mean colour of each 8 x 8 square, with a weight that must be neither trained nor saved."""

    num_features, stride = 3, 8

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return self.one * torch.nn.functional.avg_pool2d(images, self.stride)


class Projected(MeanColour):
    """Mean colours through a matrix, whose product has the precision of the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = torch.nn.Linear(3, 3, bias=False)
        torch.nn.init.orthogonal_(self.matrix.weight)

    def forward(self, images: Tensor) -> Tensor:
        product = self.matrix(super().forward(images).movedim(1, -1))
        Path(os.environ["SEEN_DTYPE"]).write_text(str(product.dtype))
        return product.movedim(-1, 1)


class Wrong(MeanColour):
    """States more features than it returns."""

    num_features = 5


class Bare:
    """Has none of the members of an encoder."""
