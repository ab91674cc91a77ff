"""A fabric with public machines, and machines behind routers of their own."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from attrs import define, field

from magik_mesh import Call, Node
from magik_mesh.testing import PORT, MemoryFabric, bootstrap_to, config_of, peers_of
from magik_mesh.testing_nat import Filtering, Mapping, Nat
from trio_quic import DatagramSocket

ECHO = "/test/echo/1.0.0"


async def echo(call: Call) -> Any:
    """The call's own body."""
    return call.body


async def mirror(call: Call) -> None:
    """The stream's own bytes, each as it comes."""
    await call.reply()
    while chunk := await call.stream.receive_some():
        await call.stream.send_all(chunk)


@define(eq=False)
class NatFabric:
    """Numbers 1 to 9 are public machines; others live behind a router each, at 192.0.2.N."""

    memory: MemoryFabric = field(factory=MemoryFabric)
    nats: dict[int, Nat] = field(factory=dict)
    _ports: itertools.count[int] = field(factory=lambda: itertools.count(30_000))

    @asynccontextmanager
    async def public(self, seed: int, **changes: Any) -> AsyncIterator[Node]:
        """A machine that everyone reaches."""
        config = config_of(seed, **changes)
        async with self.memory.open(config, side_socket=self._side(config.host)) as node:
            node.handle(ECHO, echo)
            node.handle("/test/mirror/1.0.0", mirror)
            yield node

    @asynccontextmanager
    async def hidden(
        self,
        seed: int,
        mapping: Mapping = Mapping.SAME,
        filtering: Filtering = Filtering.PORT,
        **changes: Any,
    ) -> AsyncIterator[Node]:
        """A machine behind a router."""
        nat = self.nats[seed] = Nat(self.memory.network, f"192.0.2.{seed}", mapping, filtering)
        own = f"172.16.{seed}.2"
        config = config_of(seed, **{"host": own, **changes})
        socket = nat.socket(own, PORT)
        side = lambda: nat.socket(own, next(self._ports))  # noqa: E731
        async with self.memory.open(config, socket, side) as node:
            node.handle(ECHO, echo)
            node.handle("/test/mirror/1.0.0", mirror)
            yield node

    def _side(self, host: str) -> Callable[[], DatagramSocket]:
        return lambda: self.memory.network.socket(host, next(self._ports))


def bootstrap(*seeds: int) -> Any:
    """Several public machines to begin with."""
    return tuple(peer for seed in seeds for peer in bootstrap_to(seed))


def carried(relay: Node) -> int:
    """How many circuits a relay carries now."""
    return relay.stats.circuits_relayed - relay.stats.circuits_ended


def joined(one: Node, other: Node) -> bool:
    """Whether each has a connection with the other."""
    return other.id in peers_of(one) and one.id in peers_of(other)
