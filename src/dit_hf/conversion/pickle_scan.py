"""A look at a pickle before it is read: nothing is executed, and what would take endless memory or time is refused.

The opcodes are followed on a stack that holds sizes in place of objects. Tuples, and objects made of tuples, are what
matters: as a key of a dictionary a tuple is hashed with all that it holds, so that a tuple of two equal tuples of two
equal tuples, and so on 60 times, takes for ever, and one in one in one, a million times, ends the process.
"""

import pickletools
from collections.abc import Iterator

from .stored import CheckpointError

NEVER_WRITTEN = {"INST", "OBJ", "EXT1", "EXT2", "EXT4"}  # by torch.save: they find classes in other ways
STORES, FETCHES = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
HOLDERS = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
HOLDERS |= {"BINPERSID"}  # objects that can be keys, and that are as large as what they are made of
MAX_TUPLE = 10_000  # objects in a tuple, and in the tuples in it; the state of Python's generator has 625

Stack = list[int | None]  # size of each object; None for a mark, from which on objects are collected


def check_pickle(pickled: bytes) -> None:
    """Refuse a pickle that torch.save never writes, or that would take endless memory or time.

    Args:
        pickled: Content of `data.pkl`.

    Raises:
        CheckpointError: If the pickle is refused; the message says why.
    """
    stack: Stack = []
    memo: dict[int, int] = {}
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in NEVER_WRITTEN:
            raise CheckpointError(f"its pickle uses {opcode.name}, which torch.save never writes; nothing was executed")
        if opcode.name in STORES or opcode.name == "MEMOIZE":
            number = len(memo) if argument is None else int(argument)
            if number > len(pickled):  # the reader makes room for all numbers up to this one
                raise CheckpointError(f"its pickle numbers an object {number}, and has {len(pickled)} bytes only")
            memo[number] = stack[-1] or 1
            continue
        taken = sum(_take(opcode, stack))
        size = taken + 1 if opcode.name in HOLDERS else 1
        if opcode.name in FETCHES and argument is not None:
            size = memo[int(argument)]
        if size > MAX_TUPLE:
            raise CheckpointError(f"its pickle has a tuple of more than {MAX_TUPLE} objects, which no weights need")
        stack.extend(None if kind is pickletools.markobject else size for kind in opcode.stack_after)
        if opcode.name == "DUP":
            stack[-2:] = [taken, taken]


def _take(opcode: pickletools.OpcodeInfo, stack: Stack) -> Iterator[int]:
    """Take from the stack what an opcode uses, and yield the sizes."""
    count = len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before or (opcode.name == "POP" and stack[-1] is None):
        while (size := stack.pop()) is not None:
            yield size
        count = opcode.stack_before.index(pickletools.markobject) if opcode.name != "POP" else 0
    for _ in range(count):
        yield stack.pop() or 1
