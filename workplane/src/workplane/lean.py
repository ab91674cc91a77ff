"""Starting fast and small: there is an agent in every pod."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

_TLS: Final = {
    "CERT_NONE": 0,
    "CERT_OPTIONAL": 1,
    "CERT_REQUIRED": 2,
}  # equal to those of the module, which is not loaded for them


class Deferred(ModuleType):
    """A module that is loaded when something of it is first used, besides what ``known`` has.

    Not `importlib.util.LazyLoader`: before Python 3.12 the second ``import`` of its modules loads them.
    """

    def __init__(self, name: str, known: Mapping[str, object] | None = None) -> None:
        super().__init__(name)
        self.__dict__.update(known or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for module in (self.__name__, self.__name__.partition(".")[0]):  # its package may be deferred as well
            if isinstance(sys.modules.get(module), Deferred):
                del sys.modules[module]
        return getattr(importlib.import_module(self.__name__), name)


def deferred() -> tuple[Deferred, ...]:
    """What libraries import for others than us.

    structlog has asynchronous loggers (asyncio), aioquic trusts authorities (the next three; ours are judged by their
    passes), trio and probes over HTTPS use OpenSSL: 9 MiB and 85 ms together.
    """
    authorities = (
        Deferred("certifi"),
        Deferred("service_identity"),
        Deferred("OpenSSL", {"crypto": Deferred("OpenSSL.crypto")}),
    )
    return (Deferred("asyncio"), *authorities, Deferred("ssl", _TLS))


@contextmanager
def importing() -> Iterator[None]:
    """For the imports of a program: nothing of them is garbage, nor ever looked through for it."""
    for module in deferred():
        sys.modules.setdefault(module.__name__, module)
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
