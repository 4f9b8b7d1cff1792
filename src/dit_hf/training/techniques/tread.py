"""TREAD: let a random share of the tokens skip the middle blocks, which then cost less (arXiv 2501.04765).

Before the first block of the route, each sample draws the tokens that go on. The others wait, and come back unchanged
after the last block of the route, at their own places. With a share of one half, the blocks of the route see half of
the tokens. The paper routes half of the tokens around the blocks 2 to 24 of XL/2's 28, counted from 0. The tokens of
the timestep and the label, which an in-context model has, always go on.

Nothing else changes: previews, evaluation and sampling use all tokens in all blocks.

Legend: B samples, N patches, S tokens of a block, M tokens that go on, D width.
"""

import contextlib
import functools
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
from .block_calls import changed_blocks, stream
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
        if model.config.value_residual and first == 0:
            raise ValueError(
                "tread_first_block=0 does not fit value_residual, which needs the values of all tokens in block 0: set "
                "it to 1 or more"
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
        return changed_blocks(model, dict.fromkeys(self.route, functools.partial(pass_kept, kept, self.num_patches)))


def pass_kept(
    kept: Tensor,
    num_patches: int,
    block: nn.Module,
    x: Tensor,
    embedding: Tensor,
    derived: Tensor | None = None,
    positions: Tensor | None = None,
    first_values: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Let a block see some patches only, and return the tokens of all, of which the others are unchanged.

    Every block of the route selects the same patches, so that whatever else reads the tokens finds all of them.

    Args:
        kept: Numbers of the patches that the block sees, (B, M).
        num_patches: Number N of patches; the block sees every token after them.
        block: Block of the model.
        x: Tokens before the block, (B, S, D). This and what follows are the arguments of the block.
        embedding: Embedding of the conditioning.
        derived: What the block derives from the embedding.
        positions: Rows of the rotary embedding, (1, N, d).
        first_values: Values of the first block, (B, S, D).
    """
    others = torch.arange(num_patches, x.shape[1], device=kept.device)
    tokens = torch.cat([kept, others.expand(len(kept), -1)], dim=1)  # (B, M + K)
    kept_positions = None if positions is None else take(positions, kept)  # (B, M, d)
    kept_values = None if first_values is None else take(first_values, tokens)  # (B, M + K, D)
    answer = block(take(x, tokens), embedding, derived, kept_positions, kept_values)
    seen = stream(answer)  # (B, M + K, D)
    x = x.scatter(1, tokens[..., None].expand_as(seen), seen)  # (B, S, D)
    return x if first_values is None else (x, first_values)


def take(tokens: Tensor, places: Tensor) -> Tensor:
    """Return the tokens (B, M, D) at the places (B, M) of tokens (B, S, D), or of (1, S, D) that all samples share."""
    tokens = tokens.expand(len(places), -1, -1)
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))
