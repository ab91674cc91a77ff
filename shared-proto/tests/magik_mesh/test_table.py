"""The hash table of real nodes: machines that nobody has told of are found, whoever was the seed."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from magik_mesh import Call, MeshLimits, Node, PeerUnreachable, RpcFailed
from magik_mesh.testing import (
    MemoryFabric,
    bootstrap_to,
    config_of,
    identity_of,
    memory_fabric,
    peers_of,
    until,
)
from magik_proto.dht_types import Find
from magik_proto.identity import PeerId

METHOD = "/test/echo/1.0.0"
# So few that most machines of the fabric are strangers to each other.
FEW = MeshLimits(known_peers=10, peers_per_exchange=3, peers_when_large=2, briefs=8)


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


async def test_strangers_are_found_called_and_let_go_and_a_fresh_machine_is_found_within_two_seconds(
    autojump_clock: MockClock,
) -> None:
    async with memory_fabric(14, max_connections=4, limits=FEW) as fabric:
        for node in fabric.nodes:
            node.handle(METHOD, echo)
        await trio.sleep(10.0)
        before = tuple(fabric.nodes)
        began = trio.current_time()
        fresh = config_of(15, bootstrap=bootstrap_to(7), max_connections=4, limits=FEW)
        async with fabric.open(fresh) as newcomer:
            for node in before:
                assert await found_by(node, newcomer, began + 2.0 - trio.current_time())
            for node in before:
                assert await newcomer.call(node.id, METHOD, "hi", timeout=3.0) == "hi"
                assert len(peers_of(newcomer)) <= 4
            with pytest.raises(PeerUnreachable, match="told its address"):
                await newcomer.call(identity_of(99).peer_id, METHOD, timeout=10.0)
        assert all(len(node._briefs) <= 2 * FEW.briefs for node in before)
        assert any(len(node._briefs) > 4 for node in before)
        await trio.sleep(25.0)
        assert max(len(node._briefs) for node in before) < 8, "but for one walk a minute there is no need"


async def test_the_seed_may_go_and_a_large_fabric_has_few_connections(autojump_clock: MockClock) -> None:
    async with memory_fabric(14, max_connections=4, limits=FEW) as fabric:
        await trio.sleep(10.0)
        fabric.cut(fabric.nodes[0])
        await trio.sleep(40.0)
        assert all(1 <= len(peers_of(node)) <= 4 for node in fabric.nodes[1:])
        assert all(12 <= node.size_estimate() <= 16 for node in fabric.nodes[1:])
        late = config_of(15, bootstrap=bootstrap_to(9), max_connections=4, limits=FEW)
        async with fabric.open(late) as newcomer:
            for node in fabric.nodes[1:14]:
                assert await found_by(node, newcomer, 2.0)
                assert await found_by(newcomer, node, 2.0)


async def test_a_stranger_is_asked_without_a_connection_in_use(autojump_clock: MockClock) -> None:
    async with memory_fabric(14, max_connections=4, limits=FEW) as fabric:
        for node in fabric.nodes:
            node.handle(METHOD, echo, brief=True)
            node.handle("/test/greeted/1.0.0", echo)
        await trio.sleep(30.0)
        asker = fabric.nodes[0]
        assert asker.large
        before = set(peers_of(asker))
        strangers = [n.id for n in fabric.nodes[1:] if n.id not in before]
        answers: list[object] = []

        async def ask(peer: PeerId) -> None:
            answers.append(await asker.ask(peer, METHOD, peer.raw, timeout=8.0))

        async with trio.open_nursery() as nursery:
            for peer in strangers:
                nursery.start_soon(ask, peer)
        assert sorted(map(str, answers)) == sorted(str(peer.raw) for peer in strangers) and len(answers) >= 9
        assert set(peers_of(asker)) <= before, "no connection was made for it"
        with pytest.raises(RpcFailed, match="unimplemented"):
            await asker.ask(strangers[0], "/test/greeted/1.0.0")
        with pytest.raises(PeerUnreachable, match="told its address"):
            await asker.ask(identity_of(99).peer_id, METHOD, timeout=10.0)


async def test_connections_and_neighbours_together_lead_to_everybody(autojump_clock: MockClock) -> None:
    async with memory_fabric(14, max_connections=4, limits=FEW) as fabric:
        await trio.sleep(30.0)
        by_id = {node.id: node for node in fabric.nodes}
        reached, ahead = {fabric.nodes[0].id}, [fabric.nodes[0]]
        while ahead:
            for contact in ahead.pop().contacts():
                if contact.peer not in reached:
                    reached.add(contact.peer)
                    ahead.append(by_id[contact.peer])
        assert reached == set(by_id)


async def test_garbage_in_a_find_is_refused_and_nothing_else(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    async with fabric.open(config_of(1)) as node, fabric.open(config_of(2)) as other:
        await fabric.connected()
        for body in (None, {}, {"key": b"short"}, {"key": bytes(32), "addrs": ["example.org:1"]}):
            with pytest.raises(Exception, match=r"dht\.frame"):
                await other.call(node.id, "/magik/dht/find/1.0.0", body)
        answer = await other.call(node.id, "/magik/dht/find/1.0.0", {"key": Find(bytes(32)).key})
        assert answer == {"peers": []}


async def test_a_mesh_that_was_split_for_long_heals_without_any_bootstrap_peer(
    autojump_clock: MockClock,
) -> None:
    async with memory_fabric(4) as fabric:
        await fabric.connected()
        away = fabric.nodes[3]
        fabric.cut(away)
        await until(lambda: not peers_of(away), 20.0)
        fabric.cut(fabric.nodes[0])  # whom all of them know from their configuration
        await trio.sleep(400.0)
        others = fabric.nodes[1:3]
        assert all(away.id not in {info.id for info in node.peers()} for node in others), "it is forgotten"
        fabric.mend(away)
        await until(lambda: sorted(peers_of(away)) == sorted(node.id for node in others), 100.0)
