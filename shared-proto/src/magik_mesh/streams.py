"""Byte streams as the mesh uses them: framed headers first, raw bytes after."""

from __future__ import annotations

from typing import Protocol

import trio
from attrs import define, field

from magik_proto.errors import RemoteProtocolError
from magik_proto.rpc import HEADER_BYTES, MAX_FRAME
from trio_quic import QuicError

_CHUNK = 64 << 10

# What any operation on a stream raises when the other end, or the way to it, is gone.
STREAM_ERRORS = (QuicError, trio.BrokenResourceError, trio.ClosedResourceError)


class RawStream(Protocol):
    """A bidirectional byte stream that can be torn down with a code; `trio_quic.Stream` is one."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, waiting while the peer takes no more."""

    async def send_eof(self) -> None:
        """End our half."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Some bytes; none at the end of the other half."""
        ...

    def reset(self, code: int) -> None:
        """Tear both halves down at once."""

    async def aclose(self) -> None:
        """Close both halves."""


@define
class FramedStream:
    """A raw stream whose first frames are read by length;

    What came after them is not lost to the raw reader.
    """

    raw: RawStream
    _buffer: bytearray = field(factory=bytearray)

    async def read_frame(self, max_size: int = MAX_FRAME) -> bytes | None:
        """The next frame's payload, or None at a clean end between frames.

        Raises `RemoteProtocolError` for a frame that is cut off or longer than `max_size`; the length is
        checked before anything is stored.
        """
        if not await self._fill(HEADER_BYTES):
            if self._buffer:
                raise RemoteProtocolError("rpc.truncated", "the stream ended within a length prefix")
            return None
        size = int.from_bytes(self._buffer[:HEADER_BYTES], "big")
        if size > max_size:
            raise RemoteProtocolError("rpc.frame-size", f"a frame of {size} bytes, {max_size} are allowed")
        if not await self._fill(HEADER_BYTES + size):
            raise RemoteProtocolError("rpc.truncated", f"the stream ended within a frame of {size} bytes")
        payload = bytes(self._buffer[HEADER_BYTES : HEADER_BYTES + size])
        del self._buffer[: HEADER_BYTES + size]
        return payload

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Raw bytes that follow the frames read so far."""
        if not self._buffer:
            return await self.raw.receive_some(max_bytes)
        taken = bytes(self._buffer[:max_bytes])
        del self._buffer[: len(taken)]
        await trio.lowlevel.checkpoint()
        return taken

    async def _fill(self, size: int) -> bool:
        while len(self._buffer) < size:
            chunk = await self.raw.receive_some(_CHUNK)
            if not chunk:
                return False
            self._buffer += chunk
        return True
