"""Bytes from one stream to another and back: half-closes, back-pressure and resets go through."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio
from trio import socket

from workplane.lifesigns import Stream

CHUNK: Final = 256 << 10
"""Bytes that are taken at once: a QUIC stream's window, so that what has arrived is passed on whole."""
_LINGER: Final = struct.pack("ii", 1, 0)


async def both_ways(one: Stream, other: Stream) -> None:
    """Returns once both have ended their halves. Raises `trio.BrokenResourceError` as soon as either broke."""
    await in_parallel(partial(_pump, one, other), partial(_pump, other, one))


async def in_parallel(one: Callable[[], Awaitable[None]], other: Callable[[], Awaitable[None]]) -> None:
    """Both, to their ends; what breaks in either is one `trio.BrokenResourceError`."""
    broken: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await other()
    except* (trio.BrokenResourceError, trio.ClosedResourceError) as errors:
        broken = errors
    if broken is not None:
        raise trio.BrokenResourceError("the connection broke") from broken


async def _pump(source: Stream, sink: Stream) -> None:
    while data := await source.receive_some(CHUNK):
        await sink.send_all(data)
    await sink.send_eof()


@asynccontextmanager
async def reset_unless_done(stream: trio.SocketStream) -> AsyncIterator[None]:
    """Close a connection with whoever opened it: with an end where all went well, else with a reset."""
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            reset(stream)
        stream.socket.close()


def reset(stream: trio.SocketStream) -> None:
    """Have the connection end with a reset when it is closed: what was not delivered is dropped, and that is told."""
    try:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
    except (OSError, trio.ClosedResourceError):
        return  # it is gone already
