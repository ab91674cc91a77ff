"""A machine that takes part and reads nothing: what it costs another is bounded, by the numbers that are stated."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from mesh_support import METHOD, Intruder, intruders_endpoint, record_of
from trio.testing import MockClock

from magik_mesh import Call, MeshLimits, Node, codes
from magik_mesh.rpc_client import start_call
from magik_mesh.testing import MemoryFabric, config_of, peers_of, until
from magik_proto.rpc import Request, encode_frame
from trio_quic import Connection, Limits

QUIC = Limits()
LIMITS = MeshLimits(unread_answers=3 << 20, gossip_bytes=1 << 20)


@asynccontextmanager
async def idler_and_friend() -> AsyncIterator[tuple[Node, Node, Intruder, Any]]:
    """A node, an honest one, one that greets and then reads nothing, and the node's side of the connection with it."""
    fabric = MemoryFabric()
    async with (
        fabric.open(config_of(1, limits=LIMITS)) as node,
        fabric.open(config_of(2)) as friend,
        intruders_endpoint(fabric) as endpoint,
    ):
        await until(lambda: len(peers_of(node)) == 1)
        connection: Connection[object] = await endpoint.connect(node.address)
        idler = Intruder(connection)
        await idler.hello(node, record_of(8, fabric))
        await until(lambda: len(peers_of(node)) == 2)
        theirs = next(link.connection for link in node._links.all() if link.peer != friend.id)
        yield node, friend, idler, theirs


def buffered(connection: Any) -> int:
    """What the transport keeps for the other end."""
    return sum(connection._core.buffered(stream_id) for stream_id in connection._streams)


def of(answers: dict[str, int]) -> Any:
    async def answer(call: Call) -> bytes:
        answers["begun"] += 1
        return b"x" * (1 << 20)

    return answer


async def test_answers(autojump_clock: MockClock) -> None:
    answers = {"begun": 0}
    async with idler_and_friend() as (node, friend, idler, theirs):
        node.handle(METHOD, of(answers))
        most = 0
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                stream = await idler.connection.open_stream()
                await stream.send_last(encode_frame(Request(method=METHOD, deadline_ms=3_600_000)))
                await trio.sleep_forever()

            for _ in range(500):
                nursery.start_soon(call)
            link = next(link for link in node._links.all() if link.peer != friend.id)
            for _ in range(60):
                await trio.sleep(0.5)
                most = max(most, link.slots.unread + buffered(theirs))
                assert link.slots.used <= LIMITS.calls_per_peer
            assert answers["begun"] >= 64, "the control: it was served as long as that was free"
            assert link.slots.unread <= LIMITS.unread_answers
            assert most <= LIMITS.unread_answers + QUIC.max_streams * QUIC.send_buffer
            assert len(theirs._streams) <= 2 * QUIC.max_streams
            assert len(await friend.call(node.id, METHOD)) == 1 << 20
            nursery.cancel_scope.cancel()
        await idler.connection.aclose()
        await until(lambda: len(peers_of(node)) == 1)
        assert link.slots.unread == 0


async def test_an_unread_answer_is_given_up_at_the_calls_deadline(autojump_clock: MockClock) -> None:
    answers = {"begun": 0}
    async with idler_and_friend() as (node, friend, idler, _theirs):
        node.handle(METHOD, of(answers))
        link = next(link for link in node._links.all() if link.peer != friend.id)
        stream = await idler.connection.open_stream()
        await stream.send_last(encode_frame(Request(method=METHOD, deadline_ms=20_000)))
        await trio.sleep(10)
        assert (link.slots.used, answers["begun"]) == (1, 1)
        assert link.slots.unread > 1 << 20
        await trio.sleep(15)
        assert (link.slots.used, link.slots.unread) == (0, 0)
        assert link.peer in peers_of(node)


async def test_gossip(autojump_clock: MockClock) -> None:
    async with idler_and_friend() as (node, friend, idler, theirs):
        # It wants every message, and grants the stream that they come on no more than its first window.
        frames = await idler.connection.open_stream()
        await start_call(frames, codes.GOSSIP)
        await frames.send_all(encode_frame({"subscribe": [["topic", True]]}))
        await trio.sleep(1)
        link = next(link for link in node._links.all() if link.peer != friend.id)
        most = 0
        for number in range(400):
            await node.publish("topic", number.to_bytes(4, "big") + bytes(60_000))
            most = max(most, link.outbox._bytes + buffered(theirs))
            await trio.sleep(0.01)
        assert node.stats.gossip_dropped > 100, "the control: more was published than there is room for"
        # What waits, one piece of it on its way into the stream, and what the stream has not had acknowledged.
        assert most <= LIMITS.gossip_bytes + (64 << 10) + (128 << 10) + 2 * QUIC.send_buffer
        assert friend.id in peers_of(node)


async def test_streams(autojump_clock: MockClock) -> None:
    """It opens all streams that it may and says nothing on them: they end at the header's time-out."""
    async with idler_and_friend() as (_node, _friend, idler, theirs):
        tasks = trio.lowlevel.current_statistics().tasks_living
        opened = 0
        with trio.move_on_after(5):
            while True:
                stream = await idler.connection.open_stream()
                await stream.send_all(b"\x00")
                opened += 1
        assert opened == QUIC.max_streams
        assert len(theirs._streams) <= 2 * QUIC.max_streams
        assert trio.lowlevel.current_statistics().tasks_living <= tasks + QUIC.max_streams + 10
        await trio.sleep(20)
        assert len(theirs._streams) <= 2
        assert trio.lowlevel.current_statistics().tasks_living <= tasks + 20
