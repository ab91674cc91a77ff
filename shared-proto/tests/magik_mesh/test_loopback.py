"""The same nodes over real UDP sockets on this computer's loopback, with short timings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress

import attrs
import pytest
import trio

from magik_mesh import Accept, Call, CannotListen, Judgement, Node, PeerDown, PeerUp, Timings, open_node
from magik_mesh.testing import config_of, identity_of, peers_of, until
from magik_proto.identity import BootstrapPeer
from trio_quic import open_udp_socket

QUICK = Timings(idle_timeout=1.0, keep_alive=0.3, dial=1.0, redial=0.5, backoff_first=0.05, backoff_cap=0.4)
METHOD = "/test/sum/1.0.0"


async def start(stack: AsyncExitStack, seed: int, first: Node | None, host: str = "127.0.0.1") -> Node:
    known = () if first is None else (BootstrapPeer(first.id, "127.0.0.1", first.address[1]),)
    config = attrs.evolve(config_of(seed), host=host, port=0, bootstrap=known, timings=QUICK)
    return await stack.enter_async_context(open_node(config))


@pytest.fixture
async def four() -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        nodes = [await start(stack, 1, None)]
        for seed in (2, 3, 4):
            nodes.append(await start(stack, seed, nodes[0]))
        await until(lambda: all(len(peers_of(node)) == 3 for node in nodes))
        yield nodes


async def test_call_stream_and_publish(four: list[Node]) -> None:
    got: list[bytes] = []

    async def judge(_: object, payload: bytes) -> Judgement:
        got.append(payload)
        return Accept(identity_of(1).peer_id)

    async def total(call: Call) -> None:
        await call.reply(sum(call.body))
        async for chunk in call.stream:
            await call.stream.send_all(chunk)

    for node in four:
        node.subscribe("magik-fabric", judge)
        node.handle(METHOD, total)
    await four[3].publish("magik-fabric", b"tender")
    await until(lambda: got == [b"tender"] * 3)
    for peer in four[:3]:
        async with four[3].open_call(peer.id, METHOD, [1, 2, 3]) as (answer, stream):
            assert answer == 6
            await stream.send_all(b"x" * 300_000)
            await stream.send_eof()
            assert sum([len(chunk) async for chunk in stream]) == 300_000


async def test_a_goodbye_and_a_new_start_on_another_port(four: list[Node]) -> None:
    events = four[0].subscribe_peers()
    async with AsyncExitStack() as stack:
        before = await start(stack, 5, four[0])
        await until(lambda: all(before.id in peers_of(node) for node in four))
    await until(lambda: all(before.id not in peers_of(node) for node in four))
    async with AsyncExitStack() as stack:
        after = await start(stack, 5, four[1])
        await until(lambda: all(after.id in peers_of(node) for node in four))
        info = next(peer for peer in four[0].peers() if peer.id == after.id)
        assert info.address == after.address
    with trio.fail_after(2.0):
        downs = []
        while len(downs) < 2:
            event = await events.receive()
            downs += [event] if isinstance(event, PeerDown) else []
    assert downs == [PeerDown(before.id, "goodbye")] * 2


async def test_a_machine_on_every_address_says_how_it_is_reached() -> None:
    async with AsyncExitStack() as stack:
        nodes = [await start(stack, 1, None, "0.0.0.0")]
        for seed in (2, 3):
            nodes.append(await start(stack, seed, nodes[0], "0.0.0.0"))
        await until(lambda: all(len(peers_of(node)) == 2 for node in nodes))
        for peer in (info for node in nodes for info in node.peers()):
            assert peer.address is not None
            assert peer.address[0] == "127.0.0.1"


async def test_a_taken_port_is_named() -> None:
    async with AsyncExitStack() as stack:
        node = await start(stack, 1, None)
        config = attrs.evolve(config_of(2), host="127.0.0.1", port=node.address[1])
        with pytest.raises(CannotListen, match=f"127.0.0.1:{node.address[1]}.*--mesh-port"):
            await stack.enter_async_context(open_node(config))


async def test_a_machine_alone_is_fine() -> None:
    async with AsyncExitStack() as stack:
        node = await start(stack, 1, None)
        await node.publish("magik-fabric", b"nobody hears")
        assert (node.id, node.peers()) == (identity_of(1).peer_id, ())


async def crossed_dials() -> int:
    """Two machines that know of each other start at once; returns how many connections were refused for that."""
    sockets = [open_udp_socket("127.0.0.1", 0, 1 << 20) for _ in range(2)]
    async with AsyncExitStack() as stack:
        nodes = []
        for own, other in ((0, 1), (1, 0)):
            config = attrs.evolve(
                config_of(own + 1),
                host="127.0.0.1",
                port=sockets[own].address[1],
                bootstrap=(BootstrapPeer(identity_of(other + 1).peer_id, *sockets[other].address),),
                timings=QUICK,
            )
            node = await stack.enter_async_context(open_node(config, socket=sockets[own]))
            node.handle(METHOD, own_id(node))
            nodes.append(node)
        a, b = nodes
        events = [node.subscribe_peers() for node in nodes]
        await until(lambda: all(len(peers_of(node)) == 1 for node in nodes))
        assert await a.call(b.id, METHOD) == str(b.id)
        assert await b.call(a.id, METHOD) == str(a.id)
        await until(lambda: all(node._endpoint.connections == 1 for node in nodes))
        await trio.sleep(0.1)
        assert [len(peers_of(node)) for node in nodes] == [1, 1]
        for channel, other in zip(events, (b, a), strict=True):
            (event,) = drained(channel)  # it came up once, and never went
            assert isinstance(event, PeerUp)
            assert event.info.id == other.id
        return sum(node.stats.connections_refused for node in nodes)


def own_id(node: Node) -> Callable[[Call], Awaitable[object]]:
    async def answer(_: Call) -> object:
        return str(node.id)

    return answer


def drained(channel: trio.MemoryReceiveChannel[PeerUp | PeerDown]) -> list[PeerUp | PeerDown]:
    events = []
    with suppress(trio.WouldBlock):
        while True:
            events.append(channel.receive_nowait())
    return events


async def test_two_that_dial_each_other_at_once_have_one_connection() -> None:
    crossed = 0
    for _ in range(8):
        crossed += await crossed_dials()
    assert crossed > 0, "the control: some dials did cross"
