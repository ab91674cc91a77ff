"""The short way of everyday packets: few datagrams, timely acknowledgements, and nothing forgotten on it."""

import contextlib

import pytest
import trio
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.rangeset import RangeSet
from trio_quic_support import (
    ALICE,
    BOB,
    ask,
    connected,
    endpoint_on,
    network,
    read_all,
    serve_echo,
    stream_pair,
)

from trio_quic import Connection, Limits
from trio_quic.lean import ACK_DELAY


class Counter:
    """Counts the datagrams of a network by their source."""

    def __init__(self, net):
        self.by = {}
        net.tap = self

    def __call__(self, data, source, destination):
        self.by[source] = self.by.get(source, 0) + 1
        return data


async def test_an_echo_takes_two_datagrams(autojump_clock):
    net = network()
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, bob)
        ours = await alice.connect(BOB)
        await ask(ours, b"warm")
        await trio.sleep(1)
        counter = Counter(net)
        for _ in range(50):
            stream = await ours.open_stream()
            await stream.send_last(b"x" * 200)
            assert await stream.receive_all(1000) == b"x" * 200
            await stream.aclose()
        assert sum(counter.by.values()) <= 2.2 * 50
        nursery.cancel_scope.cancel()


async def test_a_lone_answer_is_sent_at_once_and_several_share_a_datagram(autojump_clock):
    net = network()
    async with connected(net) as (ours, theirs):
        await trio.sleep(1)
        for together in (1, 3):
            asked = [ours.open_stream_nowait() for _ in range(together)]
            for stream in asked:
                stream.send_last_nowait(b"question")
            accepted = [await theirs.accept_stream() for _ in asked]
            counter = Counter(net)
            for stream in accepted:
                assert stream.receive_nowait() == b"question"
                stream.send_last_nowait(b"answer")
                stream.close_now()
            assert counter.by == ({BOB: 1} if together == 1 else {})
            for stream in asked:
                assert await stream.receive_all(100) == b"answer"
                stream.close_now()
            assert counter.by[BOB] == 1
            net.tap = None
            await trio.sleep(1)


async def test_an_acknowledgement_of_more_than_was_sent_does_no_harm(autojump_clock):
    """Only what was sent is acknowledged, however much a peer claims to have got."""
    async with connected(network()) as (ours, theirs):
        mine, other = await stream_pair(ours, theirs)
        await trio.sleep(1)
        quic = theirs._core._quic
        quic._application().ack_queue.add(0, 1 << 40)
        await other.send_all(b"x" * 3000)
        received = b""
        while len(received) < 3000:
            received += await mine.receive_some()
        await mine.send_last(b"still here")
        assert await read_all(other) == b"still here"


async def test_a_lone_packet_is_acknowledged_in_time(autojump_clock):
    net = network()
    async with connected(net) as (ours, theirs):
        mine, _ = await stream_pair(ours, theirs)
        await trio.sleep(1)
        await mine.send_all(b"x")
        start = trio.current_time()
        while ours._core.buffered(mine.id):  # noqa: ASYNC110 - nothing tells of an acknowledgement
            await trio.sleep(0.0005)
        assert trio.current_time() - start < ACK_DELAY + 0.005


async def test_the_second_packet_is_acknowledged_at_once(autojump_clock):
    net = network()
    async with connected(net) as (ours, theirs):
        mine, _ = await stream_pair(ours, theirs)
        await trio.sleep(1)
        await mine.send_all(b"x" * 2000)
        start = trio.current_time()
        while ours._core.buffered(mine.id):  # noqa: ASYNC110
            await trio.sleep(0.0005)
        assert trio.current_time() - start < ACK_DELAY / 2


async def test_streams_held_by_credit_go_on_when_there_is_credit(autojump_clock):
    limits = Limits(stream_window=4096, connection_window=8192, send_buffer=64 * 1024)
    async with connected(network(loss=0.05), limits=limits) as (ours, theirs):
        pairs = [await stream_pair(ours, theirs) for _ in range(4)]
        async with trio.open_nursery() as nursery:
            for mine, _ in pairs:
                nursery.start_soon(mine.send_last, b"x" * 50_000)
            for _, other in pairs:
                nursery.start_soon(expect, other, 50_000)


async def expect(stream, count):
    assert len(await read_all(stream)) == count


async def test_streams_take_turns(autojump_clock):
    """A small message does not wait for the end of a large one that was queued first."""
    async with connected(network()) as (ours, theirs), trio.open_nursery() as nursery:
        large, other_large = await stream_pair(ours, theirs)
        small, other_small = await stream_pair(ours, theirs)
        nursery.start_soon(large.send_last, b"x" * 200_000)
        await trio.lowlevel.checkpoint()
        nursery.start_soon(small.send_last, b"hello")
        assert await other_small.receive_all(10) == b"hello"
        assert len(other_large._received) < 100_000
        nursery.cancel_scope.cancel()


