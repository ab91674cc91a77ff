"""Byte streams as the mesh uses them: framed headers first, raw bytes after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio
from attrs import define

from magik_proto.errors import RemoteProtocolError
from magik_proto.rpc import HEADER_BYTES, MAX_FRAME
from trio_quic import QuicError

_CHUNK = 64 << 10

# What any operation on a stream raises when the other end, or the way to it, is gone.
STREAM_ERRORS = (QuicError, trio.BrokenResourceError, trio.ClosedResourceError)


class RawStream(Protocol):
    """A bidirectional byte stream that can be torn down with a code; `trio_quic.Stream` is one. The methods without a
    checkpoint raise `trio.WouldBlock` where the others would wait."""

    def watch(self, on_broken: Callable[[], None] | None) -> None:
        """Have `on_broken` called when the other end tears it down, or is lost; at once, if that was before."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, waiting while the peer takes no more."""

    async def send_eof(self) -> None:
        """End our half."""

    async def send_last(self, data: bytes) -> None:
        """Send all of `data` and end our half."""

    def send_last_nowait(self, data: bytes) -> None:
        """The same without a checkpoint."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Some bytes; none at the end of the other half."""
        ...

    def receive_nowait(self) -> bytes | bytearray:
        """The same without a checkpoint."""
        ...

    def reset(self, code: int) -> None:
        """Tear both halves down at once."""

    async def aclose(self) -> None:
        """Close both halves."""

    def close_now(self) -> None:
        """The same without a checkpoint."""


class WholeStream(RawStream, Protocol):
    """One that can tell whether all that will come is there."""

    def receive_whole_nowait(self, max_bytes: int) -> bytes | None:
        """All of it, if it has come with its end and is no more than that; else None, and nothing is taken."""


@define
class FramedStream:
    """A raw stream whose first frames are read by length;

    What came after them is not lost to the raw reader.
    """

    raw: RawStream
    _buffer: bytes | bytearray = b""

    async def read_frame(self, max_size: int = MAX_FRAME) -> bytes | None:
        """The next frame's payload, or None at a clean end between frames.

        Raises `RemoteProtocolError` for a frame that is cut off or longer than `max_size`; the length is
        checked before anything is stored.
        """
        while (payload := self._first_frame(max_size)) is None:
            chunk = await self.raw.receive_some(_CHUNK)
            if not chunk:
                self._end()
                return None
            self._append(chunk)
        return payload

    def read_frame_nowait(self, max_size: int = MAX_FRAME) -> bytes | None:
        """The same without a checkpoint: raises `trio.WouldBlock` if the frame is not there yet."""
        while (payload := self._first_frame(max_size)) is None:
            chunk = self.raw.receive_nowait()
            if not chunk:
                self._end()
                return None
            self._append(chunk)
        return payload

    def _first_frame(self, max_size: int) -> bytes | None:
        """The payload of the frame that the buffer begins with, if all of it is there."""
        if len(self._buffer) < HEADER_BYTES:
            return None
        end = HEADER_BYTES + int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        if end > HEADER_BYTES + max_size:
            raise RemoteProtocolError(
                "rpc.frame-size", f"a frame of {end - HEADER_BYTES} bytes, {max_size} are allowed"
            )
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[HEADER_BYTES:end])
        self._drop(end)
        return payload

    def _append(self, chunk: bytes | bytearray) -> None:
        if not self._buffer:
            self._buffer = chunk
        else:
            self._buffer = self._growing()
            self._buffer += chunk

    def _drop(self, count: int) -> None:
        if count == len(self._buffer):
            self._buffer = b""
        else:
            self._buffer = self._growing()
            del self._buffer[:count]

    def _growing(self) -> bytearray:
        """The buffer in a form of which the ends change in constant time."""
        return self._buffer if isinstance(self._buffer, bytearray) else bytearray(self._buffer)

    def _end(self) -> None:
        """The stream has ended; nothing, where it may end."""
        if self._buffer:
            raise RemoteProtocolError(
                "rpc.truncated", f"the stream ended {len(self._buffer)} bytes into a frame"
            )

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Raw bytes that follow the frames read so far."""
        if not self._buffer:
            return await self.raw.receive_some(max_bytes)
        taken = bytes(self._buffer[:max_bytes])
        self._drop(len(taken))
        await trio.lowlevel.checkpoint()
        return taken
