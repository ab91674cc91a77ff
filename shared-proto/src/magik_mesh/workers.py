"""The tasks that serve one connection's calls.

A worker takes one stream after the other. Tasks are not started for calls but when all workers are at work, so a
connection has as many as calls were under way at once; of those without work all but a few end. A call that is there
as a whole, and whose handler does not wait, costs no task switch beside the first of its batch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import define

from magik_mesh.streams import STREAM_ERRORS
from magik_mesh.tls import Admitted
from trio_quic import Connection, Stream

# Workers that wait for the next call: a guess at how many calls of one peer usually wait at the same time.
MAX_IDLE = 8


@define(eq=False)
class Workers:
    """See the module's text. `serve` serves one stream to its end in a scope that it may cancel for that; it raises
    nothing but cancellation.
    """

    connection: Connection[Admitted]
    serve: Callable[[Stream, trio.CancelScope], Awaitable[None]]
    nursery: trio.Nursery
    idle: int = 0

    async def work(self) -> None:
        """Serve until the connection ends, or there are idle workers enough."""
        try:
            while self.idle < MAX_IDLE:
                with trio.CancelScope() as scope:
                    await self._work_in(scope)
        except STREAM_ERRORS:
            return

    async def _work_in(self, scope: trio.CancelScope) -> None:
        """One scope serves for many calls, until it is cancelled for one: a scope for each would cost as much as a switch
        of tasks.
        """
        while self.idle < MAX_IDLE and not scope.cancel_called:
            stream = await self._next()
            if not self.idle:
                self.nursery.start_soon(self.work)
            await self.serve(stream, scope)

    async def _next(self) -> Stream:
        try:
            return self.connection.accept_stream_nowait()
        except trio.WouldBlock:
            self.idle += 1
        try:
            return await self.connection.accept_stream()
        finally:
            self.idle -= 1
