"""Endpoints: nothing is left behind, hostile datagrams harm nobody, and it works over real UDP."""

import random

import pytest
import trio
import trio.lowlevel
from aioquic.tls import Epoch
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
    serve_echo,
    stream_pair,
)

from trio_quic import ConnectionClosed, HandshakeFailed, Limits, open_endpoint

EVE = ("10.0.0.66", 4433)


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def test_leaving_tells_the_peers_and_leaves_no_task(autojump_clock):
    net = network()
    before = tasks()
    async with endpoint_on(net, BOB) as bob:
        async with endpoint_on(net, ALICE) as alice:
            await alice.connect(BOB)
            theirs = await bob.accept()
        await theirs.closed.wait()
        assert isinstance(theirs.close_error, ConnectionClosed)
    assert tasks() == before


async def test_a_cancelled_endpoint_closes_its_connections(autojump_clock):
    net = network()
    before = tasks()
    async with endpoint_on(net, BOB) as bob:
        with trio.CancelScope() as scope:
            async with endpoint_on(net, ALICE) as alice:
                ours = await alice.connect(BOB)
                theirs = await bob.accept()
                await stream_pair(ours, theirs)
                scope.cancel()
                await trio.sleep_forever()
        start = trio.current_time()
        await theirs.closed.wait()
        assert trio.current_time() - start < 1
        assert isinstance(theirs.close_error, ConnectionClosed)
        with pytest.raises(trio.ClosedResourceError):
            await alice.connect(BOB)
        with pytest.raises(trio.ClosedResourceError):
            await alice.accept()
    assert tasks() == before


async def test_connect_gives_up_and_leaves_nothing(autojump_clock):
    async with endpoint_on(network(), ALICE) as alice:
        start = trio.current_time()
        with pytest.raises(HandshakeFailed, match="no answer"):
            await alice.connect(BOB, timeout=2)
        assert 1.9 < trio.current_time() - start < 2.1
        with trio.move_on_after(1):
            await alice.connect(BOB)
        await trio.lowlevel.checkpoint()
        assert alice.connections == 0


async def test_half_open_clients_are_dropped_in_time(autojump_clock):
    net = network()
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:
        net.tap = lambda data, source, destination: None if source == BOB else data
        nursery.start_soon(alice.connect, BOB)
        await trio.sleep(1)
        assert bob.connections == 1
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.sleep(12)
        assert bob.connections == 0


async def test_random_datagrams_harm_nobody(autojump_clock):
    net = network()
    noise = random.Random(5)
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, bob)
        ours = await alice.connect(BOB)
        eve = net.socket(*EVE)
        for _ in range(1500):
            data = bytearray(noise.randbytes(noise.choice([0, 1, 5, 9, 20, 200, 1200, 1300])))
            if len(data) > 6 and noise.random() < 0.7:
                data[:5] = b"\xc3\x00\x00\x00\x01"
                data[5] = noise.choice([8, 0, 20, 21, 255])
            eve.send([(bytes(data), BOB)])
        await trio.sleep(1)
        assert bob.connections == 1
        assert await ask(ours, b"fine") == b"fine"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(4))
async def test_mutated_datagrams_harm_nobody(autojump_clock, seed):
    """Every real datagram is followed by damaged copies, in both directions, from the first flight on."""
    net = network()
    noise = random.Random(seed)
    forged = 0

    def damage(data, source, destination):
        nonlocal forged
        for _ in range(3):
            copy = bytearray(data)
            for _ in range(noise.randint(1, 8)):
                copy[noise.randrange(len(copy))] = noise.randrange(256)
            socket = net._sockets.get(destination)
            if socket is not None:
                forged += 1
                socket.arrive(trio.current_time(), bytes(copy[: noise.randint(1, len(copy))]), source)
                socket.arrive(trio.current_time(), bytes(copy), source)
        return data

    net.tap = damage
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, bob)
        for _ in range(5):
            ours = await alice.connect(BOB)
            assert await ask(ours, b"x" * 20_000) == b"x" * 20_000
        nursery.cancel_scope.cancel()
    assert forged > 300


async def test_a_peer_that_breaks_the_protocol_loses_its_connection_only(autojump_clock):
    """A proven peer sends frames that are not allowed; others go on."""
    net = network()
    async with connected(net) as (ours, theirs), endpoint_on(net, EVE) as eve:
        wicked = await eve.connect(BOB)
        limit = wicked._core._quic._remote_max_stream_data_bidi_remote
        wicked._core._quic._remote_max_stream_data_bidi_remote = wicked._core._quic._remote_max_data = (
            limit * 100
        )
        stream = await wicked.open_stream()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x" * limit * 50)  # more than the send buffer
        assert "flow" in str(wicked.close_error).lower() or "limit" in str(wicked.close_error)
        await stream_pair(ours, theirs)