async def test_keys_are_changed_on_the_way(autojump_clock):
    net = network()
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, bob)
        ours = await alice.connect(BOB)
        for _ in range(3):
            assert await ask(ours, b"x" * 3000) == b"x" * 3000
            ours._core._quic.request_key_update()
        assert await ask(ours, b"end") == b"end"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("length", [4, 20])
async def test_peers_with_connection_ids_of_another_length(autojump_clock, length, monkeypatch):
    """Datagrams stay within their size, and everything arrives."""
    net = network()
    sizes = []

    def watch(data, source, destination):
        sizes.append(len(data))
        return data

    net.tap = watch
    async with connected(net) as (ours, theirs), trio.open_nursery() as nursery:
        mine, _ = await stream_pair(ours, theirs)
        await trio.sleep(1)
        ours._core._quic._peer_cid.cid = bytes(length)  # what follows goes nowhere, but is measured
        with contextlib.suppress(trio.BrokenResourceError):
            with trio.move_on_after(1):
                await mine.send_all(bytes(50_000))
        nursery.cancel_scope.cancel()
    assert max(sizes) == 1200


async def test_delayed_acknowledgements_do_not_look_like_a_queue(autojump_clock, monkeypatch):
    samples = []
    measured = RenoCongestionControl.on_rtt_measurement

    def note(self, *, now, rtt):
        samples.append(rtt)
        measured(self, now=now, rtt=rtt)

    monkeypatch.setattr(RenoCongestionControl, "on_rtt_measurement", note)
    async with connected(network()) as (ours, theirs):
        mine, _ = await stream_pair(ours, theirs)
        await trio.sleep(1)
        samples.clear()
        for _ in range(20):
            await mine.send_all(b"x")
            await trio.sleep(0.1)
    assert len(samples) >= 20
    assert max(samples) < ACK_DELAY / 2


async def test_an_acknowledgement_with_gaps_finds_what_was_lost(autojump_clock):
    net = network()
    async with connected(net) as (ours, theirs):
        mine, other = await stream_pair(ours, theirs)
        await trio.sleep(1)
        dropped = []

        def drop_third(data, source, destination):
            if source == ALICE and len(data) > 1000:
                dropped.append(data)
                return None if len(dropped) == 3 else data
            return data

        net.tap = drop_third
        start = trio.current_time()
        await mine.send_last(b"x" * 10_000)
        assert len(await other.receive_all(20_000)) == 10_000
        assert len(dropped) >= 3
        assert trio.current_time() - start < 0.05, "repaired by acknowledgements, not by a time-out"


@pytest.mark.parametrize("seed", range(3))
async def test_spare_connection_ids_are_told_and_told_again_when_lost(autojump_clock, seed):
    """Also after one was used up, which a server does for the sake of its reset token."""
    async with connected(network(seed, loss=0.4)) as (ours, theirs):
        await trio.sleep(60)
        for connection in (ours, theirs):
            assert len(connection._core._quic._peer_cid_available) == 7
        assert theirs._core._quic._peer_cid.sequence_number > 0


async def test_a_used_up_connection_id_is_replaced_without_delay(autojump_clock):
    async with connected(network()) as (_, theirs):
        await trio.sleep(1)
        assert theirs._core._quic._peer_cid.sequence_number > 0
        assert len(theirs._core._quic._peer_cid_available) == 7


async def test_the_short_way_follows_the_servers_change_of_connection_id(autojump_clock):
    async with connected(network()) as (ours, theirs):
        await trio.sleep(1)
        mine, other = await stream_pair(ours, theirs)
        await other.send_last(b"x")
        await mine.receive_all(10)
        assert ours._core._quic._everyday_cid == theirs._core._quic._peer_cid.cid


def test_a_rangeset_is_what_the_short_way_takes_it_for():
    """The newest range is the last one: an assumption about a private structure."""
    ranges = RangeSet([range(5, 7), range(3)])
    assert (ranges[-1].start, ranges[-1].stop) == (5, 7)


async def test_the_clock_of_a_busy_connection_is_seldom_set_and_yet_in_time(autojump_clock, monkeypatch):
    asked = 0
    due = Connection.due

    def counting(self):
        nonlocal asked
        asked += 1
        return due(self)

    monkeypatch.setattr(Connection, "due", counting)
    async with connected(network()) as (ours, theirs):
        mine, other = await stream_pair(ours, theirs)
        await trio.sleep(1)
        for pause in (0, 5, 15, 25, 40, 60, 90, 150, 300, 900):
            for _ in range(20):
                await mine.send_all(b"x")
                await other.send_all(await other.receive_some())
                await mine.receive_some()
            await trio.sleep(pause / 1000)  # whatever the clock was set to in between
            await mine.send_all(b"x")
            start = trio.current_time()
            while ours._core.buffered(mine.id):  # noqa: ASYNC110 - nothing tells of an acknowledgement
                await trio.sleep(0.0005)
            assert trio.current_time() - start < ACK_DELAY + 0.005
            assert await other.receive_some() == b"x"
    assert asked < 2 * 210, "it was twice on each side for a round trip before"
