"""TREAD: let a random share of the tokens skip the middle blocks, which then cost less (arXiv 2501.04765).

Before the first block of the route, each sample draws the tokens that go on. The others wait, and come back unchanged
after the last block of the route, at their own places. With a share of one half, the blocks of the route see half of
the tokens. The paper routes half of the tokens around the blocks 2 to 24 of XL/2's 28, counted from 0. The tokens of
the timestep and the label, which an in-context model has, always go on.

Nothing else changes: previews, evaluation and sampling use all tokens in all blocks.

Legend: B samples, N patches, S tokens of a block, M tokens that go on, D width.
"""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...diffusion import Objective
from ..batch import LatentBatch
from ..setting_row import row
from .block_calls import changed_blocks
from .technique import ForwardPass, Technique


@dataclass
class TreadSettings:
    """The settings of TREAD."""

    tread_share: float | None = row(
        None,
        "Share of the tokens that skips the middle blocks while training (TREAD, arXiv 2501.04765, which uses 0.5). "
        "Meant for 256 tokens and more. Default: no token skips a block.",
        at_least=0.01,
        below=1.0,
        card="share of tokens routed by TREAD",
    )
    tread_first_block: int = row(
        2, "Number of the first block that routed tokens skip, counted from 0.", at_least=0, needs="tread_share"
    )
    tread_last_block: int | None = row(
        None,
        "Number of the last block that routed tokens skip, counted from 0. Default: the number of blocks less 4, which "
        "is 24 in XL.",
        at_least=0,
        needs="tread_share",
    )
    tread_steps: int | None = row(
        None,
        "Number of steps with routing; the steps after it train all blocks on all tokens. Default: all steps.",
        at_least=1,
        needs="tread_share",
    )


class Tread(Technique):
    """Route a share of the tokens past the middle blocks.

    Args:
        share: Share of the tokens that is routed, between 0 and 1.
        num_patches: Number N of patches of an image.
        first_block: Number of the first block that is skipped, counted from 0.
        last_block: Number of the last block that is skipped.
        num_steps: Number of steps with routing; None for all.

    Raises:
        ValueError: If the share routes no token or all of them.
    """

    Settings = TreadSettings

    def __init__(
        self, share: float, num_patches: int, first_block: int, last_block: int, num_steps: int | None = None
    ) -> None:
        self.num_patches, self.num_kept = num_patches, num_patches - round(share * num_patches)
        if not 0 < self.num_kept < num_patches:
            which = "all" if self.num_kept == 0 else "none"
            raise ValueError(
                f"tread_share={share} routes {which} of the {num_patches} tokens of an image: choose a share between "
                f"{1 / num_patches:.3f} and {1 - 1 / num_patches:.3f}"
            )
        self.route, self.num_steps = range(first_block, last_block + 1), num_steps

    @classmethod
    def build(cls, settings: Any, objective: Objective, model: Any) -> Self | None:
        if settings.tread_share is None:
            return None
        depth, (rows, columns) = model.config.num_hidden_layers, model.config.grid_height_width
        first, last = settings.tread_first_block, settings.tread_last_block
        last = depth - 4 if last is None else last
        if not first <= last < depth:
            raise ValueError(
                f"tread_first_block={first} and tread_last_block={last} are no route through {depth} blocks: set both "
                f"to numbers from 0 to {depth - 1}, the first not above the last"
            )
        return cls(settings.tread_share, rows * columns, first, last, settings.tread_steps)

    def draw(self, batch: LatentBatch, generators: Sequence[np.random.Generator]) -> Tensor:
        """Return the numbers of the patches that go on through the route, in ascending order, (B, M)."""
        kept = [np.sort(rng.permutation(self.num_patches)[: self.num_kept]) for rng in generators]
        return torch.from_numpy(np.stack(kept)).to(batch.x_0.device)

    def around(self, model: Any, forward: ForwardPass) -> AbstractContextManager[None]:
        if self.num_steps is not None and forward.step >= self.num_steps:
            return contextlib.nullcontext()
        kept: Tensor = forward.own_draws  # (B, M)

        def call(block: nn.Module, x: Tensor, *arguments: Any) -> Tensor:
            return route(block, x, self._with_conditioning(kept, x.shape[1]), *arguments)

        return changed_blocks(model, dict.fromkeys(self.route, call))

    def _with_conditioning(self, kept: Tensor, num_tokens: int) -> Tensor:
        """Add the tokens after the patches, which an in-context model has, to those that go on."""
        others = torch.arange(self.num_patches, num_tokens, device=kept.device)
        return torch.cat([kept, others.expand(len(kept), -1)], dim=1)


def route(block: nn.Module, x: Tensor, kept: Tensor, *arguments: Any) -> Tensor:
    """Let a block see some tokens only, and return all tokens, of which the others are unchanged.

    Every block of the route selects the same tokens, so that whatever else reads the tokens finds all of them.

    Args:
        block: Block of the model.
        x: Tokens before the block, (B, S, D).
        kept: Numbers of the tokens that the block sees, (B, M).
        *arguments: Other arguments of the block.
    """
    index = kept[..., None].expand(-1, -1, x.shape[-1])  # (B, M, D)
    seen = block(x.gather(1, index), *arguments)  # (B, M, D)
    return x.scatter(1, index, seen)  # (B, S, D)
