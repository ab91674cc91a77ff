"""Probing for how long a datagram the path takes (RFC 8899): the machine, and connections over paths of several sizes."""

import socket
import sys
from collections import Counter

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio_quic_support import ALICE, BOB, ask, connected, endpoint_on, network, serve_echo

from trio_quic import Limits
from trio_quic.path_size import BLACK_HOLE, LADDER, MAX_PROBES, WORTH, PathSize
from trio_quic.udp import open_udp_socket

BULK = bytes(range(256)) * 8000


@attrs.define
class Narrow:
    """A wire that takes datagrams up to a size; what came, by size, of Alice's."""

    takes: int
    sizes: Counter[int] = attrs.field(factory=Counter)
    refused: Counter[int] = attrs.field(factory=Counter)

    def __call__(self, data: bytes, source: tuple[str, int], destination: tuple[str, int]) -> bytes | None:
        if source == ALICE:
            (self.sizes if len(data) <= self.takes else self.refused)[len(data)] += 1
        return data if len(data) <= self.takes else None


@pytest.mark.parametrize(
    ("takes", "found"), [(1200, 1200), (1451, 1200), (1472, 1452), (8973, 8952), (65507, 8952)]
)
async def test_bulk_is_sent_in_the_longest_datagrams_that_pass(
    takes: int, found: int, autojump_clock: trio.testing.MockClock
) -> None:
    net = network()
    net.tap = wire = Narrow(takes)
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, bob)
        connection = await alice.connect(BOB)
        assert await ask(connection, BULK) == BULK
        assert max(wire.sizes) == found
        assert wire.sizes[found] > len(BULK) // found // 2
        assert sum(wire.refused.values()) <= MAX_PROBES
        # A lost probe is no sign of congestion.
        assert connection._core._quic._loss._cc._congestion_recovery_start_time == 0  # type: ignore[attr-defined]
        nursery.cancel_scope.cancel()


async def test_calls_do_not_probe(autojump_clock: trio.testing.MockClock) -> None:
    net = network()
    net.tap = wire = Narrow(65507)
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, bob)
        connection = await alice.connect(BOB)
        for _ in range(64):
            assert await ask(connection, b"x" * 500) == b"x" * 500
        assert max(wire.sizes) == 1200  # the handshake's
        nursery.cancel_scope.cancel()


async def test_nothing_longer_than_the_limit_is_tried(autojump_clock: trio.testing.MockClock) -> None:
    net = network()
    net.tap = wire = Narrow(65507)
    async with (
        connected(net, limits=Limits(largest_datagram=1500)) as (ours, theirs),
        trio.open_nursery() as nursery,
    ):

        async def receive() -> None:
            async with await theirs.accept_stream() as stream:
                async for chunk in stream:
                    await stream.send_all(chunk)

        nursery.start_soon(receive)
        assert await ask(ours, BULK) == BULK
    assert max(wire.sizes) == 1452


async def test_a_path_that_becomes_narrower_is_noticed(autojump_clock: trio.testing.MockClock) -> None:
    net = network()
    net.tap = wire = Narrow(9000)
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, bob)
        connection = await alice.connect(BOB)
        assert await ask(connection, BULK) == BULK
        assert max(wire.sizes) == 8952
        wire.takes = 1300
        wire.sizes.clear()
        wire.refused.clear()
        began = trio.current_time()
        assert await ask(connection, BULK) == BULK
        assert trio.current_time() - began < 30
        assert wire.sizes[1200] > len(BULK) // 1200 // 2
        nursery.cancel_scope.cancel()


async def test_loss_does_not_end_the_search(autojump_clock: trio.testing.MockClock) -> None:
    net = network(3, loss=0.02)
    net.tap = wire = Narrow(9000)
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, bob)
        connection = await alice.connect(BOB)
        assert await ask(connection, BULK) == BULK
        assert max(wire.sizes) == 8952
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux names the option so")
async def test_datagrams_are_not_fragmented() -> None:
    opened = open_udp_socket("127.0.0.1", 0, 1 << 16)
    try:
        assert opened._socket.getsockopt(socket.IPPROTO_IP, 10) == 3  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE
    finally:
        opened.close()


@given(
    st.lists(
        st.sampled_from(["full", "probe", "arrived", "lost", "data", "data lost", "restart"]), max_size=400
    )
)
def test_only_what_arrived_is_believed(events: list[str]) -> None:
    path, under_way, proven, failed = PathSize(1200, 8952), 0, {1200}, 0
    for event in events:
        match event:
            case "full":
                for _ in range(WORTH):
                    path.on_full()
            case "probe":
                if size := path.probe():
                    assert not under_way and size in LADDER and size > path.size and failed < MAX_PROBES
                    under_way = size
            case "arrived" if under_way:
                path.on_probe(under_way, True)
                proven.add(under_way)
                assert path.size == under_way
                under_way = failed = 0
            case "lost" if under_way:
                path.on_probe(under_way, False)
                under_way, failed = 0, failed + 1
            case "data":
                assert not path.on_data(True)
            case "data lost":
                if path.on_data(False):
                    assert path.size == 1200
                    under_way = failed = 0
            case "restart":
                path.restart()
                under_way = failed = 0
        assert path.size in proven


def test_a_row_of_lost_data_is_a_black_hole() -> None:
    path = PathSize(1200, 8952)
    for _ in range(WORTH):
        path.on_full()
    path.on_probe(path.probe(), True)
    assert path.size == 1452
    for _ in range(BLACK_HOLE - 1):
        assert not path.on_data(False)
    assert not path.on_data(True)
    assert [path.on_data(False) for _ in range(BLACK_HOLE)] == [False] * (BLACK_HOLE - 1) + [True]
    assert path.size == 1200


async def test_another_path_is_searched_anew(autojump_clock: trio.testing.MockClock) -> None:
    """The client's address changes, and with it the path from the server, which takes less."""
    net, moved = network(), ("10.9.9.9", 9)
    lost: list[int] = []

    def wire(data: bytes, source: tuple[str, int], destination: tuple[str, int]) -> bytes | None:
        if destination != moved or len(data) <= 1200:
            return data
        lost.append(len(data))
        return None

    net.tap = wire
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, bob)
        connection = await alice.connect(BOB)
        assert await ask(connection, BULK) == BULK
        net._sockets[moved] = net._sockets.pop(ALICE)
        alice._socket._address = moved  # type: ignore[attr-defined]
        assert await ask(connection, b"x" * 20_000) == b"x" * 20_000
        assert not lost
        nursery.cancel_scope.cancel()
