"""The asking side of a call, over one stream that was just opened."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from magik_mesh import codes
from magik_mesh.alarm import Alarm
from magik_mesh.errors import RpcFailed
from magik_mesh.streams import STREAM_ERRORS, FramedStream, RawStream
from magik_proto import codec
from magik_proto.rpc import MAX_DEADLINE_MS, Request, Response, encode_frame


class ReplyStream(trio.abc.HalfCloseableStream):
    """The raw bytes of a call, both ways, after the peer's answer."""

    def __init__(self, framed: FramedStream) -> None:
        self._framed = framed
        self.finished = False  # the peer has ended its half

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send to the handler; waits while it takes no more."""
        await self._framed.raw.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """A checkpoint: the stream below tells by `send_all` alone."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """End our half; the handler may go on sending."""
        await self._framed.raw.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Bytes from the handler; none when it has ended its half."""
        chunk = await self._framed.receive_some(max_bytes)
        self.finished |= not chunk
        return chunk

    async def aclose(self) -> None:
        """Close both halves."""
        await self._framed.raw.aclose()


@asynccontextmanager
async def calling(
    raw: RawStream, method: str, body: Any, deadline_ms: int
) -> AsyncIterator[tuple[Any, ReplyStream]]:
    """Ask over `raw`, and own it: the answer's body and the raw stream after it.

    Leaving before the peer has ended its half resets the stream, which cancels the handler; so does any
    error. Raises `RpcFailed` for an answer that is an error, one of `STREAM_ERRORS` when the peer is lost,
    and `RemoteProtocolError` for an answer that is none.
    """
    framed = FramedStream(raw)
    stream = ReplyStream(framed)
    clean = False
    try:
        await raw.send_all(encode_frame(Request(method=method, deadline_ms=deadline_ms, body=body)))
        yield await _answer(framed), stream
        clean = stream.finished
    finally:
        if not clean:
            raw.reset(codes.RESET_CANCELLED)
    await close_quietly(raw)


async def ask(raw: RawStream, method: str, body: Any, deadline_ms: int) -> Any:
    """A unary call over `raw`: the answer's body. Errors as in `calling`; cancelling it resets the stream.

    The request ends our half, so that it goes out in one piece with its end, and as a rule in one datagram.
    """
    frame = encode_frame(Request(method=method, deadline_ms=deadline_ms, body=body))
    clean = False
    try:
        try:
            raw.send_last_nowait(frame)
        except trio.WouldBlock:
            await raw.send_last(frame)
        answer = await _answer(FramedStream(raw))
        clean = True
    finally:
        if not clean:
            raw.reset(codes.RESET_CANCELLED)
    raw.close_now()
    return answer


async def ask_by(alarm: Alarm, at: float, raw: RawStream, method: str, body: Any) -> Any:
    """`ask` with an answer until `at`, which travels to the handler; else `trio.TooSlowError`."""
    deadline = alarm.set(at, partial(raw.reset, codes.RESET_CANCELLED))
    try:
        return await ask(raw, method, body, milliseconds_until(at))
    except trio.ClosedResourceError:
        if deadline.passed:
            raise trio.TooSlowError from None
        raise
    finally:
        alarm.cancel(deadline)


def milliseconds_until(at: float) -> int:
    """How a deadline travels."""
    return max(1, int((at - trio.current_time()) * 1000))


async def _answer(framed: FramedStream) -> Any:
    payload = await framed.read_frame()
    if payload is None:
        raise trio.BrokenResourceError("the peer ended the stream without an answer")
    response = Response.from_value(codec.decode(payload))
    if response.error is not None:
        raise RpcFailed(response.error.code, response.error.message)
    return response.body


async def close_quietly(raw: RawStream) -> None:
    """Close, whether or not the other end is still there."""
    try:
        await raw.aclose()
    except STREAM_ERRORS:
        return


async def start_call(raw: RawStream, method: str) -> None:
    """Begin a call without end on `raw`, which the caller goes on to own. Errors as in `calling`."""
    await raw.send_all(encode_frame(Request(method=method, deadline_ms=MAX_DEADLINE_MS)))
    await _answer(FramedStream(raw))
