"""Change or read what a block of the model takes and returns, for as long as one forward lasts.

A forward hook is not enough for this: `torch.compile` makes hooks a part of the compiled block, and blocks share one
compiled graph, so that a hook of one block would be missed, or would see the tensors of an earlier step. A changed
call stands around the block, outside of what is compiled or computed again by gradient checkpointing.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

# Takes the block, its tokens (B, S, D) and its other arguments, and returns the tokens after the block.
BlockCall = Callable[..., Tensor]


class _Changed(nn.Module):
    def __init__(self, block: nn.Module, call: BlockCall) -> None:
        super().__init__()
        self.block, self.call = block, call

    def forward(self, hidden_states: Tensor, *arguments: Any) -> Tensor:
        return self.call(self.block, hidden_states, *arguments)


@contextlib.contextmanager
def changed_blocks(model: Any, calls: Mapping[int, BlockCall]) -> Iterator[None]:
    """Return a context in which the model calls functions in place of its blocks.

    Contexts may be nested: the function of the inner context then calls that of the outer one as its block.

    Args:
        model: The `DiTModel` without the wrapper of Accelerate.
        calls: Function by the index of the block, counted from 0. It is called as
            `call(block, hidden_states, embedding, derived, positions)`, where the arguments after the block are those
            of the block's forward, and has to call the block itself.
    """
    before = {index: model.blocks[index] for index in calls}
    try:
        for index, call in calls.items():
            model.blocks[index] = _Changed(before[index], call)
        yield
    finally:
        for index, block in before.items():
            model.blocks[index] = block
