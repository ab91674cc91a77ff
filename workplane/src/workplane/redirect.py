"""Connections that a rule of the machine's redirects to one port, and where they were meant to go."""

from __future__ import annotations

import struct
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Final

import trio
from trio import socket

LOOPBACK: Final = b"lo"
SO_ORIGINAL_DST: Final = 80
"""``linux/netfilter_ipv4.h``; Python has no name for it."""
_SOCKADDR_IN: Final = struct.Struct("!2xH4s8x")  # but for the family, which is in the machine's order


async def listen_on_loopback(port: int, backlog: int) -> trio.SocketListener:
    """At a port of all the loopback's addresses, for the rule changes the port alone. Raises OSError where it is taken."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(
            OSError
        ):  # Linux before 5.7 asks for a capability; what comes from outside is reset then
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LOOPBACK)
        await sock.bind(("0.0.0.0", port))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return trio.SocketListener(sock)


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
