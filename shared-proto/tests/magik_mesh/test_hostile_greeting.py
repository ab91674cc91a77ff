"""What a peer may answer to a hello, or put into one, without the node's dying of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from mesh_support import intruders_endpoint, record_of
from trio.testing import MockClock

from magik_mesh import Node, PeerUnreachable, codes
from magik_mesh.hello import Hello
from magik_mesh.rpc_client import ask
from magik_mesh.testing import MemoryFabric, bootstrap_to, config_of, identity_of, peers_of, until
from magik_proto.rpc import Response, encode_frame

METHOD = "/test/echo/1.0.0"


@asynccontextmanager
async def node_on_all_addresses(fabric: MemoryFabric) -> AsyncIterator[Node]:
    """Only such a node tells others of where it is seen."""
    config = config_of(1, host="0.0.0.0")
    async with fabric.open(config, fabric.network.socket("10.0.0.1", config.port)) as node:
        yield node


@pytest.mark.parametrize(
    "answer",
    [
        Response.failure(codes.BUSY, "not now"),
        Response.failure("anything"),
        Response.success({"answer": "take"}),
    ],
)
async def test_who_answers_a_hello_with_an_error_is_unreachable(
    answer: Response, autojump_clock: MockClock
) -> None:
    fabric = MemoryFabric()
    async with intruders_endpoint(fabric) as intruder, trio.open_nursery() as nursery:

        async def answer_all() -> None:
            while True:
                connection = await intruder.accept()
                stream = await connection.accept_stream()
                await stream.send_all(encode_frame(answer))
                await stream.aclose()

        nursery.start_soon(answer_all)
        async with fabric.open(config_of(1, bootstrap=bootstrap_to(8))) as node:
            with pytest.raises(PeerUnreachable, match="the greeting failed"):
                await node.call(identity_of(8).peer_id, METHOD)
            async with fabric.open(config_of(2)) as other:
                await until(lambda: peers_of(other) == [node.id])
        nursery.cancel_scope.cancel()


async def test_a_zone_in_the_address_at_which_a_peer_sees_us_is_not_told_on(
    autojump_clock: MockClock,
) -> None:
    fabric = MemoryFabric()
    async with node_on_all_addresses(fabric) as node, intruders_endpoint(fabric) as intruder:
        connection = await intruder.connect(("10.0.0.1", 4001))
        seen = f"[2001:db8::1%{'x' * 64}]:4001"
        hello = Hello(7, 0, 0, False, record_of(8, fabric), seen, ())
        answer = await ask(await connection.open_stream(), codes.HELLO, hello.to_value(), 1000)
        assert answer["answer"] == "take"
        assert peers_of(node) == [identity_of(8).peer_id]
        assert node._presence.addresses.current() == ()


async def test_news_of_a_peer_that_a_call_is_dialling_starts_no_second_dial(
    autojump_clock: MockClock,
) -> None:
    fabric = MemoryFabric()
    two, dark = identity_of(2).peer_id, identity_of(3).peer_id
    async with fabric.open(config_of(1)) as node, fabric.open(config_of(2)) as other:
        async with fabric.open(config_of(3)):
            await fabric.connected()
        await until(lambda: peers_of(node) == [two])  # number 3 has left, so nobody wants it any more
        fabric.network.attach(("10.0.0.3", 4001), _Silence())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_call_in_vain, node)
            await trio.sleep(1.0)
            record = record_of(3, fabric)  # newer than the one that is known
            await other.publish(codes.PRESENCE_TOPIC, record)
            await trio.sleep(1.0)
            assert node._presence.plan.is_wanted(dark)
        await trio.sleep(20.0)
        assert peers_of(node) == [two]


class _Silence:
    """Where datagrams go and nothing comes from."""

    def arrive(self, due: float, data: bytes, source: tuple[str, int]) -> bool:
        return True


async def _call_in_vain(node: Node) -> None:
    with pytest.raises(PeerUnreachable):
        await node.call(identity_of(3).peer_id, METHOD)
