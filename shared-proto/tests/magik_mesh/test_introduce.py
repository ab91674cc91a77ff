"""A node that knew nobody is told of a peer while it runs."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from magik_mesh.testing import MemoryFabric, bootstrap_to, config_of, peers_of


async def test_a_node_dials_whom_it_is_told_of(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    async with fabric.open(config_of(1)) as a, fabric.open(config_of(2, bootstrap=())) as b:
        await trio.sleep(60)
        assert peers_of(a) == peers_of(b) == []
        b.introduce(*bootstrap_to(1))
        await fabric.connected()


async def test_who_it_is_told_of_has_to_prove_that_identity(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    async with fabric.open(config_of(1)) as a, fabric.open(config_of(2, bootstrap=())) as b:
        b.introduce(*bootstrap_to(1, as_peer=config_of(3).identity.peer_id))
        await trio.sleep(60)
        assert peers_of(a) == peers_of(b) == []


async def test_one_that_was_given_up_is_dialled_at_once_when_it_is_told_of_again(
    autojump_clock: MockClock,
) -> None:
    fabric = MemoryFabric()
    async with fabric.open(config_of(2, bootstrap=())) as b:
        b.introduce(*bootstrap_to(1))
        await trio.sleep(600)  # given up long since
        async with fabric.open(config_of(1)):
            b.introduce(*bootstrap_to(1))
            await fabric.connected(1.0)


async def test_itself_and_who_is_connected_change_nothing(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    async with fabric.open(config_of(1)) as a, fabric.open(config_of(2)) as b:
        await fabric.connected()
        a.introduce(*bootstrap_to(1))
        b.introduce(*bootstrap_to(1))
        await trio.sleep(60)
        assert peers_of(a) == [b.id] and peers_of(b) == [a.id]
        assert [peer.id for peer in a.peers()] == [b.id]
