"""A network in memory that loses, repeats, delays and reorders datagrams, for tests under Trio's clock.

::

    network = MemoryNetwork(random.Random(7), loss=0.05)
    async with open_endpoint("", 0, socket=network.socket("10.0.0.1"), ...) as alice:
        ...

With :class:`trio.testing.MockClock` and ``autojump_threshold=0`` a minute of silence takes no time. Which
datagrams suffer comes from the random source alone; what is in them does not, since QUIC draws its own keys
and ids.
"""

import random
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from .interface import Address, Datagram

Tap = Callable[[bytes, Address, Address], bytes | None]

# Datagrams in one direction that are under way or unread. At it, new ones are lost, as on any router.
MAX_QUEUED = 4096


class Receiver(Protocol):
    """What can have an address of a network: a socket, or the outside of a router."""

    def arrive(self, due: float, data: bytes, source: Address) -> bool:
        """A datagram that arrives when it is ``due``; False if it is lost."""


@attrs.define
class MemoryNetwork:
    """Sockets by address, and what the wires between them do. Probabilities are per datagram, times in
    seconds.
    """

    random: random.Random
    loss: float = 0.0
    duplicate: float = 0.0
    latency: float = 0.001
    """What every datagram takes."""
    jitter: float = 0.0
    """What a datagram takes more, evenly spread; above the datagrams' distance in time it reorders them."""
    tap: Tap | None = None
    """Sees (data, source, destination) of every datagram first; returns what travels on, or None to drop it.
    """
    delivered: int = 0
    lost: int = 0
    _sockets: "dict[Address, Receiver]" = attrs.field(factory=dict, init=False)
    _cut: set[Address] = attrs.field(factory=set, init=False)

    def socket(self, host: str, port: int = 4433) -> "MemorySocket":
        """A socket at an address of this network. Raises OSError if the address is in use."""
        socket = MemorySocket(self, (host, port))
        self.attach((host, port), socket)
        return socket

    def attach(self, address: Address, receiver: Receiver) -> None:
        """Have ``receiver`` get what is sent to an address. Raises OSError if the address is in use."""
        if address in self._sockets:
            raise OSError(f"address {address} is in use")
        self._sockets[address] = receiver

    def cut(self, address: Address) -> None:
        """Take an address off the network, as when power fails: nothing to or from it arrives."""
        self._cut.add(address)

    def mend(self, address: Address) -> None:
        """Put it back."""
        self._cut.discard(address)

    def carry(self, data: bytes, source: Address, destination: Address) -> None:
        """Send one datagram on its way."""
        tapped = data if self.tap is None else self.tap(data, source, destination)
        if tapped is None or source in self._cut or self.random.random() < self.loss:
            self.lost += 1
            return
        for _ in range(2 if self.random.random() < self.duplicate else 1):
            due = trio.current_time() + self.latency + self.random.uniform(0, self.jitter)
            socket = self._sockets.get(destination)
            if socket is None or destination in self._cut or not socket.arrive(due, tapped, source):
                self.lost += 1
            else:
                self.delivered += 1

    def leave(self, address: Address) -> None:
        """Forget a closed socket."""
        self._sockets.pop(address, None)


class MemorySocket:
    """One address of a :class:`MemoryNetwork`; a :class:`trio_quic.DatagramSocket`."""

    def __init__(self, network: MemoryNetwork, address: Address) -> None:
        self._network = network
        self._address = address
        self._queue: list[tuple[float, int, bytes, Address]] = []
        self._count = 0
        self._news = trio.Event()

    @property
    def address(self) -> Address:
        """The local (host, port)."""
        return self._address

    async def receive(self) -> list[Datagram]:
        """Wait for the datagrams that are due."""
        await trio.lowlevel.checkpoint()
        while True:
            now = trio.current_time()
            if self._queue and self._queue[0][0] <= now:
                due = [item for item in self._queue if item[0] <= now]
                del self._queue[: len(due)]
                return [(data, source) for _, _, data, source in due]
            self._news = trio.Event()
            with trio.move_on_at(self._queue[0][0] if self._queue else float("inf")):
                await self._news.wait()

    def arrive(self, due: float, data: bytes, source: Address) -> bool:
        """Called by the network; False if the queue is full."""
        if len(self._queue) >= MAX_QUEUED:
            return False
        self._count += 1
        self._queue.append((due, self._count, data, source))
        self._queue.sort()
        self._news.set()
        return True

    def send(self, datagrams: list[Datagram]) -> None:
        """Send datagrams."""
        for data, destination in datagrams:
            self._network.carry(data, self._address, destination)

    def close(self) -> None:
        """Leave the network."""
        self._network.leave(self._address)
