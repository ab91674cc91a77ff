"""Frames between a microVM's init and whoever started a process in it; one connection is one process.

A frame is a byte for its kind, the payload's length (4 bytes, big-endian) and the payload. See machineplane-spec, "Pods".
The init is the workload plane's, the other side the machine's. Both start often: nothing is imported but Python's own.
"""

import json
import struct
from typing import Any, Final

PORT: Final = 4750
"""The vsock port on which the init listens, a guess: any that nothing else in the guest has."""
APP: Final = "/app"
"""Where the app's root file system is in the guest's own."""

_HEADER = struct.Struct(">cI")

SPAWN = b"P"
"""To the guest, first and once: a JSON object that says what to run."""
STDIN = b"0"
"""To the guest: bytes for the process; none at all is their end."""
SIGNAL = b"S"
"""To the guest: a signal's number, one byte: for the process and its group; for the app, as its supervisor has it."""
RESIZE = b"R"
"""To the guest: rows and columns of the terminal, two bytes each."""
STARTED = b"B"
"""From the guest: the process runs."""
TAKEN = b"A"
"""From the guest: how many bytes of stdin the process has taken (4 bytes): room for as many more."""
STDOUT = b"1"
"""From the guest: output; a terminal has only this."""
STDERR = b"2"
"""From the guest: the other output."""
EXIT = b"X"
"""From the guest, last: the exit code, one byte; 128 + n after signal n."""
REFUSED = b"E"
"""From the guest, last: an exit code, one byte, and why nothing runs (UTF-8)."""

MAX_PAYLOAD = 64 * 1024
"""Bytes; a longer frame ends its connection. But a SPAWN, which holds a whole environment, may be `MAX_SPAWN`."""
MAX_SPAWN = 4 * 1024 * 1024
WINDOW = 64 * 1024
"""Bytes of stdin under way that the process has not taken: so that a signal never waits behind what nobody reads."""


class BrokenProtocol(Exception):
    """The other end does not speak as it must."""


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame."""
    return _HEADER.pack(kind, len(payload)) + payload


class Frames:
    """Takes bytes in as they come, gives whole frames out."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The frames that are complete with ``data``.

        Raises:
            BrokenProtocol: a frame is longer than may be.
        """
        self._pending += data
        found = []
        while len(self._pending) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._pending)
            if length > (MAX_SPAWN if kind == SPAWN else MAX_PAYLOAD):
                raise BrokenProtocol(f"a frame {kind!r} of {length} bytes")
            if len(self._pending) < _HEADER.size + length:
                break
            found.append((kind, bytes(self._pending[_HEADER.size : _HEADER.size + length])))
            del self._pending[: _HEADER.size + length]
        return found


def resize(rows: int, columns: int) -> bytes:
    """The frame that says a terminal's size."""
    return frame(RESIZE, struct.pack(">HH", rows, columns))


def size_of(payload: bytes) -> tuple[int, int]:
    """Rows and columns. Raises BrokenProtocol."""
    if len(payload) != 4:
        raise BrokenProtocol("a size that is not four bytes")
    rows, columns = struct.unpack(">HH", payload)
    return rows, columns


def taken(count: int) -> bytes:
    """The frame that gives room for as many bytes of stdin."""
    return frame(TAKEN, struct.pack(">I", count))


def count_of(payload: bytes) -> int:
    """What :func:`taken` says. Raises BrokenProtocol."""
    if len(payload) != 4:
        raise BrokenProtocol("a count that is not four bytes")
    return int.from_bytes(payload, "big")


def ending(payload: bytes) -> int:
    """The code of an EXIT or REFUSED. Raises BrokenProtocol."""
    if not payload:
        raise BrokenProtocol("an end without a code")
    return payload[0]


def spawn(process: dict[str, Any]) -> bytes:
    """The frame that says what to run: OCI's ``process``, with what machineplane-spec adds to it."""
    return frame(SPAWN, json.dumps(process).encode())


def wanted(payload: bytes) -> dict[str, Any]:
    """What :func:`spawn` says, as far as it can be told here. Raises BrokenProtocol."""
    try:
        found = json.loads(payload)
        if not (isinstance(found, dict) and found["args"] and all(isinstance(w, str) for w in found["args"])):
            raise BrokenProtocol("a process without words")
        if not 0 <= float(found.get("grace", 0)) < float("inf"):
            raise BrokenProtocol("a grace that is no time")
        rows, columns = found.get("size") or (0, 0)
        resize(rows, columns)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError, struct.error) as error:
        raise BrokenProtocol(f"no process: {error}") from error
    return found
