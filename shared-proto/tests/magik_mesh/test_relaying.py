"""Machines behind NAT: who finds out, who relays, what becomes direct, and what happens when a relay is gone."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from relay_support import ECHO, NatFabric, bootstrap, carried, joined
from trio.testing import MockClock

from magik_mesh import MeshError, Reach, RelayLimits
from magik_mesh.testing import identity_of, peers_of, until
from magik_mesh.testing_nat import Filtering, Mapping


async def test_both_behind_cones_end_up_direct(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    async with fabric.public(1) as relay, fabric.hidden(11) as one, fabric.hidden(12) as other:
        await until(lambda: joined(one, other), 5)
        assert (relay.reach, one.reach, other.reach) == (Reach.OPEN, Reach.CLOSED, Reach.CLOSED)
        assert await one.call(other.id, ECHO, "by whatever way") == "by whatever way"
        await until(lambda: not one.is_relayed(other.id) and not other.is_relayed(one.id), 5)
        await until(lambda: carried(relay) == 0, 10)
        before = relay.stats.bytes_relayed
        assert before > 0
        assert await other.call(one.id, ECHO, "direct") == "direct"
        await trio.sleep(60)
        assert joined(one, other)
        assert relay.stats.bytes_relayed == before


async def test_what_runs_on_the_connection_survives_the_change(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    async with fabric.public(1) as relay, fabric.hidden(11) as one, fabric.hidden(12) as other:
        await until(lambda: joined(one, other), 5)
        assert one.is_relayed(other.id)
        async with one.open_call(other.id, "/test/mirror/1.0.0") as (_, stream):
            for number in range(100):
                await stream.send_all(number.to_bytes(1))
                assert await stream.receive_some() == number.to_bytes(1)
                await trio.sleep(0.1)
            assert carried(relay) == 0
            await stream.send_eof()
            assert await stream.receive_some() == b""


@pytest.mark.parametrize(
    ("one_nat", "other_nat", "direct"),
    [
        ((Mapping.SAME, Filtering.ANY), (Mapping.SAME, Filtering.PORT), True),
        ((Mapping.SAME, Filtering.HOST), (Mapping.SAME, Filtering.PORT), True),
        ((Mapping.EACH, Filtering.PORT), (Mapping.SAME, Filtering.HOST), True),
        ((Mapping.EACH, Filtering.PORT), (Mapping.SAME, Filtering.PORT), False),
        ((Mapping.EACH, Filtering.PORT), (Mapping.EACH, Filtering.PORT), False),
    ],
)
async def test_kinds_of_nat(
    autojump_clock: MockClock,
    one_nat: tuple[Mapping, Filtering],
    other_nat: tuple[Mapping, Filtering],
    direct: bool,
) -> None:
    fabric = NatFabric()
    async with (
        fabric.public(1),
        fabric.hidden(11, *one_nat) as one,
        fabric.hidden(12, *other_nat) as other,
    ):
        await until(lambda: joined(one, other), 10)
        await trio.sleep(20)
        assert (one.is_relayed(other.id), other.is_relayed(one.id)) == (not direct, not direct)
        big = bytes(60_000)
        assert await one.call(other.id, ECHO, big) == big
        assert await other.call(one.id, ECHO, big) == big


async def test_on_a_bad_wire(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    fabric.memory.network.loss, fabric.memory.network.jitter = 0.05, 0.03
    async with fabric.public(1), fabric.hidden(11) as one, fabric.hidden(12) as other:
        await until(lambda: joined(one, other), 30)
        await until(lambda: not one.is_relayed(other.id) and not other.is_relayed(one.id), 120)
        big = bytes(60_000)
        assert await one.call(other.id, ECHO, big) == big


async def test_a_reachable_machine_reaches_a_hidden_one_that_never_called_it(
    autojump_clock: MockClock,
) -> None:
    """The hidden one dials nobody but its bootstrap peer: it has room for no more."""
    fabric = NatFabric()
    async with (
        fabric.public(1),
        fabric.hidden(11, max_connections=2) as hidden,
        fabric.public(2) as stranger,
    ):
        await until(lambda: bool(hidden.relays), 5)
        await until(lambda: joined(hidden, stranger), 10)
        assert await stranger.call(hidden.id, ECHO, 1) == 1
        await until(lambda: not stranger.is_relayed(hidden.id), 5)


async def test_another_relay_is_found_when_one_dies(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    async with (
        fabric.public(1) as first,
        fabric.public(2) as second,
        fabric.public(3) as third,
        fabric.hidden(11, Mapping.EACH, bootstrap=bootstrap(1, 2, 3)) as one,
        fabric.hidden(12, Mapping.EACH, bootstrap=bootstrap(1, 2, 3)) as other,
    ):
        publics = (first, second, third)
        await until(lambda: joined(one, other) and len(one.relays) == len(other.relays) == 2, 10)
        dead = next(node for node in publics if carried(node))
        fabric.memory.cut(dead)
        await until(lambda: dead.id not in (*one.relays, *other.relays), 20)
        await until(lambda: len(one.relays) == len(other.relays) == 2, 10)
        await until(lambda: any(carried(node) for node in publics if node is not dead), 20)
        await until(lambda: joined(one, other), 10)
        assert await one.call(other.id, ECHO, "again") == "again"


async def test_a_machine_told_not_to_relay_does_not(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    async with (
        fabric.public(1, relays_for_others=False) as first,
        fabric.hidden(11) as one,
        fabric.hidden(12) as other,
    ):
        await until(lambda: one.reach is other.reach is Reach.CLOSED, 5)
        await trio.sleep(30)
        assert not one.relays
        assert not joined(one, other)
        async with fabric.public(2, bootstrap=bootstrap(1)) as second:
            await until(lambda: one.relays == other.relays == (second.id,), 100)
            await until(lambda: joined(one, other), 10)
        assert first.stats.circuits_relayed == 0


async def test_a_machine_that_says_where_it_is_reached_needs_no_probe(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    async with fabric.public(1), fabric.hidden(11, advertise=("192.0.2.11:4001",)) as forwarded:
        await until(lambda: forwarded.reach is Reach.OPEN, 5)
        await trio.sleep(30)
        assert not forwarded.relays


async def test_full_relays_refuse(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    limits = RelayLimits(circuits_per_peer=1)
    async with (
        fabric.public(1, relay=limits) as relay,
        fabric.hidden(11, Mapping.EACH) as one,
        fabric.hidden(12, Mapping.EACH),
        fabric.hidden(13, Mapping.EACH),
    ):
        await trio.sleep(30)
        assert carried(relay) == 1
        hidden = {identity_of(seed).peer_id for seed in (11, 12, 13)}
        assert sum(peer.connected for peer in one.peers() if peer.id in hidden) <= 1


async def test_a_circuit_that_has_carried_its_all_is_replaced(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    limits = RelayLimits(circuit_bytes=200_000)
    async with (
        fabric.public(1, relay=limits) as relay,
        fabric.hidden(11, Mapping.EACH) as one,
        fabric.hidden(12, Mapping.EACH) as other,
    ):
        await until(lambda: joined(one, other), 10)
        began = relay.stats.circuits_relayed
        with pytest.raises(Exception, match="unreachable"):
            await one.call(other.id, ECHO, bytes(300_000))
        # There may be two circuits, one of either's opening: that the other one is there says nothing.
        await until(lambda: relay.stats.circuits_relayed > began, 30)
        await until(lambda: joined(one, other) and carried(relay) == 1, 30)
        assert await one.call(other.id, ECHO, "again") == "again"


async def test_a_circuit_is_slowed_to_its_rate(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    limits = RelayLimits(rate=100_000, burst=10_000)
    async with (
        fabric.public(1, relay=limits) as relay,
        fabric.hidden(11, Mapping.EACH) as one,
        fabric.hidden(12, Mapping.EACH) as other,
    ):
        await until(lambda: joined(one, other), 10)
        began, before = trio.current_time(), relay.stats.bytes_relayed
        await one.call(other.id, ECHO, bytes(250_000), timeout=60)
        seconds = trio.current_time() - began
        carried_now = relay.stats.bytes_relayed - before
        assert carried_now > 500_000
        assert (carried_now - limits.burst - 2 * (16 << 10)) / seconds <= limits.rate


async def test_nothing_is_left_when_the_connection_ends(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    async with fabric.public(1) as relay, fabric.hidden(11, Mapping.EACH) as one:
        async with fabric.hidden(12, Mapping.EACH) as other:
            await until(lambda: joined(one, other) and carried(relay) == 1, 10)
        await until(lambda: carried(relay) == 0, 5)
        await until(lambda: not one.is_relayed(other.id), 5)


@pytest.mark.parametrize("filtering", [Filtering.HOST, Filtering.PORT])
async def test_where_others_see_a_machine_is_in_its_record_if_it_listens_anywhere(
    autojump_clock: MockClock, filtering: Filtering
) -> None:
    """Both dial each other at once, which opens both NATs: no relay is needed, nor the right verdict of a probe."""
    fabric = NatFabric()
    async with (
        fabric.public(1, relays_for_others=False),
        fabric.hidden(11, Mapping.SAME, filtering, host="0.0.0.0") as one,
        fabric.hidden(12, Mapping.SAME, filtering, host="0.0.0.0") as other,
    ):
        await until(lambda: joined(one, other), 30)
        assert await one.call(other.id, ECHO, 1) == 1
        assert not one.is_relayed(other.id)


async def test_a_direct_path_that_dies_is_replaced(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    async with fabric.public(1) as relay, fabric.hidden(11) as one, fabric.hidden(12) as other:
        await until(lambda: joined(one, other) and not one.is_relayed(other.id), 10)
        await until(lambda: carried(relay) == 0, 10)
        for nat in fabric.nats.values():
            nat.forget()
        before = relay.stats.circuits_relayed
        with pytest.raises(MeshError):
            await one.call(other.id, ECHO, 1, timeout=1)
        await until(lambda: relay.stats.circuits_relayed > before, 30)
        await until(lambda: joined(one, other) and not one.is_relayed(other.id), 10)
        assert await one.call(other.id, ECHO, 2) == 2


async def test_in_a_fabric_of_more_machines_than_connections(autojump_clock: MockClock) -> None:
    """Hidden machines that have no connection find each other, through relays that the caller may not know yet."""
    fabric = NatFabric()
    async with AsyncExitStack() as stack:
        few = {"max_connections": 3}
        public = [await stack.enter_async_context(fabric.public(seed, **few)) for seed in range(1, 6)]
        hidden = [
            await stack.enter_async_context(fabric.hidden(seed, Mapping.EACH, **few)) for seed in (11, 12)
        ]
        await until(lambda: all(node.relays for node in hidden), 30)
        await trio.sleep(5)
        assert [len(node.relays) for node in hidden] == [1, 1]  # two connections of three are left for a call
        for caller in hidden:
            for callee in hidden:
                if caller is not callee:
                    assert await caller.call(callee.id, ECHO, 1, timeout=20) == 1
                    assert caller.is_relayed(callee.id)
        # Who has but a hint of where a machine is asks the hash table for its record, which names the relays.
        target = hidden[0]
        stranger = next(node for node in public if target.id not in peers_of(node))
        known = stranger._presence.directory.get(target.id)
        assert known is not None
        known.record, known.observed = None, ("192.0.2.11", 9)
        assert await stranger.call(target.id, ECHO, 2, timeout=20) == 2
