"""Fabrics for tests: nodes on an in-memory network under Trio's clock.

::

    async def test_something(autojump_clock):
        async with memory_fabric(3) as fabric:
            a, b, c = fabric.nodes
            await fabric.connected()
            fabric.cut(b)                       # as when power fails

With pytest-trio's `autojump_clock` silence takes no time, so that nodes run with their real timings.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio
from attrs import define, evolve, field, frozen

from magik_mesh.config import NodeConfig
from magik_mesh.node import Node
from magik_mesh.opening import open_node
from magik_mesh.survey import SideSocket
from magik_proto.identity import BootstrapPeer, Identity, PeerId
from magik_proto.membership import MembershipPolicy
from trio_quic import DatagramSocket
from trio_quic.testing import MemoryNetwork

PORT = 4001
EPOCH_MS = 1_700_000_000_000


@frozen
class SeededClock:
    """Trio's clock for both times, and a seeded random source: the same seed, the same nonces and jitter."""

    source: random.Random

    def now(self) -> float:
        """See `magik_mesh.Clock`."""
        return trio.current_time()

    def timestamp(self) -> int:
        """Milliseconds; the test began at `EPOCH_MS` or some hours after it."""
        return EPOCH_MS + int(trio.current_time() * 1000)

    def random(self, size: int) -> bytes:
        """See `magik_mesh.Clock`."""
        return self.source.randbytes(size)


def identity_of(seed: int) -> Identity:
    """The identity of the test node number `seed`."""
    return Identity.from_seed(seed.to_bytes(2, "big") * 16)


def address_of(seed: int) -> str:
    """The host of the test node number `seed`."""
    return f"10.0.0.{seed}"


def bootstrap_to(seed: int, *, as_peer: PeerId | None = None) -> tuple[BootstrapPeer, ...]:
    """The test node number `seed` as a bootstrap peer, under its own or another identity."""
    return (BootstrapPeer(as_peer or identity_of(seed).peer_id, address_of(seed), PORT),)


def config_of(seed: int, **changes: Any) -> NodeConfig:
    """The configuration of the test node number `seed` in an open fabric;

    All but number 1 bootstrap from that.
    """
    basis = NodeConfig(
        host=address_of(seed),
        port=PORT,
        identity=identity_of(seed),
        policy=MembershipPolicy(None),
        bootstrap=bootstrap_to(1) if seed != 1 else (),
    )
    return evolve(basis, **changes)


@define(eq=False)
class MemoryFabric:
    """Nodes on one in-memory network. `open` and `start` number them from 1."""

    network: MemoryNetwork = field(factory=lambda: MemoryNetwork(random.Random(7)))
    nodes: list[Node] = field(factory=list)

    @asynccontextmanager
    async def open(
        self,
        config: NodeConfig,
        socket: DatagramSocket | None = None,
        side_socket: SideSocket | None = None,
    ) -> AsyncIterator[Node]:
        """A node more, for as long as the context lasts; by default on the network, and without surveys."""
        clock = SeededClock(random.Random(config.host))
        socket = socket or self.network.socket(config.host, config.port)
        async with open_node(config, clock=clock, socket=socket, side_socket=side_socket) as node:
            self.nodes.append(node)
            try:
                yield node
            finally:
                self.nodes.remove(node)

    def cut(self, node: Node) -> None:
        """Take a node off the network without a word."""
        self.network.cut(node.address)

    def mend(self, node: Node) -> None:
        """Put it back."""
        self.network.mend(node.address)

    async def connected(self, seconds: float = 5.0) -> None:
        """Wait until every node has a connection with every other."""
        await until(lambda: all(len(peers_of(n)) == len(self.nodes) - 1 for n in self.nodes), seconds)


@asynccontextmanager
async def memory_fabric(size: int, **changes: Any) -> AsyncIterator[MemoryFabric]:
    """A fabric of `size` nodes that know only number 1 at first; `changes` go into all configurations."""
    fabric = MemoryFabric()
    async with AsyncExitStack() as stack:
        for seed in range(1, size + 1):
            await stack.enter_async_context(fabric.open(config_of(seed, **changes)))
        yield fabric


def peers_of(node: Node) -> list[PeerId]:
    """With whom a node has a connection."""
    return [peer.id for peer in node.peers() if peer.connected]


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for what no event tells; `trio.TooSlowError` after `seconds`."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await trio.sleep(0.01)
