"""Connections: their ends are told apart, they live while the peer lives, and streams wait for slots."""

import pytest
import trio
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

from trio_quic import ConnectionClosed, ConnectionLost, EndpointFull, HandshakeFailed, Limits


async def test_both_sides_know_each_other(autojump_clock):
    async with connected(network()) as (ours, theirs):
        assert (ours.peer, ours.is_client, ours.remote_address) == ("bob", True, BOB)
        assert (theirs.peer, theirs.is_client, theirs.remote_address) == ("alice", False, ALICE)


async def test_a_clean_close_is_noticed_at_once_with_code_and_reason(autojump_clock):
    async with connected(network()) as (ours, theirs):
        start = trio.current_time()
        await ours.aclose(7, "enough")
        await theirs.closed.wait()
        assert trio.current_time() - start < 0.1
        assert isinstance(theirs.close_error, ConnectionClosed)
        assert (theirs.close_error.code, theirs.close_error.reason) == (7, "enough")
        assert ours.close_error is None
        with pytest.raises(trio.ClosedResourceError):
            await ours.open_stream()
        with pytest.raises(ConnectionClosed):
            await theirs.accept_stream()


async def test_a_long_reason_is_cut(autojump_clock):
    async with connected(network()) as (ours, theirs):
        await ours.aclose(1, "ü" * 1000)
        await theirs.closed.wait()
        assert theirs.close_error.reason == "ü" * 100


async def test_a_lost_farewell_is_repeated(autojump_clock):
    net = network()
    async with connected(net) as (ours, theirs):
        net.cut(ALICE)
        await ours.aclose(9, "gone")
        net.mend(ALICE)
        stream = await theirs.open_stream()
        await stream.send_all(b"are you there?")
        with trio.fail_after(1):
            await theirs.closed.wait()
        assert theirs.close_error.code == 9


async def test_keep_alive_lets_idle_connections_live(autojump_clock):
    async with connected(network(loss=0.1)) as (ours, theirs):
        await trio.sleep(600)
        assert not ours.closed.is_set()
        assert not theirs.closed.is_set()


async def test_without_keep_alive_idle_connections_end(autojump_clock):
    async with connected(network(), limits=Limits(keep_alive=None)) as (ours, theirs):
        await trio.sleep(11)
        assert isinstance(ours.close_error, ConnectionLost)
        assert isinstance(theirs.close_error, ConnectionLost)


async def test_a_dead_peer_is_noticed(autojump_clock):
    net = network()
    async with connected(net) as (ours, _):
        start = trio.current_time()
        net.cut(BOB)
        await ours.closed.wait()
        assert isinstance(ours.close_error, ConnectionLost)
        assert 9 < trio.current_time() - start < 13.5


async def test_opening_more_streams_than_allowed_waits_for_a_slot(autojump_clock):
    limits = Limits(max_streams=3)
    async with connected(network(), limits=limits) as (ours, theirs):
        pairs = [await stream_pair(ours, theirs) for _ in range(3)]
        with trio.move_on_after(5) as waited:
            await ours.open_stream()
        assert waited.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream_pair, ours, theirs)
            await trio.sleep(1)
            mine, other = pairs[0]
            await mine.aclose()
            await other.aclose()


async def test_streams_that_the_application_holds_keep_their_slots(autojump_clock):
    """A peer cannot pile up streams that are over on the wire but were never looked at."""
    limits = Limits(max_streams=3)
    async with connected(network(), limits=limits) as (ours, theirs):
        for _ in range(3):
            stream = await ours.open_stream()
            await stream.send_all(b"x")
            await stream.aclose()  # with end of stream and "send me nothing": over, for the wire
        await trio.sleep(5)
        with trio.move_on_after(5) as waited:
            await ours.open_stream()
        assert waited.cancelled_caught
        for _ in range(3):
            async with await theirs.accept_stream() as stream:
                assert await read_all(stream) == b"x"
        await ours.open_stream()


async def test_thousands_of_streams_leave_nothing_behind(autojump_clock):
    net = network()
    async with (
        endpoint_on(net, ALICE) as alice,
        endpoint_on(net, BOB, limits=Limits(max_streams=8)) as bob,
        trio.open_nursery() as nursery,
    ):
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
            assert not connection._streams
            assert not connection._core._accounts
            assert not connection._core._quic._streams
        nursery.cancel_scope.cancel()


async def test_one_connection_more_than_allowed_is_refused(autojump_clock):
    net = network()
    async with (
        endpoint_on(net, ALICE) as alice,
        endpoint_on(net, BOB, limits=Limits(max_connections=2)) as bob,
    ):
        for _ in range(2):
            await alice.connect(BOB)
            await bob.accept()
        start = trio.current_time()
        with pytest.raises(HandshakeFailed):
            await alice.connect(BOB)
        assert trio.current_time() - start < 1
        with pytest.raises(EndpointFull):
            await bob.connect(ALICE)


async def test_unaccepted_connections_are_bounded_and_the_rest_gets_its_turn(autojump_clock):
    net = network()
    async with (
        endpoint_on(net, ALICE) as alice,
        endpoint_on(net, BOB, limits=Limits(max_handshakes=2)) as bob,
        trio.open_nursery() as nursery,
    ):
        for _ in range(3):
            nursery.start_soon(alice.connect, BOB)
        await trio.sleep(1)
        assert bob.connections == 2
        for _ in range(3):
            await bob.accept()
        assert bob.connections == 3


async def test_migration_of_the_clients_address(autojump_clock):
    """A client whose address changes (a NAT's doing) is followed, with a connection id of its own."""
    net = network()
    moved = ("10.9.9.9", 9)

    def nat(data, source, destination):
        return data

    net.tap = nat
    async with (
        endpoint_on(net, ALICE) as alice,
        endpoint_on(net, BOB) as bob,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(serve_echo, bob)
        ours = await alice.connect(BOB)
        assert await ask(ours, b"before") == b"before"
        socket = alice._socket
        net._sockets[moved] = net._sockets.pop(ALICE)
        socket._address = moved
        for _ in range(3):
            assert await ask(ours, b"after") == b"after"
        theirs = next(iter(bob._cids))
        assert theirs.remote_address == moved
        nursery.cancel_scope.cancel()


async def test_streams_are_offered_in_the_pass_that_brings_them_and_the_rest_is_accepted(autojump_clock):
    async with connected(network()) as (ours, theirs):
        got = []

        def take(stream):
            data = stream.receive_whole_nowait(100)
            if data is None:
                return False
            got.append((data, trio.lowlevel.current_task().name))
            stream.send_last_nowait(data)
            stream.close_now()
            return True

        theirs.take_streams(take)
        whole, long, part = [await ours.open_stream() for _ in range(3)]
        await whole.send_last(b"whole")
        await long.send_last(b"x" * 101)
        await part.send_all(b"part")
        assert await whole.receive_all(100) == b"whole"
        accepted = [await theirs.accept_stream() for _ in range(2)]
        assert [await stream.receive_some() for stream in accepted] == [b"x" * 101, b"part"]
        assert [data for data, _ in got] == [b"whole"]
        assert "Endpoint.receive" in got[0][1]
