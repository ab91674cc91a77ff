"""The native core keeps the rules that the other core keeps, at the boundary that users have."""

from contextlib import AsyncExitStack, suppress

import pytest
import test_connection
import test_endpoint
import test_hostile
import test_stream
import trio
import trio_quic_support
from trio.testing import check_half_closeable_stream
from trio_quic_support import (
    ALICE,
    ALPN,
    BOB,
    ask,
    connected,
    credentials,
    endpoint_on,
    name_of,
    network,
    read_all,
    serve_echo,
    stream_pair,
)

from trio_quic import ConnectionClosed, HandshakeFailed, Limits, PeerRejected, StreamReset, open_endpoint
from trio_quic.core import AioquicCore
from trio_quic.native import MAX_WAITING, NativeCore

# Tests of the other core that look at nothing but the boundary.
ALIKE = [
    test_connection.test_both_sides_know_each_other,
    test_connection.test_a_clean_close_is_noticed_at_once_with_code_and_reason,
    test_connection.test_a_long_reason_is_cut,
    test_connection.test_a_lost_farewell_is_repeated,
    test_connection.test_keep_alive_lets_idle_connections_live,
    test_connection.test_without_keep_alive_idle_connections_end,
    test_connection.test_a_dead_peer_is_noticed,
    test_connection.test_opening_more_streams_than_allowed_waits_for_a_slot,
    test_connection.test_one_connection_more_than_allowed_is_refused,
    test_connection.test_unaccepted_connections_are_bounded_and_the_rest_gets_its_turn,
    test_connection.test_migration_of_the_clients_address,
    test_endpoint.test_leaving_tells_the_peers_and_leaves_no_task,
    test_endpoint.test_a_cancelled_endpoint_closes_its_connections,
    test_endpoint.test_connect_gives_up_and_leaves_nothing,
    test_endpoint.test_half_open_clients_are_dropped_in_time,
    test_endpoint.test_random_datagrams_harm_nobody,
    test_hostile.test_every_client_may_be_asked_for_proof,
    test_hostile.test_connections_from_one_address_are_bounded_and_others_are_not_touched,
    test_hostile.test_connections_of_one_identity_are_bounded_and_others_are_not_touched,
    test_hostile.test_a_borrowed_address_in_the_midst_of_a_connection_gets_no_flood,
    test_hostile.test_a_forged_reset_harms_nobody_and_answers_die_out,
    test_stream.test_bytes_survive_a_bad_network,
    test_stream.test_unread_streams_that_are_closed_give_their_credit_back,
    test_stream.test_reset_streams_give_their_credit_back,
    test_stream.test_half_close_leaves_the_other_direction_open,
    test_stream.test_closing_tells_a_sender_to_stop,
    test_stream.test_reset_reaches_both_directions_with_its_code,
    test_stream.test_what_arrived_can_be_read_after_the_connections_end,
    test_stream.test_a_waiting_sender_learns_of_a_lost_connection,
]


@pytest.fixture(autouse=True)
def with_the_native_core(monkeypatch):
    monkeypatch.setattr(trio_quic_support, "CORE", NativeCore)


@pytest.mark.parametrize("case", ALIKE, ids=lambda case: case.__name__)
async def test_as_with_the_other_core(autojump_clock, case):
    await case(autojump_clock)


@pytest.mark.parametrize("retry_above", [0, 4, 32])
async def test_no_unproven_address_gets_more_than_three_times_its_bytes(autojump_clock, retry_above):
    await test_hostile.test_no_unproven_address_gets_more_than_three_times_its_bytes(
        autojump_clock, 1, retry_above
    )


@pytest.mark.parametrize("seed", range(4))
async def test_mutated_datagrams_harm_nobody(autojump_clock, seed):
    await test_endpoint.test_mutated_datagrams_harm_nobody(autojump_clock, seed)


async def test_a_restarted_server_is_noticed_with_the_first_datagram(autojump_clock):
    await test_hostile.test_a_restarted_peer_is_noticed_with_the_first_datagram(autojump_clock, BOB)


async def test_trios_own_check(autojump_clock):
    limits = Limits(send_buffer=4096, stream_window=4096, connection_window=4096)
    async with connected(network(), limits=limits) as (ours, theirs):

        async def make():
            return await stream_pair(ours, theirs)

        async def make_clogged():
            pair = await stream_pair(ours, theirs)
            for stream in 2 * pair:  # a second time: senders are woken when there is room for half a buffer
                with trio.move_on_after(2):
                    await stream.send_all(b"x" * 100_000)
            return pair

        await check_half_closeable_stream(make, make_clogged)


