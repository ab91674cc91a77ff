"""One UDP socket for QUIC, for relayed connections, and for what is said beside QUIC.

A relayed connection has a *path*: a virtual address below `PREFIX`, under which QUIC sends and receives as under any
other. What goes there travels through a circuit, and once a direct way was found, there: the connection itself does
not notice, and nothing on it breaks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from ipaddress import IPv6Network

import trio
from attrs import define, field

from magik_mesh.addresses import Address
from magik_mesh.relay_wire import MAGIC, MAX_DATAGRAM
from trio_quic import DatagramSocket

Datagram = tuple[bytes, Address]

# RFC 6666: packets to 100::/64 go nowhere, so no machine has such an address.
PREFIX = "100::"
_NETWORK = IPv6Network("100::/64")
_PORT = 1
# Addresses from which the peer of one path has proven to send. One, but for NATs that change their mind; a guess. More
# are not taken for the path's: QUIC sorts it out as a change of address.
MAX_SOURCES = 4
# Seconds without a datagram after which a path without a circuit is over: three idle time-outs of QUIC.
SILENCE = 30.0


class PathsFull(Exception):
    """There are as many relayed connections as this machine will have."""


@define(eq=False)
class Path:
    """How a relayed connection's datagrams travel now."""

    address: Address  # virtual
    capacity: int
    direct: Address | None = None  # where the peer was found
    circuit: bool = True  # whether a circuit carries it, or could
    used_directly: bool = False  # QUIC of the peer came by the direct way
    lost: int = 0  # datagrams for which there was no room
    heard_at: float = 0.0
    changed: trio.Event = field(factory=trio.Event)  # replaced whenever one of the above has changed
    scope: trio.CancelScope = field(factory=trio.CancelScope)  # the circuit lives in it
    _queue: deque[bytes] = field(factory=deque)
    _news: trio.Event = field(factory=trio.Event)

    @property
    def relayed(self) -> bool:
        """Whether a relay carries it."""
        return self.direct is None

    def put(self, data: bytes) -> None:
        """Send by the circuit: a full queue, or a datagram that is too long, loses it, as a wire would."""
        if len(self._queue) >= self.capacity or len(data) > MAX_DATAGRAM:
            self.lost += 1
            return
        self._queue.append(data)
        self._news.set()

    async def take(self) -> list[bytes]:
        """All that waits for the circuit; waits for the first."""
        while not self._queue:
            self._news = trio.Event()
            await self._news.wait()
        batch = list(self._queue)
        self._queue.clear()
        return batch

    def tell(self) -> None:
        """Wake those who wait for a change."""
        self.changed.set()
        self.changed = trio.Event()


class SwitchSocket:
    """A `trio_quic.DatagramSocket` over another one; see the module.

    `on_side` gets datagrams that are no QUIC, with their sender; `on_over` gets paths on which nothing arrives any more;
    `on_arrival` is the endpoint's `take_in`.
    """

    def __init__(self, inner: DatagramSocket, max_paths: int, queue: int) -> None:
        self._inner = inner
        self._max_paths = max_paths
        self._capacity = queue
        self._paths: dict[str, Path] = {}
        self._by_direct: dict[Address, Path] = {}
        self._count = 0
        self.on_arrival: Callable[[list[Datagram]], None] = lambda datagrams: None
        self.on_side: Callable[[bytes, Address], None] = lambda data, source: None
        self.on_over: Callable[[Path], None] = lambda path: None

    # -- for the endpoint

    @property
    def address(self) -> Address:
        """The local (host, port)."""
        return self._inner.address

    async def receive(self) -> list[Datagram]:
        """What has arrived for QUIC by the socket; what circuits bring goes to `on_arrival`."""
        while not (batch := self._sorted(await self._inner.receive())):
            pass
        return batch

    def send(self, datagrams: list[Datagram]) -> None:
        """Send each by the socket or by its path."""
        if self._paths:
            datagrams = [found for item in datagrams if (found := self._routed(item)) is not None]
        if datagrams:
            self._inner.send(datagrams)

    def close(self) -> None:
        """Free the socket."""
        self._inner.close()

    def _sorted(self, batch: list[Datagram]) -> list[Datagram]:
        """The batch without side datagrams, and with virtual senders where a path has its direct way."""
        kept: list[Datagram] = []
        for item in batch:
            data, source = item
            if data.startswith(MAGIC):
                self.on_side(data, source)
            elif self._by_direct and (path := self._by_direct.get(source)) is not None:
                self._heard(path)
                kept.append((data, path.address))
            elif not source[0].startswith(PREFIX):
                kept.append(item)
        return kept

    def _heard(self, path: Path) -> None:
        path.heard_at = trio.current_time()
        if not path.used_directly:
            path.used_directly = True
            path.tell()

    def _routed(self, item: Datagram) -> Datagram | None:
        path = self._paths.get(item[1][0])
        if path is None:
            return None if item[1][0].startswith(PREFIX) else item
        if path.direct is not None:
            return item[0], path.direct
        if path.circuit:
            path.put(item[0])
        return None

    # -- for circuits

    def open_path(self) -> Path:
        """A new path, carried by a circuit. Raises `PathsFull`."""
        self._forget_silent()
        if len(self._paths) >= self._max_paths:
            raise PathsFull(f"{self._max_paths} connections are relayed already")
        self._count += 1
        # As the address is written elsewhere: endpoints compare it as text.
        path = Path((str(_NETWORK[self._count]), _PORT), self._capacity)
        self._paths[path.address[0]] = path
        return path

    def arrive(self, path: Path, datagrams: list[bytes]) -> None:
        """A circuit has brought datagrams."""
        self.on_arrival([(data, path.address) for data in datagrams])

    def end_circuit(self, path: Path) -> None:
        """The circuit of a path is gone; without a direct way the path is over."""
        was_open, path.circuit = path.circuit, False
        if was_open and path.direct is None:
            self._forget(path)
            self.on_over(path)
        path.tell()

    def path_of(self, address: Address | None) -> Path | None:
        """The path of a virtual address."""
        return None if address is None else self._paths.get(address[0])

    def real(self, address: Address | None) -> Address | None:
        """Where datagrams to `address` really go; None if that is through a relay, or nowhere."""
        if address is None or not address[0].startswith(PREFIX):
            return address
        path = self._paths.get(address[0])
        return None if path is None else path.direct

    # -- for punching

    def send_aside(self, data: bytes, address: Address) -> None:
        """Send a side datagram from QUIC's own port."""
        self._inner.send([(data, address)])

    def hear_from(self, path: Path, source: Address) -> None:
        """The peer of `path` has proven that it sends from `source`."""
        path.heard_at = trio.current_time()
        known = sum(other is path for other in self._by_direct.values())
        if known < MAX_SOURCES and path.address[0] in self._paths:
            self._by_direct[source] = path

    def go_direct(self, path: Path, address: Address) -> None:
        """The peer of `path` has proven that it receives at `address`: what follows goes there."""
        if path.direct is None and path.address[0] in self._paths:
            self.hear_from(path, address)
            path.direct = address
            path.tell()

    def _forget(self, path: Path) -> None:
        self._paths.pop(path.address[0], None)
        for address in [a for a, other in self._by_direct.items() if other is path]:
            del self._by_direct[address]

    def _forget_silent(self) -> None:
        now = trio.current_time()
        for path in list(self._paths.values()):
            if not path.circuit and now - path.heard_at > SILENCE:
                self._forget(path)
