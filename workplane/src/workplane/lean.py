"""Starting fast and small: there is an agent in every pod."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

DEFERRED: Final = ("asyncio",)
"""Modules that libraries import for others than us: structlog does, for its asynchronous loggers; 3.4 MiB, 25 ms."""


class Deferred(ModuleType):
    """A module that is loaded when something of it is first used, which is never here.

    Not `importlib.util.LazyLoader`: before Python 3.12 the second ``import`` of its modules loads them.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def importing() -> Iterator[None]:
    """For the imports of a program: nothing of them is garbage, nor ever looked through for it."""
    for name in DEFERRED:
        sys.modules.setdefault(name, Deferred(name))
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