async def test_a_sleeping_reader_holds_the_sender_back_and_loses_nothing(autojump_clock):
    limits = Limits(send_buffer=32 * 1024, stream_window=64 * 1024, connection_window=128 * 1024)
    sent = bytes(range(256)) * 4096
    async with connected(network(), limits=limits) as (ours, theirs), trio.open_nursery() as nursery:
        mine, other = await stream_pair(ours, theirs)
        nursery.start_soon(mine.send_last, sent)
        await trio.sleep(60)
        assert limits.connection_window <= len(other._received) <= limits.connection_window + 64 * 1024
        assert ours._core.buffered(mine.id) <= limits.send_buffer
        begin = b""
        for enough in range(60_000, 300_001, 60_000):  # reads a little, and sleeps again
            while len(begin) < enough:
                begin += await other.receive_some(10_000)
            await trio.sleep(20)
            assert len(other._received) <= limits.connection_window + 64 * 1024
        assert begin + await read_all(other) == sent


async def test_other_streams_go_on_until_the_connections_window_is_unread(autojump_clock):
    """Stated in trio_quic.native: beyond it they wait, lose nothing, and go on when it is read."""
    limits = Limits(stream_window=64 * 1024, connection_window=128 * 1024)
    async with connected(network(), limits=limits) as (ours, theirs), trio.open_nursery() as nursery:
        unread, other = await stream_pair(ours, theirs)
        await unread.send_all(b"x" * 100_000)
        await trio.sleep(1)
        mine, small = await stream_pair(ours, theirs)
        await mine.send_all(b"goes on")
        assert await small.receive_some() == b"goes on"
        nursery.start_soon(unread.send_last, b"x" * 1_000_000)
        await trio.sleep(1)
        await mine.send_last(b"waits")
        with trio.move_on_after(5) as waited:
            await small.receive_some()
        assert waited.cancelled_caught
        nursery.start_soon(read_all, other)
        assert await small.receive_all(10) == b"waits"


async def test_a_connection_that_ends_while_nobody_reads_is_over_at_once(autojump_clock):
    limits = Limits(connection_window=64 * 1024)
    async with connected(network(), limits=limits) as (ours, theirs), trio.open_nursery() as nursery:
        mine, other = await stream_pair(ours, theirs)

        async def send():
            with pytest.raises(trio.ClosedResourceError):
                await mine.send_all(b"x" * 1_000_000)

        nursery.start_soon(send)
        await trio.sleep(1)
        await ours.aclose(7, "enough")
        with trio.fail_after(1):
            await theirs.closed.wait()
        assert isinstance(theirs.close_error, ConnectionClosed)
        assert theirs.close_error.code == 7
        received = 0
        with pytest.raises(ConnectionClosed):
            while True:
                received += len(await other.receive_some())
        assert received >= limits.connection_window


async def test_a_cancelled_send_is_not_taken_for_the_whole(autojump_clock):
    limits = Limits(send_buffer=4096, stream_window=4096, connection_window=4096)
    async with connected(network(), limits=limits) as (ours, theirs):
        mine, other = await stream_pair(ours, theirs)
        with trio.move_on_after(1):
            await mine.send_all(b"x" * 50_000)
        await mine.aclose()
        with pytest.raises(StreamReset):
            await read_all(other)


async def test_streams_in_haste_do_not_pile_up(autojump_clock):
    """A peer opens, ends and abandons streams faster than they are accepted: over on the wire, and not looked at."""
    async with connected(network()) as (ours, theirs):
        core = ours._core
        for _ in range(100):
            for _ in range(100):
                if core.can_open():
                    stream_id = core.open_stream()
                    core.send(stream_id, b"x", fin=True)
                    core.stop(stream_id, 0)
                    core.let_go(stream_id)
            ours.wake()
            await trio.sleep(0.05)
        assert len(theirs._streams) <= 200 + 100
        assert theirs._core._waiting <= MAX_WAITING + 1024
        assert theirs.close_error is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_echo_on, theirs)
            await trio.sleep(20)
            assert await ask(ours, b"and all the same") == b"and all the same"
            nursery.cancel_scope.cancel()


async def serve_echo_on(connection):
    async def serve(stream):
        with suppress(StreamReset):
            await trio_quic_support.echo(stream)

    async with trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(serve, await connection.accept_stream())


