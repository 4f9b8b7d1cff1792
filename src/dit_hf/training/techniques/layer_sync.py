"""LayerSync: align the tokens after an early block with those after a later block of the same model (arXiv 2510.12581).

Later blocks represent an image better, so they serve as the target of earlier ones, and no encoder is needed. With the
tokens h_k after k blocks, Haghighi et al. 2025 (section 3) add to the loss, for each image,

    weight * (1 - mean over the patches n of cos(h_k[n], h_m[n])),    k < m

through whose second argument no gradient flows. (The constant is ours: it changes no gradient, and the term is then
never negative.) The paper aligns block 8 of XL/2's 28 with block 16, with weight 0.2. In an in-context model, the
tokens of timestep and label take no part.

Legend: B samples, N patches, S tokens of a block, D width of the model.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor

from ...diffusion import Objective
from ..setting_row import row
from .block_calls import check_trained, recorded_blocks
from .technique import ForwardPass, Technique


@dataclass
class LayerSyncSettings:
    """The settings of LayerSync."""

    layer_sync_weight: float | None = row(
        None,
        "Weight of LayerSync in the loss, which aligns tokens after an early block with those after a later one "
        "(arXiv 2510.12581, which uses 0.2). Default: no alignment.",
        at_least=0.0,
        card="weight of LayerSync",
    )
    layer_sync_block: int | None = row(
        None,
        "Number of blocks that tokens have passed when they are aligned. Default: 2/7 of the blocks, which is 8 in XL.",
        at_least=1,
        needs="layer_sync_weight",
    )
    layer_sync_target: int | None = row(
        None,
        "Number of blocks that the tokens have passed which they are aligned with, above layer_sync_block. Default: "
        "4/7 of the blocks, which is 16 in XL.",
        at_least=2,
        needs="layer_sync_weight",
    )


class LayerSync(Technique):
    """Pull the tokens after an early block to those after a later block.

    Args:
        weight: Weight of the term.
        num_patches: Number N of patches of an image.
        block: Number of blocks that the early tokens have passed.
        target: Number of blocks that the later tokens have passed.
    """

    Settings = LayerSyncSettings

    def __init__(self, weight: float, num_patches: int, block: int, target: int) -> None:
        self.weight, self.num_patches, self.block, self.target = weight, num_patches, block, target
        self.tokens: dict[int, Tensor] = {}  # after a block, by its number from 0, of the newest forward

    @classmethod
    def build(cls, settings: Any, objective: Objective, model: Any) -> Self | None:
        if settings.layer_sync_weight is None:
            return None
        depth, (rows, columns) = model.config.num_hidden_layers, model.config.grid_height_width
        block = round(depth * 2 / 7) if settings.layer_sync_block is None else settings.layer_sync_block
        target = round(depth * 4 / 7) if settings.layer_sync_target is None else settings.layer_sync_target
        if not 1 <= block < target <= depth:
            raise ValueError(
                f"layer_sync_block={block} and layer_sync_target={target} are no two blocks of {depth}, the first "
                f"before the second: set both to numbers from 1 to {depth}"
            )
        check_trained(model, "layer_sync_block", block)
        return cls(settings.layer_sync_weight, rows * columns, block, target)

    def around(self, model: Any, forward: ForwardPass) -> AbstractContextManager[None]:
        self.tokens = {}
        return recorded_blocks(model, (self.block - 1, self.target - 1), self.tokens)

    def losses(self, forward: ForwardPass) -> dict[str, Tensor]:
        early, late = (self.tokens.pop(number - 1)[:, : self.num_patches] for number in (self.block, self.target))
        cosine = F.cosine_similarity(early.float(), late.detach().float(), dim=-1)  # (B, N)
        return {"layer_sync": self.weight * (1 - cosine.mean(1))}
