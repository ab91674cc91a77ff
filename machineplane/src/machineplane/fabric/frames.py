"""Frames of a session on a mesh stream: pure, bytes in and frames out (machineplane-spec, "Into a pod")."""

import struct

from machineplane.channels import CLOSE, MAX_PAYLOAD, RESIZE, RESULT, STDERR, STDIN, STDOUT, Frame
from magik_proto.errors import RemoteProtocolError

_HEADER = struct.Struct(">BI")
TO_POD = frozenset({STDIN, RESIZE, CLOSE})
FROM_POD = frozenset({STDOUT, STDERR, RESULT})


def encode_frame(channel: int, payload: bytes) -> bytes:
    """One frame; what is longer than a frame may be becomes several, which for data says the same."""
    parts = range(0, max(len(payload), 1), MAX_PAYLOAD)
    return b"".join(_one(channel, payload[start : start + MAX_PAYLOAD]) for start in parts)


def _one(channel: int, payload: bytes) -> bytes:
    return _HEADER.pack(channel, len(payload)) + payload


class FrameDecoder:
    """Takes bytes however they are cut; holds at most one unfinished frame. ``allowed`` are the channels of this way."""

    def __init__(self, allowed: frozenset[int]) -> None:
        self._allowed = allowed
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes.

        Raises:
            RemoteProtocolError: ``session.channel`` for a channel that does not go this way, ``session.frame-size`` for
                a frame that is too long; the stream must then be reset.
        """
        self._buffer += data
        frames = []
        while frame := self._take():
            frames.append(frame)
        return frames

    def end(self) -> None:
        """The stream has ended. Raises RemoteProtocolError ``session.truncated`` inside a frame."""
        if self._buffer:
            raise RemoteProtocolError(
                "session.truncated", f"the stream ended {len(self._buffer)} bytes into a frame"
            )

    def _take(self) -> Frame | None:
        if len(self._buffer) < _HEADER.size:
            return None
        channel, length = _HEADER.unpack_from(self._buffer)
        if channel not in self._allowed:
            raise RemoteProtocolError("session.channel", f"no frames of channel {channel} are expected here")
        if length > MAX_PAYLOAD:
            raise RemoteProtocolError(
                "session.frame-size", f"a frame of {length} bytes, allowed {MAX_PAYLOAD}"
            )
        end = _HEADER.size + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        return channel, payload