async def test_thousands_of_streams_leave_nothing_behind(autojump_clock):
    net = network()
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, bob)
        ours = await alice.connect(BOB)

        async def many():
            for _ in range(100):
                assert await ask(ours, b"x" * 300) == b"x" * 300

        async with trio.open_nursery() as askers:
            for _ in range(20):
                askers.start_soon(many)
        await trio.sleep(10)
        for connection in (ours, *bob._cids):
            core = connection._core
            assert not connection._streams
            assert (core._streams, core._unread, core._ours, core._theirs) == ({}, 0, 0, 0)
            assert core._quic._created_local_stream_ids <= {1}, "the proof's"
        nursery.cancel_scope.cancel()


async def test_a_unidirectional_stream_ends_the_connection(autojump_clock):
    async with connected(network()) as (ours, theirs):
        raw = ours._core._quic.raw
        raw.send_stream(raw.open_stream(True), b"anybody?", False)
        ours.wake()
        with trio.fail_after(1):
            await ours.closed.wait()
        assert "unidirectional" in str(ours.close_error)
        assert "unidirectional" in str(theirs.close_error)


async def test_nobody_is_sent_unreliable_datagrams(autojump_clock):
    """They know no credit, so nobody says that it takes any."""
    async with connected(network()) as (ours, theirs):
        for connection in (ours, theirs):
            with pytest.raises((ValueError, RuntimeError)):
                connection._core._quic.raw.send_datagram(b"x")


@pytest.mark.parametrize("step", ["receive_datagram", "handle_timer", "poll_transmit", "send_stream"])
@pytest.mark.parametrize("error", [RuntimeError, "panic"])
async def test_a_core_that_falls_over_ends_one_connection(autojump_clock, step, error):
    """A panic of the Rust code is no Exception."""
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    class Broken:
        def __init__(self, raw):
            self.raw = self
            self._raw = raw

        def __getattr__(self, name):
            if name == step:
                raise (panic if error == "panic" else error)("fell over")
            return getattr(self._raw, name)

    net = network()
    async with connected(net) as (ours, theirs), endpoint_on(net, ("10.0.0.66", 4433)) as eve:
        doomed = await eve.connect(BOB)
        stream = await doomed.open_stream()
        doomed._core._quic._core = Broken(doomed._core._quic._core.raw)
        await stream.send_all(b"x")
        with trio.fail_after(20):
            await doomed.closed.wait()
        assert "fell over" in str(doomed.close_error)
        await stream_pair(ours, theirs)


async def test_a_refused_client_hears_it_from_connect(autojump_clock):
    net = network()

    def refuse(certificate):
        raise PeerRejected(f"not {name_of(certificate)}")

    async with endpoint_on(net, ALICE, "alice") as alice, endpoint_on(net, BOB, verify_peer=refuse) as bob:
        with pytest.raises(PeerRejected, match="not alice") as caught:
            await alice.connect(BOB)
        assert caught.value.by_remote
        await trio.sleep(1)
        assert (alice.connections, bob.connections) == (0, 0)


@pytest.mark.parametrize(("ours", "theirs"), [(NativeCore, AioquicCore), (AioquicCore, NativeCore)])
async def test_the_two_cores_do_not_meet(autojump_clock, monkeypatch, ours, theirs):
    """Nobody on the way can have one take the other for itself: ALPN is part of what TLS signs."""
    net = network()
    async with AsyncExitStack() as stack:
        opened = []
        for address, core in ((ALICE, ours), (BOB, theirs)):
            monkeypatch.setattr(trio_quic_support, "CORE", core)
            opened.append(await stack.enter_async_context(endpoint_on(net, address)))
        alice, bob = opened
        with pytest.raises(HandshakeFailed) as caught:
            await alice.connect(BOB)
        assert not isinstance(caught.value, PeerRejected)
        assert (alice.connections, bob.connections) == (0, 0)


async def test_over_real_udp():
    opened = [
        open_endpoint(
            "127.0.0.1", 0, credentials=credentials(name), alpn=ALPN, verify_peer=name_of, core=NativeCore
        )
        for name in ("a", "b")
    ]
    async with opened[0] as alice, opened[1] as bob, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, bob)
        with trio.fail_after(10):
            ours = await alice.connect(bob.local_address)
            assert ours.peer == "b"
            assert await ask(ours, b"x" * 500_000) == b"x" * 500_000
        nursery.cancel_scope.cancel()
