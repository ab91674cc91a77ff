"""Datagrams in batches: what an endpoint needs of a socket, and the UDP socket that gives it."""

import socket as stdlib_socket
from typing import Protocol

import trio

from .interface import Address, Datagram

# Datagrams taken in before the tasks that they concern run: a guess, about one congestion window.
MAX_BATCH = 64
MAX_DATAGRAM = 65536


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
        socket.bind(address)
    except OSError:
        socket.close()
        raise
    return UdpSocket(socket)
