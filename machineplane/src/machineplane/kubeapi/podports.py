"""What both forms of port-forward share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio
from attrs import define

from .backend import Backend

#: Seconds that a whole socket waits for one connection that takes nothing; then that is broken off, for others' sake.
STALL: Final = 30.0


@define
class Pod:
    """Where connections go."""

    backend: Backend
    namespace: str
    name: str

    @asynccontextmanager
    async def connect(self, port: int) -> AsyncIterator[trio.abc.HalfCloseableStream]:
        """A connection. Raises SessionRefused."""
        async with self.backend.forward(self.namespace, self.name, port) as stream:
            yield stream


def text_of(error: BaseException) -> str:
    """What the first error in a group says."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)
