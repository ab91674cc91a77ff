"""The hash table of real nodes: machines that nobody has told of are found, whoever was the seed."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from magik_mesh import Call, MeshLimits, Node, PeerUnreachable
from magik_mesh.testing import (
    MemoryFabric,
    bootstrap_to,
    config_of,
    identity_of,
    memory_fabric,
    peers_of,
)
from magik_proto.dht_types import Find

METHOD = "/test/echo/1.0.0"
# So few that most machines of the fabric are strangers to each other.
FEW = MeshLimits(known_peers=6, peers_per_exchange=2, briefs=8)


async def echo(call: Call) -> object:
    return call.body


async def found_by(node: Node, other: Node, seconds: float) -> bool:
    """Whether `node` finds out where `other` is, by the hash table, within so many seconds."""
    ends = trio.current_time() + seconds
    while trio.current_time() <= ends:
        if other.address in await node.find_peer(other.id):
            return trio.current_time() <= ends
        await trio.sleep(0.05)
    return False


async def test_everybody_finds_everybody_though_each_knows_few(autojump_clock: MockClock) -> None:
    async with memory_fabric(30, max_connections=6, limits=FEW) as fabric:
        await trio.sleep(5.0)
        for number, node in enumerate(fabric.nodes):
            other = fabric.nodes[number * 7 % 30 - 1]
            if other is not node:
                assert await found_by(node, other, 2.0)
                assert len(node.peers()) <= 6 + 6


async def test_a_fresh_machine_is_found_within_two_seconds(autojump_clock: MockClock) -> None:
    async with memory_fabric(30, max_connections=6, limits=FEW) as fabric:
        await trio.sleep(5.0)
        others = tuple(fabric.nodes)
        began = trio.current_time()
        fresh = config_of(31, bootstrap=bootstrap_to(17), max_connections=6, limits=FEW)
        async with fabric.open(fresh) as newcomer:
            for node in others:
                assert await found_by(node, newcomer, began + 2.0 - trio.current_time())


async def test_a_call_finds_its_peer_and_without_the_table_it_would_not(autojump_clock: MockClock) -> None:
    async with memory_fabric(20, max_connections=6, limits=FEW) as fabric:
        for node in fabric.nodes:
            node.handle(METHOD, echo)
        await trio.sleep(5.0)
        caller = fabric.nodes[5]
        strangers = [n for n in fabric.nodes if n.id not in {info.id for info in caller.peers()}][1:]
        assert strangers
        for node in strangers:
            assert await caller.call(node.id, METHOD, "hi", timeout=3.0) == "hi"
        with pytest.raises(PeerUnreachable, match="told its address"):
            await caller.call(identity_of(99).peer_id, METHOD, timeout=10.0)


async def test_the_seed_may_go(autojump_clock: MockClock) -> None:
    async with memory_fabric(16, max_connections=6, limits=FEW) as fabric:
        await trio.sleep(10.0)
        fabric.cut(fabric.nodes[0])
        await trio.sleep(30.0)
        late = config_of(17, bootstrap=bootstrap_to(9), max_connections=6, limits=FEW)
        async with fabric.open(late) as newcomer:
            for node in fabric.nodes[1:16]:
                assert await found_by(node, newcomer, 5.0)
                assert await found_by(newcomer, node, 5.0)


async def test_brief_connections_are_bounded_are_no_peers_and_go_again(autojump_clock: MockClock) -> None:
    async with memory_fabric(24, max_connections=4, limits=FEW) as fabric:
        await trio.sleep(5.0)
        node = fabric.nodes[3]
        most = 0
        for number in range(20):
            await node.closest(bytes([number]) * 32)
            most = max(most, len(node._briefs))
            assert len(peers_of(node)) <= 4
        assert 4 < most <= 2 * FEW.briefs
        await trio.sleep(40.0)
        assert all(len(n._briefs) < most for n in fabric.nodes)


async def test_garbage_in_a_find_is_refused_and_nothing_else(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    async with fabric.open(config_of(1)) as node, fabric.open(config_of(2)) as other:
        await fabric.connected()
        for body in (None, {}, {"key": b"short"}, {"key": bytes(32), "addrs": ["example.org:1"]}):
            with pytest.raises(Exception, match=r"dht\.frame"):
                await other.call(node.id, "/magik/dht/find/1.0.0", body)
        answer = await other.call(node.id, "/magik/dht/find/1.0.0", {"key": Find(bytes(32)).key})
        assert answer == {"peers": []}
