"""Where a redirected connection was meant to go."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import Final

import trio
from trio import socket

SO_ORIGINAL_DST: Final = 80
"""``linux/netfilter_ipv4.h``; Python has no name for it."""
_SOCKADDR_IN: Final = struct.Struct("!2xH4s8x")  # but for the family, which is in the machine's order


def original_destination(stream: trio.SocketStream) -> tuple[str, int] | None:
    """The address and port that an IPv4 client connected to; None where the kernel does not know.

    Of a connection that nobody redirected it is the listener's own, where the kernel tracks connections.
    """
    try:
        found = stream.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, _SOCKADDR_IN.size)
    except (OSError, trio.ClosedResourceError):
        return None
    port, address = _SOCKADDR_IN.unpack(found)
    return str(IPv4Address(address)), port
