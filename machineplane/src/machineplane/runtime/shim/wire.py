"""Messages between the daemon and its helper processes: one JSON object per SOCK_SEQPACKET packet.

Requests carry ``id`` and ``op``; replies the same ``id`` and ``ok``; what nobody asked for carries ``event``.
"""

import json
from typing import Any

MAX_MESSAGE = 64 * 1024
"""Bytes of one packet, either way; a longer one is refused by its sender and ends the connection at its receiver.
Larger things (OCI configurations) travel as files."""

Message = dict[str, Any]


class WireError(Exception):
    """A packet that is too long or is not a JSON object."""


def encode(message: Message) -> bytes:
    """One packet.

    Raises:
        WireError: it would be longer than :data:`MAX_MESSAGE`.
    """
    raw = json.dumps(message, separators=(",", ":")).encode()
    if len(raw) > MAX_MESSAGE:
        raise WireError(f"a message of {len(raw)} bytes is over the limit of {MAX_MESSAGE}")
    return raw


def decode(raw: bytes) -> Message:
    """The object in a packet.

    Raises:
        WireError: too long, or not a JSON object.
    """
    if len(raw) > MAX_MESSAGE:
        raise WireError(f"a message over the limit of {MAX_MESSAGE} bytes")
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise WireError("a message that is not JSON") from error
    if not isinstance(message, dict):
        raise WireError("a message that is not a JSON object")
    return message
