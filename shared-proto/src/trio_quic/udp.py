"""Datagrams in batches: what an endpoint needs of a socket, and the UDP socket that gives it."""

import errno
import socket as stdlib_socket
import struct
import sys
from collections.abc import Iterator
from typing import Protocol

import trio

from .interface import Address, Datagram

# Datagrams taken in before the tasks that they concern run: a guess, about one congestion window.
MAX_BATCH = 64
MAX_DATAGRAM = 65536

# Datagrams of one size to one address go to the kernel in one piece, which it cuts (linux/udp.h, UDP_SEGMENT: at most
# 64, and as many bytes as an IP packet holds). Measured over loopback: five of 1200 bytes take 7.6 us instead of 18;
# that is 7 % of a long stream's cost and 1 % of 64 calls'. Two do not pay.
_UDP_SEGMENT = 103
_MOST_SEGMENTS = 64
_MOST_BYTES = 65_000
_LEAST_SEGMENTS = 3
# Don't fragment, and leave it to us to find out what a path takes (RFC 9000 §14; linux/in.h and in6.h, which Python does not
# name): IP_MTU_DISCOVER and IPV6_MTU_DISCOVER, IP_PMTUDISC_PROBE.
_MTU_DISCOVER = {
    stdlib_socket.AF_INET: (stdlib_socket.IPPROTO_IP, 10),
    stdlib_socket.AF_INET6: (stdlib_socket.IPPROTO_IPV6, 23),
}
_PROBE = 3
# What a kernel or network card says that cannot.
_NO_SEGMENTS = frozenset({errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP})


class DatagramSocket(Protocol):
    """A source and sink of datagrams that may lose, repeat and reorder them."""

    @property
    def address(self) -> Address:
        """The local (host, port)."""

    async def receive(self) -> list[Datagram]:
        """At least one datagram with its sender, and what else has arrived, up to a bound.

        Cancelling it loses nothing.
        """

    def send(self, datagrams: list[Datagram]) -> None:
        """Send now what can be sent now; the rest is lost."""

    def close(self) -> None:
        """Free the socket; may be repeated."""


class UdpSocket:
    """A UDP socket of this machine under Trio."""

    def __init__(self, socket: stdlib_socket.socket) -> None:
        self._socket = socket
        self._address: Address = socket.getsockname()[:2]
        self._cuts = sys.platform == "linux"

    @property
    def address(self) -> Address:
        """The local (host, port)."""
        return self._address

    async def receive(self) -> list[Datagram]:
        """At least one datagram with its sender, and at most MAX_BATCH."""
        batch: list[Datagram] = []
        while not batch:
            await trio.lowlevel.wait_readable(self._socket)
            self._drain(batch)
        return batch

    def _drain(self, batch: list[Datagram]) -> None:
        while len(batch) < MAX_BATCH:
            try:
                data, address = self._socket.recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as exc:
                if self._socket.fileno() < 0:
                    raise trio.ClosedResourceError("this socket was closed") from exc
                # The kernel reports here what happened to an earlier datagram of ours, such as an unreachable
                # port.
                continue
            batch.append((data, address[:2]))  # IPv6 addresses come with a flow and a scope

    def send(self, datagrams: list[Datagram]) -> None:
        """Send now what can be sent now; a full buffer or an unreachable host loses datagrams, as the wire
        does.
        """
        if not self._cuts or len(datagrams) < _LEAST_SEGMENTS:
            self._send_each(datagrams)
            return
        for run in _runs(datagrams):
            if len(run) < _LEAST_SEGMENTS or not self._send_cut(run):
                self._send_each(run)

    def _send_cut(self, run: list[Datagram]) -> bool:
        """Have the kernel cut the run. False if it cannot: then it is not asked again.

        Pieces that have become too long for a path say nothing of others: those of this run go one by one.
        """
        size = struct.pack("H", len(run[0][0]))
        try:
            self._socket.sendmsg(
                [data for data, _ in run], [(stdlib_socket.IPPROTO_UDP, _UDP_SEGMENT, size)], 0, run[0][1]
            )
        except OSError as exc:
            self._cuts = exc.errno not in _NO_SEGMENTS
            return self._cuts and exc.errno != errno.EMSGSIZE
        return True

    def _send_each(self, datagrams: list[Datagram]) -> None:
        for data, address in datagrams:
            try:
                self._socket.sendto(data, address)
            except OSError:
                if self._socket.fileno() < 0:
                    return

    def close(self) -> None:
        """Free the socket."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def _runs(datagrams: list[Datagram]) -> Iterator[list[Datagram]]:
    """Neighbours of one address and size, of which the last may be shorter."""
    run: list[Datagram] = []
    for item in datagrams:
        if run:
            size = len(run[0][0])
            fits = len(run) < min(_MOST_SEGMENTS, _MOST_BYTES // size)
            if not fits or item[1] != run[0][1] or len(item[0]) > size or len(run[-1][0]) < size:
                yield run
                run = []
        run.append(item)
    if run:
        yield run


def open_udp_socket(host: str, port: int, buffer_bytes: int) -> UdpSocket:
    """Bind a UDP socket to an IP address and port of this machine. Raises OSError."""
    flags = stdlib_socket.AI_NUMERICHOST | stdlib_socket.AI_PASSIVE
    found = stdlib_socket.getaddrinfo(host, port, type=stdlib_socket.SOCK_DGRAM, flags=flags)
    family, _, _, _, address = found[0]
    socket = stdlib_socket.socket(family, stdlib_socket.SOCK_DGRAM)
    try:
        socket.setblocking(False)
        for option in (stdlib_socket.SO_RCVBUF, stdlib_socket.SO_SNDBUF):
            socket.setsockopt(stdlib_socket.SOL_SOCKET, option, buffer_bytes)
        if sys.platform == "linux":
            socket.setsockopt(*_MTU_DISCOVER[family], _PROBE)
        socket.bind(address)
    except OSError:
        socket.close()
        raise
    return UdpSocket(socket)
