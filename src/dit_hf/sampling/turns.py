"""Taking turns: a lock for each module that changes while it is used, for pipelines that sample in several threads."""

import threading
from weakref import WeakKeyDictionary

from torch import nn

_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def lock_of(module: nn.Module) -> threading.RLock:
    """Return the lock of a module, the same one for each pipeline that shares the module."""
    return _LOCKS.setdefault(module, threading.RLock())
