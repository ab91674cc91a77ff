"""Source NAT between a machine and a `MemoryNetwork`, in the kinds of RFC 4787 (mapping, 4.1; filtering, 5).

::

    nat = Nat(network, "192.0.2.7", Mapping.SAME, Filtering.PORT)
    socket = nat.socket("10.1.0.2", 4001)        # private: nobody outside can send there
"""

from __future__ import annotations

import enum

from attrs import define, field

from magik_mesh.addresses import Address
from trio_quic.testing import MemoryNetwork, MemorySocket


class Mapping(enum.Enum):
    """Which port a socket has outside."""

    SAME = "endpoint-independent"  # one for all destinations: a cone
    EACH = "address and port-dependent"  # another one for each destination: symmetric


class Filtering(enum.Enum):
    """Who may send to a port that is open."""

    ANY = "endpoint-independent"
    HOST = "address-dependent"  # every port of a host that was sent to
    PORT = "address and port-dependent"  # only exactly where was sent to: Linux's conntrack


@define(eq=False)
class Nat:
    """One router with one outside address. Its mappings last until it is told to forget them."""

    network: MemoryNetwork
    host: str
    mapping: Mapping
    filtering: Filtering
    refused: int = 0  # datagrams that the filter dropped
    _ports: dict[tuple[Address, Address | None], _OutsidePort] = field(factory=dict)
    _next: int = 20_000
    _restarts: int = 0

    def socket(self, host: str, port: int) -> MemorySocket:
        """A socket behind the router."""
        return _InsideSocket(self, (host, port))

    def send(self, data: bytes, inside: MemorySocket, destination: Address) -> None:
        """A datagram goes out, and opens the way for answers."""
        key = (inside.address, None if self.mapping is Mapping.SAME else destination)
        port = self._ports.get(key)
        if port is None:
            port = self._ports[key] = self._open(inside)
        port.sent_to.add(destination)
        self.network.carry(data, port.address, destination)

    def outside(self) -> Address:
        """One of the addresses at which the machine is seen."""
        return next(iter(self._ports.values())).address

    def forget(self) -> None:
        """Lose all mappings, as by a restart; the outside ports that were in use are used no more."""
        for port in self._ports.values():
            self.network.leave(port.address)
            port.sent_to.clear()
        self._ports.clear()
        self._restarts += 1

    def _open(self, inside: MemorySocket) -> _OutsidePort:
        """The port that the socket has inside, if it is free, else a new one."""
        number = inside.address[1] + self._restarts
        if self.mapping is Mapping.EACH or any(p.address[1] == number for p in self._ports.values()):
            self._next += 1
            number = self._next
        port = _OutsidePort(self, (self.host, number), inside)
        self.network.attach(port.address, port)
        return port


@define(eq=False)
class _OutsidePort:
    nat: Nat
    address: Address
    inside: MemorySocket
    sent_to: set[Address] = field(factory=set)

    def arrive(self, due: float, data: bytes, source: Address) -> bool:
        """A datagram has come from outside."""
        match self.nat.filtering:
            case Filtering.ANY:
                allowed = True
            case Filtering.HOST:
                allowed = any(source[0] == host for host, _ in self.sent_to)
            case Filtering.PORT:
                allowed = source in self.sent_to
        self.nat.refused += not allowed
        return allowed and self.inside.arrive(due, data, source)


class _InsideSocket(MemorySocket):
    def __init__(self, nat: Nat, address: Address) -> None:
        super().__init__(nat.network, address)
        self._nat = nat

    def send(self, datagrams: list[tuple[bytes, Address]]) -> None:
        """Send datagrams through the router."""
        for data, destination in datagrams:
            self._nat.send(data, self, destination)

    def close(self) -> None:
        """Nothing is open outside because of this alone."""
