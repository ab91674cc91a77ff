"""The channels of a session with a process in a pod, as rooms and machines hand them to each other.

A session is a sequence of frames each way: (channel, payload). The numbers are those of Kubernetes' ``channel.k8s.io``,
so that nothing has to be renumbered on the way; see machineplane-spec, "Into a pod".
"""

import json
import struct
from collections.abc import Mapping
from typing import Any, Final, Protocol

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2
RESULT: Final = 3
RESIZE: Final = 4
CLOSE: Final = 255
"""Ends the channel whose number is its one byte of payload; only :data:`STDIN` is ended so."""

MAX_PAYLOAD: Final = 64 * 1024
"""Bytes of one frame: what a pipe holds. Senders cut, receivers refuse."""

_MAX_TEXT: Final = 4096
_SIZE: Final = struct.Struct(">HH")

Frame = tuple[int, bytes]
END_OF_STDIN: Final[Frame] = (CLOSE, bytes([STDIN]))


class Session(Protocol):
    """One side of a session. One task may send while another receives."""

    async def send(self, channel: int, payload: bytes) -> None:
        """Hand over stdin, its end or a size; waits while the other side takes no more."""
        ...

    async def receive(self) -> Frame:
        """Output, and at last the result, after which nothing may be asked for."""
        ...


class SessionRefused(Exception):
    """There is no such session to be had, or it broke; the text says why."""


def resize(width: int, height: int) -> Frame:
    """A terminal's new size in characters; what is out of range counts as its end."""
    return RESIZE, _SIZE.pack(*(min(max(side, 0), 0xFFFF) for side in (width, height)))


def parse_size(payload: bytes) -> tuple[int, int] | None:
    """Width and height of a resize frame, None if it is none."""
    return _SIZE.unpack(payload) if len(payload) == _SIZE.size else None


def exited(code: int) -> Frame:
    """The process ended by itself (or by a signal: 128 and its number)."""
    return RESULT, json.dumps({"exit": code}).encode()


def failed(text: str) -> Frame:
    """The session broke, or the process could not be run."""
    return RESULT, json.dumps({"error": text[:_MAX_TEXT]}).encode()


def parse_result(payload: bytes) -> int:
    """The exit code of a result.

    Raises:
        SessionRefused: it is an error, whose text this has, or not understood.
    """
    try:
        said: Any = json.loads(payload)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, Mapping):
        if isinstance(said.get("error"), str):
            raise SessionRefused(said["error"])
        if type(said.get("exit")) is int:
            return int(said["exit"])
    raise SessionRefused("the machine of the pod gave a result that cannot be understood")