async def test_a_core_that_falls_over_ends_one_connection(autojump_clock, monkeypatch):
    net = network()
    async with connected(net) as (ours, theirs), endpoint_on(net, EVE) as eve:
        doomed = await eve.connect(BOB)

        def fall(*args, **kwargs):
            raise AssertionError("fell over")

        monkeypatch.setattr(doomed._core._quic, "receive_datagram", fall)
        await doomed.closed.wait()
        assert "fell over" in str(doomed.close_error)
        await stream_pair(ours, theirs)


class Falling:
    """A core of which one part has a defect."""

    def __init__(self, core, part):
        self._inner, self._part = core, part

    def __getattr__(self, name):
        if name == self._part:
            raise ZeroDivisionError(f"a defect in {name}")
        return getattr(self._inner, name)


@pytest.mark.parametrize(
    "part",
    [
        "receive",
        "events",
        "wants_to_send",
        "termination",
        "datagrams",
        "has_events",
        "next_timeout",
        "is_calm",
        "can_open",
    ],
)
async def test_a_defect_anywhere_in_a_core_ends_one_connection_and_is_logged(autojump_clock, caplog, part):
    net = network()
    async with connected(net) as (ours, theirs), endpoint_on(net, EVE) as eve:
        doomed = await eve.connect(BOB)
        stream = await doomed.open_stream()
        doomed._slots_news = trio.Event()  # somebody waits for a stream more
        doomed._core = Falling(doomed._core, part)
        with trio.fail_after(60):
            await doomed.closed.wait()
        assert f"internal error: ZeroDivisionError('a defect in {part}')" in str(doomed.close_error)
        assert "the core failed" in caplog.text
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await stream_pair(ours, theirs)
        assert (await eve.connect(BOB)).ready, "the endpoint lives on"


async def test_handshake_data_is_bounded(autojump_clock):
    net = network()
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB):
        ours = await alice.connect(BOB)
        quic = ours._core._quic
        quic._crypto_streams[Epoch.ONE_RTT].sender.write(b"\x04\x00\xff\xff" + bytes(70_000))
        ours.wake()
        with trio.fail_after(5):
            await ours.closed.wait()
        assert "handshake" in str(ours.close_error)


async def test_over_real_udp():
    async with (
        open_endpoint(
            "127.0.0.1", 0, credentials=credentials("a"), alpn=ALPN, verify_peer=name_of, limits=Limits()
        ) as alice,
        open_endpoint("127.0.0.1", 0, credentials=credentials("b"), alpn=ALPN, verify_peer=name_of) as bob,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(serve_echo, bob)
        with trio.fail_after(20):
            ours = await alice.connect(bob.local_address)
            assert ours.peer == "b"
            assert await ask(ours, b"x" * 500_000) == b"x" * 500_000
        nursery.cancel_scope.cancel()


async def test_over_ipv6():
    async with (
        open_endpoint("::1", 0, credentials=credentials("a"), alpn=ALPN, verify_peer=name_of) as alice,
        open_endpoint("::1", 0, credentials=credentials("b"), alpn=ALPN, verify_peer=name_of) as bob,
    ):
        with trio.fail_after(20):
            connection = await alice.connect(("0:0::1", bob.local_address[1]))
        assert connection.remote_address == bob.local_address


async def test_a_name_is_no_address():
    async with endpoint_on(network(), ALICE) as alice:
        with pytest.raises(ValueError, match="localhost"):
            await alice.connect(("localhost", 4433))


async def test_a_taken_port_is_an_oserror():
    async with open_endpoint(
        "127.0.0.1", 0, credentials=credentials("a"), alpn=ALPN, verify_peer=name_of
    ) as alice:
        with pytest.raises(OSError, match="in use"):
            async with open_endpoint(
                *alice.local_address, credentials=credentials("b"), alpn=ALPN, verify_peer=name_of
            ):
                raise AssertionError("two endpoints on one port")


def test_limits_are_checked():
    with pytest.raises(ValueError, match="keep_alive"):
        Limits(keep_alive=20.0)
    with pytest.raises(ValueError, match="datagram_size"):
        Limits(datagram_size=100)
