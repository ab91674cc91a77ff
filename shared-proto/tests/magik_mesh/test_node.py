"""Nodes on an in-memory network under a fake clock, with their real timings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from magik_mesh import (
    Accept,
    Call,
    CallRefused,
    Judgement,
    MeshLimits,
    Node,
    PeerDown,
    PeerEvent,
    PeerUnreachable,
    PeerUp,
    RpcFailed,
    RpcTimeout,
    Verdict,
)
from magik_mesh.codes import GOSSIP
from magik_mesh.testing import (
    MemoryFabric,
    bootstrap_to,
    config_of,
    identity_of,
    memory_fabric,
    peers_of,
    until,
)

METHOD = "/test/echo/1.0.0"
Events = trio.MemoryReceiveChannel[PeerEvent]


@pytest.fixture
async def three() -> AsyncIterator[MemoryFabric]:
    async with memory_fabric(3) as fabric:
        yield fabric


async def echo(call: Call) -> object:
    return {"peer": call.peer.raw, "roles": sorted(call.roles), "body": call.body}


async def next_down(events: Events) -> PeerDown:
    while not isinstance(event := await events.receive(), PeerDown):
        pass
    return event


async def next_up(events: Events) -> PeerUp:
    while not isinstance(event := await events.receive(), PeerUp):
        pass
    return event


class TestDiscovery:
    async def test_all_connect_to_all_through_one_bootstrap_peer_within_a_second(
        self, autojump_clock: MockClock
    ) -> None:
        async with memory_fabric(5) as fabric:
            began = trio.current_time()
            await fabric.connected()
            assert trio.current_time() - began < 1.0

    async def test_a_newcomer_is_dialled_or_dials_all(
        self, three: MemoryFabric, autojump_clock: MockClock
    ) -> None:
        await three.connected()
        async with three.open(config_of(4, bootstrap=bootstrap_to(3), labels={"zone": "north"})) as newcomer:
            await three.connected(1.0)
            seen = next(peer for peer in three.nodes[0].peers() if peer.id == newcomer.id)
            assert seen.labels == {"zone": "north"}
            assert seen.address == newcomer.address
            assert seen.roles == {"run", "submit"}

    async def test_one_connection_a_peer_though_both_dial_at_once(self, autojump_clock: MockClock) -> None:
        fabric = MemoryFabric()
        one = config_of(1, bootstrap=bootstrap_to(2))
        two = config_of(2, bootstrap=bootstrap_to(1))
        async with fabric.open(one) as a, fabric.open(two) as b:
            events = a.subscribe_peers()
            await fabric.connected()
            await trio.sleep(3.0)
            assert (peers_of(a), peers_of(b)) == ([b.id], [a.id])
            assert a._endpoint.connections == b._endpoint.connections == 1
            assert isinstance(events.receive_nowait(), PeerUp)
            with pytest.raises(trio.WouldBlock):
                events.receive_nowait()

    async def test_a_wrong_bootstrap_identity_is_told_once_and_both_are_named(
        self, autojump_clock: MockClock
    ) -> None:
        fabric = MemoryFabric()
        expected = identity_of(99).peer_id
        with capture_logs() as logs:
            async with fabric.open(config_of(1)) as right:
                mistaken = config_of(2, bootstrap=bootstrap_to(1, as_peer=expected))
                async with fabric.open(mistaken) as node:
                    await trio.sleep(20.0)
                    assert peers_of(node) == peers_of(right) == []
        warnings = [entry["event"] for entry in logs if "answered as" in entry["event"]]
        assert warnings == [
            f"bootstrap peer {expected} at 10.0.0.1:4001 answered as {right.id}: "
            "correct the --bootstrap-peer, or find out who took its address"
        ]

    async def test_a_bootstrap_peer_that_comes_late_is_found(self, autojump_clock: MockClock) -> None:
        fabric = MemoryFabric()
        with capture_logs() as logs:
            async with fabric.open(config_of(2)) as waiting:
                await trio.sleep(600.0)
                async with fabric.open(config_of(1)):
                    await fabric.connected(12.0)
                    assert len(peers_of(waiting)) == 1
        complaints = [entry for entry in logs if entry["event"] == "bootstrap peer does not answer"]
        assert 3 <= len(complaints) <= 10


class TestLoss:
    async def test_a_silent_death_is_noticed_within_fifteen_seconds(
        self, three: MemoryFabric, autojump_clock: MockClock
    ) -> None:
        await three.connected()
        dead, *others = three.nodes
        events = [node.subscribe_peers() for node in others]
        three.cut(dead)
        began = trio.current_time()
        for channel in events:
            down = await next_down(channel)
            assert down.id == dead.id
            assert down.reason.startswith("lost")
        assert 5.0 < trio.current_time() - began <= 15.5

    async def test_a_goodbye_is_noticed_at_once(self, three: MemoryFabric, autojump_clock: MockClock) -> None:
        await three.connected()
        events = three.nodes[0].subscribe_peers()
        async with three.open(config_of(4)) as leaver:
            await three.connected()
        began = trio.current_time()
        assert await next_down(events) == PeerDown(leaver.id, "goodbye")
        assert trio.current_time() - began < 0.1

    async def test_a_short_break_is_no_news(self, three: MemoryFabric, autojump_clock: MockClock) -> None:
        await three.connected()
        a, b, _ = three.nodes
        events = a.subscribe_peers()
        three.cut(b)
        await trio.sleep(6.0)
        three.mend(b)
        await trio.sleep(30.0)
        news = [events.receive_nowait() for _ in range(2)]
        assert all(isinstance(event, PeerUp) for event in news)
        with pytest.raises(trio.WouldBlock):
            events.receive_nowait()

    async def test_a_partition_that_heals_is_bridged(
        self, three: MemoryFabric, autojump_clock: MockClock
    ) -> None:
        await three.connected()
        three.cut(three.nodes[2])
        await until(lambda: peers_of(three.nodes[2]) == [], 20.0)
        await trio.sleep(20.0)
        three.mend(three.nodes[2])
        await three.connected(12.0)

    async def test_who_stays_away_is_forgotten(self, autojump_clock: MockClock) -> None:
        async with memory_fabric(2) as fabric:
            await fabric.connected()
            first, gone = fabric.nodes
            fabric.cut(gone)
            await trio.sleep(400.0)
            assert first.peers() == ()
            assert [peer.id for peer in gone.peers()] == [first.id]  # its bootstrap peer

    async def test_a_restart_replaces_the_old_connection(
        self, three: MemoryFabric, autojump_clock: MockClock
    ) -> None:
        await three.connected()
        events = three.nodes[0].subscribe_peers()
        old = three.open(config_of(4))
        async with old as before:
            await three.connected()
            three.cut(before)
            again = config_of(4, host="10.0.0.44")
            async with three.open(again) as after:
                began = trio.current_time()
                down = await next_down(events)
                up = await next_up(events)
                assert (down.id, down.reason, up.info.id) == (after.id, "restarted", after.id)
                assert trio.current_time() - began < 1.0
                assert up.info.address == after.address
                three.nodes[0].handle(METHOD, echo)
                await after.call(three.nodes[0].id, METHOD)


class TestCalls:
    async def test_an_answer(self, three: MemoryFabric, autojump_clock: MockClock) -> None:
        a, _, c = three.nodes
        c.handle(METHOD, echo)
        await three.connected()
        answer = await a.call(c.id, METHOD, [1, "two", b"3"])
        assert answer == {"peer": a.id.raw, "roles": ["run", "submit"], "body": [1, "two", b"3"]}

    async def test_the_handlers_own_error(self, three: MemoryFabric, autojump_clock: MockClock) -> None:
        async def refuse(_: Call) -> None:
            raise CallRefused("no-capacity", "come back later")

        a, b, _ = three.nodes
        b.handle(METHOD, refuse)
        await three.connected()
        with pytest.raises(RpcFailed) as caught:
            await a.call(b.id, METHOD)
        assert (caught.value.code, caught.value.message) == ("no-capacity", "come back later")

    async def test_unknown_peer_and_self(self, three: MemoryFabric, autojump_clock: MockClock) -> None:
        a = three.nodes[0]
        with pytest.raises(PeerUnreachable, match="told its address"):
            await a.call(identity_of(77).peer_id, METHOD)
        with pytest.raises(PeerUnreachable, match="itself"):
            await a.call(a.id, METHOD)

    async def test_the_deadline_travels_and_ends_the_handler(
        self, three: MemoryFabric, autojump_clock: MockClock
    ) -> None:
        remaining: list[float] = []
        cancelled = trio.Event()

        async def slow(call: Call) -> None:
            remaining.append(call.remaining)
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        a, b, _ = three.nodes
        b.handle(METHOD, slow)
        await three.connected()
        with pytest.raises((RpcTimeout, RpcFailed)):
            await a.call(b.id, METHOD, timeout=2.0)
        with trio.fail_after(1.0):
            await cancelled.wait()
        assert 1.5 < remaining[0] <= 2.0

    async def test_a_call_under_way_breaks_when_the_peer_dies(
        self, three: MemoryFabric, autojump_clock: MockClock
    ) -> None:
        async def hang(_: Call) -> None:
            await trio.sleep_forever()

        a, b, _ = three.nodes
        b.handle(METHOD, hang)
        await three.connected()
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(PeerUnreachable):
                    await a.call(b.id, METHOD, timeout=300.0)

            nursery.start_soon(ask)
            await trio.sleep(0.5)
            three.cut(b)
        await until(lambda: b.id not in peers_of(a))

    async def test_streams_go_both_ways_after_the_answer(
        self, three: MemoryFabric, autojump_clock: MockClock
    ) -> None:
        async def upper(call: Call) -> None:
            await call.reply({"greeting": call.body})
            async for chunk in call.stream:
                await call.stream.send_all(bytes(chunk).upper())

        a, b, _ = three.nodes
        b.handle(METHOD, upper)
        await three.connected()
        async with a.open_call(b.id, METHOD, "hi") as (answer, stream):
            assert answer == {"greeting": "hi"}
            await stream.send_all(b"abc")
            await stream.send_all(b"def" * 100_000)
            await stream.send_eof()
            received = b"".join([bytes(chunk) async for chunk in stream])
        assert received == b"ABC" + b"DEF" * 100_000

    async def test_leaving_a_stream_cancels_its_handler(
        self, three: MemoryFabric, autojump_clock: MockClock
    ) -> None:
        cancelled = trio.Event()

        async def follow(call: Call) -> None:
            await call.reply()
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        a, b, _ = three.nodes
        b.handle(METHOD, follow)
        await three.connected()
        async with a.open_call(b.id, METHOD):
            await trio.sleep(100.0)
            assert not cancelled.is_set()
        with trio.fail_after(1.0):
            await cancelled.wait()


class TestTopics:
    async def test_a_message_reaches_all_others_once(self, autojump_clock: MockClock) -> None:
        got: list[tuple[int, bytes]] = []

        def judge(index: int):  # type: ignore[no-untyped-def]
            async def validate(_: object, payload: bytes) -> Judgement:
                got.append((index, payload))
                return Accept(identity_of(1).peer_id)

            return validate

        async with memory_fabric(5) as fabric:
            for index, node in enumerate(fabric.nodes):
                node.subscribe("magik-fabric", judge(index))
            await fabric.connected()
            for number in range(20):
                await fabric.nodes[3].publish("magik-fabric", b"%d" % number)
            await until(lambda: len(got) >= 80)
            await trio.sleep(5.0)
        assert sorted(got) == sorted((i, b"%d" % n) for i in (0, 1, 2, 4) for n in range(20))

    async def test_a_message_of_no_known_origin_goes_no_further(
        self, three: MemoryFabric, autojump_clock: MockClock
    ) -> None:
        got: list[bytes] = []

        async def validate(_: object, payload: bytes) -> Any:
            got.append(payload)
            return Verdict.ACCEPT

        a, b, c = three.nodes
        for node in (b, c):
            node.subscribe("t", validate)
        await trio.sleep(1.0)
        await a.publish("t", b"whose?")
        await trio.sleep(5.0)
        assert got == [b"whose?"] * 2, "judged where it came, and forwarded by nobody"

    async def test_what_a_full_queue_dropped_comes_all_the_same(self, autojump_clock: MockClock) -> None:
        got: dict[bytes, None] = {}

        async def validate(_: object, payload: bytes) -> Judgement:
            assert payload not in got
            got[payload] = None
            return Accept(identity_of(1).peer_id)

        async with memory_fabric(2, limits=MeshLimits(gossip_frames=120)) as fabric:
            a, b = fabric.nodes
            await fabric.connected()
            b.subscribe("t", validate)
            await trio.sleep(1.0)
            fabric.cut(b)
            for number in range(200):
                await a.publish("t", number.to_bytes(2, "big") * 4000)
            assert a.stats.gossip_dropped > 0
            fabric.mend(b)
            await trio.sleep(10.0)
        assert len(got) == 200

    async def test_a_failing_validator_ends_neither_topic_nor_node(
        self, three: MemoryFabric, autojump_clock: MockClock
    ) -> None:
        got: list[bytes] = []

        async def validate(_: object, payload: bytes) -> Judgement:
            got.append(payload)
            if payload == b"bad":
                raise ValueError("a bug")
            return Accept(identity_of(1).peer_id)

        a, b, _ = three.nodes
        b.subscribe("topic", validate)
        await three.connected()
        await a.publish("topic", b"bad")
        await a.publish("topic", b"good")
        await until(lambda: got == [b"bad", b"good"])


class TestEnd:
    async def test_nothing_is_left_when_the_context_ends(self, autojump_clock: MockClock) -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        async with memory_fabric(3) as fabric:
            await fabric.connected()
            events = fabric.nodes[0].subscribe_peers()
        assert [event async for event in events]
        assert trio.lowlevel.current_statistics().tasks_living == before

    async def test_cancelling_a_node_says_goodbye_too(
        self, three: MemoryFabric, autojump_clock: MockClock
    ) -> None:
        await three.connected()
        events = three.nodes[0].subscribe_peers()
        with trio.CancelScope() as scope:
            async with three.open(config_of(4)) as node:
                await three.connected()
                scope.cancel()
                await trio.sleep_forever()
        with trio.fail_after(0.5):
            assert await next_down(events) == PeerDown(node.id, "goodbye")

    @pytest.mark.parametrize("leaves", [True, False])
    async def test_gossip_that_ends_before_the_goodbye_does_not_hide_it(
        self, *, three: MemoryFabric, leaves: bool, autojump_clock: MockClock
    ) -> None:
        """The tasks of a node that ends do so in any order. Who only stops reading its gossip is given up."""
        events = three.nodes[0].subscribe_peers()

        async def read_nothing(call: Call) -> None:
            return

        async with three.open(config_of(4)) as node:
            node._handlers[GOSSIP] = read_nothing
            while (await next_up(events)).info.id != node.id:
                pass
            if leaves:
                await trio.sleep(0.2)
            else:
                with capture_logs() as logs:
                    await until(lambda: any(entry["event"] == "connection given up" for entry in logs))
        if leaves:
            assert await next_down(events) == PeerDown(node.id, "goodbye")


async def test_handlers_are_registered_once_and_never_over_the_meshs_own(
    three: MemoryFabric, autojump_clock: MockClock
) -> None:
    node: Node = three.nodes[0]
    node.handle(METHOD, echo)
    with pytest.raises(ValueError, match="already"):
        node.handle(METHOD, echo)
    with pytest.raises(ValueError, match="already"):
        node.handle("/magik/mesh/peers/1.0.0", echo)
