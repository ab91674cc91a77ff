"""Starting fast and small: there is an agent in every pod."""

from __future__ import annotations

import gc
import importlib
import linecache
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
_CODE_FLAGS: Final = {
    1: "OPTIMIZED",
    2: "NEWLOCALS",
    4: "VARARGS",
    8: "VARKEYWORDS",
    16: "NESTED",
    32: "GENERATOR",
    64: "NOFREE",
    128: "COROUTINE",
    256: "ITERABLE_COROUTINE",
    512: "ASYNC_GENERATOR",
}  # likewise
_YOUNG: Final = 10_000
"""Objects between two looks for garbage: attrs makes each class twice, and the first one is a cycle (1.7 MiB in all)."""
_NEVER: Final = 1 << 30


class Deferred(ModuleType):
    """A module that is loaded when something of it is first used, besides what ``known`` has.

    Not `importlib.util.LazyLoader`: before Python 3.12 the second ``import`` of its modules loads them.
    """

    def __init__(self, name: str, known: Mapping[str, object] | None = None) -> None:
        super().__init__(name)
        self._known = known or {}
        self.__dict__.update(self._known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for module in (self.__name__, self.__name__.partition(".")[0]):  # its package may be deferred as well
            if isinstance(sys.modules.get(module), Deferred):
                del sys.modules[module]
        return getattr(importlib.import_module(self.__name__), name)

    def pretend(self) -> None:
        """Be found by whoever imports it, with what is known."""
        self.__dict__.update(self._known)
        sys.modules[self.__name__] = self

    def forget(self) -> None:
        """Be the real module for whoever holds this one, and for whoever imports it."""
        for name in self._known:
            self.__dict__.pop(name, None)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


class _NoSources(dict[str, Any]):
    """For `linecache.cache`, where attrs and cattrs leave the source of each method that they make, for debuggers."""

    def setdefault(self, key: str, default: Any = None) -> Any:
        return default

    def __setitem__(self, key: str, value: Any) -> None:
        pass


def deferred() -> tuple[Deferred, ...]:
    """What libraries import for others than us, or for later.

    structlog has asynchronous loggers (asyncio), aioquic trusts authorities (the next three; ours are judged by their
    passes), trio and probes over HTTPS use OpenSSL: 9 MiB and 85 ms together. `inspect` can take code
    apart (dis). dnslib is for the first question of an app, tempfile for who has something to store.
    """
    authorities = (
        Deferred("certifi"),
        Deferred("service_identity"),
        Deferred("OpenSSL", {"crypto": Deferred("OpenSSL.crypto")}),
    )
    code = Deferred("dis", {"COMPILER_FLAG_NAMES": _CODE_FLAGS})
    later = map(Deferred, ("asyncio", "dnslib", "idna", "subprocess", "tempfile"))
    return (*later, *authorities, Deferred("ssl", _TLS), code)


def _no_library(name: str) -> None:
    raise OSError(f"{name}: ctypes is not loaded")


def _no_parser(text: str) -> None:
    raise ValueError(f"ast is not loaded: {text}")


def _parseaddr(address: str) -> tuple[str, str]:
    from email.utils import parseaddr  # the real one: whoever calls does so after the imports

    return parseaddr(address)


_NO_LIBRARIES: Final = Deferred("ctypes.util", {"find_library": lambda name: None})
STAND_INS: Final = (
    Deferred("ctypes", {"util": _NO_LIBRARIES, "CDLL": _no_library}),
    _NO_LIBRARIES,
    Deferred("email.utils", {"parseaddr": _parseaddr}),
    Deferred("ast", {"parse": _no_parser, "NodeVisitor": object}),
    Deferred("gettext", {"gettext": str, "ngettext": lambda one, many, count: one if count == 1 else many}),
)
"""Modules that are less than they should be, while a program is imported, and themselves again after that.

trio names its threads by ctypes, and looks for the C library by subprocesses: its threads have no names here. cryptography
wants to read addresses of mail, with a calendar. `inspect` parses (ast) sources of classes, which it cannot from then on,
and signatures of built-in converters, for which attrs asks, and does without. click speaks the user's language, which there
are no texts for.
"""


@contextmanager
def importing() -> Iterator[None]:
    """For the imports of a program: what is left of them is never looked through for garbage again."""
    for module in deferred():
        sys.modules.setdefault(module.__name__, module)
    given = [module for module in STAND_INS if module.__name__ not in sys.modules]
    for module in given:
        module.pretend()
    sources, linecache.cache = linecache.cache, _NoSources()
    thresholds = gc.get_threshold()
    gc.set_threshold(_YOUNG, _NEVER, _NEVER)
    try:
        yield
    finally:
        gc.collect(0)
        gc.freeze()
        gc.set_threshold(*thresholds)
        linecache.cache = sources
        for module in given:
            module.forget()
