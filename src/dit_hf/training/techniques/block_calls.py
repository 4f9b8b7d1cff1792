"""Change or read what a block of the model takes and returns, for as long as one forward lasts.

A forward hook is not enough for this: `torch.compile` makes hooks a part of the compiled block, and blocks share one
compiled graph, so that a hook of one block would be missed, or would see the tensors of an earlier step. A changed
call stands around the block, outside of what is compiled or computed again by gradient checkpointing.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

# Takes the block and the arguments of its forward, and returns what the block would return.
BlockCall = Callable[..., Tensor | tuple[Tensor, Tensor]]


class _Changed(nn.Module):
    def __init__(self, block: nn.Module, call: BlockCall) -> None:
        super().__init__()
        self.block, self.call = block, call

    def forward(self, *arguments: Any) -> Tensor | tuple[Tensor, Tensor]:
        return self.call(self.block, *arguments)


@contextlib.contextmanager
def changed_blocks(model: Any, calls: Mapping[int, BlockCall]) -> Iterator[None]:
    """Return a context in which the model calls functions in place of its blocks.

    Contexts may be nested: the function of the inner context then calls that of the outer one as its block.

    Args:
        model: The `DiTModel` without the wrapper of Accelerate.
        calls: Function by the index of the block, counted from 0. It is called with the block, which it has to call
            itself, and with the arguments of the forward of `DiTBlock`.
    """
    before = {index: model.blocks[index] for index in calls}
    try:
        for index, call in calls.items():
            model.blocks[index] = _Changed(before[index], call)
        yield
    finally:
        for index, block in before.items():
            model.blocks[index] = block


def recorded_blocks(model: Any, indices: Iterable[int], tokens: dict[int, Tensor]) -> AbstractContextManager[None]:
    """Return a context in which the tokens after some blocks are recorded.

    Args:
        model: The `DiTModel` without the wrapper of Accelerate.
        indices: Numbers of the blocks, counted from 0.
        tokens: Dictionary that receives the tokens (B, S, D) after each block, by its number.
    """

    def record(index: int) -> BlockCall:
        def call(block: nn.Module, *arguments: Any) -> Tensor | tuple[Tensor, Tensor]:
            answer = block(*arguments)
            tokens[index] = stream(answer)
            return answer

        return call

    return changed_blocks(model, {index: record(index) for index in indices})


def check_trained(model: Any, name: str, num_blocks: int) -> None:
    """Refuse to align tokens that frozen blocks compute, since no block could learn from it.

    Args:
        model: The `DiTModel`, whose frozen part is frozen already.
        name: Setting that says after which block the tokens are aligned.
        num_blocks: Its value, the number of blocks that the tokens have passed.

    Raises:
        ValueError: If all of these blocks are frozen.
    """
    if not any(weight.requires_grad for block in model.blocks[:num_blocks] for weight in block.parameters()):
        first = next(
            (k for k, block in enumerate(model.blocks) if any(w.requires_grad for w in block.parameters())), None
        )
        remedy = "leave the alignment out" if first is None else f"set it to {first + 1} or more, or train more blocks"
        raise ValueError(f"{name}={num_blocks} aligns tokens that frozen blocks compute, which cannot learn: {remedy}")


def stream(answer: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Return the tokens (B, S, D) of what a block returns, which may be a pair with the first block's values."""
    return answer[0] if isinstance(answer, tuple) else answer
