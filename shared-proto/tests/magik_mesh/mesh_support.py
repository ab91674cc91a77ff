"""What the tests of admission share: members, strangers, and a door that counts."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any

import attrs
import pytest
import trio
from structlog.testing import capture_logs

from magik_mesh import Call, Node, NodeConfig, PeerUnreachable, codes
from magik_mesh.hello import Hello
from magik_mesh.presence import Presence
from magik_mesh.rpc_client import ask
from magik_mesh.testing import EPOCH_MS, MemoryFabric, config_of, identity_of, peers_of
from magik_mesh.tls import make_credentials
from magik_proto.invites import RootKey
from magik_proto.membership import MembershipPolicy
from trio_quic import Connection, Endpoint, open_endpoint

HOUR = 3_600_000
METHOD = "/test/echo/1.0.0"
ROOT = RootKey.from_seed(b"r" * 32)
STRANGERS_ROOT = RootKey.from_seed(b"s" * 32)


def member_of(
    seed: int, root: RootKey = ROOT, *, life_ms: int = 24 * HOUR, invited_ms: int = EPOCH_MS
) -> bytes:
    invite = root.invite(invited_ms, roles={"run"})
    return invite.accept(identity_of(seed), invited_ms, life_ms).encode()


def closed(seed: int, member: bytes | None) -> NodeConfig:
    return config_of(seed, policy=MembershipPolicy(ROOT.peer_id), member=member)


async def refused(intruder: NodeConfig, **changes: Any) -> str:
    """Let `intruder` try a member for half a minute; the reason that it was given. No call of it is handled."""
    fabric = MemoryFabric()
    handled: list[Call] = []

    async def handler(call: Call) -> None:
        handled.append(call)

    with capture_logs() as logs:
        member = attrs.evolve(closed(1, member_of(1)), **changes)
        async with fabric.open(member) as node, fabric.open(intruder) as other:
            node.handle(METHOD, handler)
            await trio.sleep(30.0)
            with pytest.raises(PeerUnreachable):
                await other.call(node.id, METHOD)
            assert peers_of(node) == []
            assert node.stats.calls_served == len(handled) == 0
            assert node._endpoint.connections == 0
    return next(entry["reason"] for entry in logs if entry["event"] == "bootstrap peer does not answer")


def intruders_endpoint(fabric: MemoryFabric) -> AbstractAsyncContextManager[Endpoint[object]]:
    """The endpoint, as number 8, of a member that speaks QUIC by hand."""
    return open_endpoint(
        "",
        0,
        credentials=make_credentials(config_of(8)),
        alpn="magik-machine/1",
        verify_peer=lambda _: None,
        socket=fabric.network.socket("10.0.0.8", 4001),
    )


class Intruder:
    """A member that speaks QUIC by hand."""

    def __init__(self, connection: Connection[object]) -> None:
        self.connection = connection

    async def hello(self, node: Node, presence: bytes) -> None:
        hello = Hello(7, 0, 0, False, presence, "10.0.0.8:4001", ())
        stream = await self.connection.open_stream()
        answer = await ask(stream, codes.HELLO, hello.to_value(), 1000)
        assert answer["answer"] == "take"

    async def send(self, data: bytes) -> None:
        stream = await self.connection.open_stream()
        await stream.send_all(data)


def record_of(seed: int, fabric: MemoryFabric) -> bytes:
    own = fabric.nodes[0]._presence
    return Presence(
        config=config_of(seed),
        clock=own.clock,
        addresses=own.addresses,
        directory=own.directory,
        plan=own.plan,
        stats=own.stats,
        log=own.log,
        connected=tuple,
        announce=lambda _: None,
        store=lambda record: None,
        on_news=lambda: None,
    ).own_record()
