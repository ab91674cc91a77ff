"""UDP between pods by service names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from traffic_support import Machine, Pod, a_port, pod, unique
from trio import socket
from trio.testing import MockClock

from workplane.datagrams import QUEUE, DatagramFront, Unframer, frame, open_datagrams
from workplane.routing import Carry, Target, Unreachable

Sock = trio.socket.SocketType


@given(st.lists(st.binary(max_size=300)), st.integers(1, 50))
def test_datagrams_come_out_as_they_went_in(datagrams: list[bytes], size: int) -> None:
    whole = b"".join(map(frame, datagrams))
    frames, found = Unframer(), []
    for start in range(0, len(whole), size):
        found += frames.feed(whole[start : start + size])
    assert found == datagrams and not frames._buffer


async def shout(sock: Sock) -> None:
    """An app: what comes, in capitals, and from whom by its port."""
    while True:
        data, source = await sock.recvfrom(65_535)
        await sock.sendto(data.upper() + b" %d" % source[1] if len(data) < 1000 else data, source)


@asynccontextmanager
async def served() -> AsyncIterator[tuple[Pod, Pod, tuple[str, int]]]:
    machine, name, port = Machine(), unique("dns"), a_port()
    async with trio.open_nursery() as nursery:
        with await open_datagrams("127.0.0.1", 0) as app:
            nursery.start_soon(shout, app)
            ports = [{"name": "main", "port": port, "protocol": "UDP", "target": app.getsockname()[1]}]
            machine.serve(name, port, workloads=("default/Deployment/web",), ports=ports)
            async with pod(machine, 1, "client") as client, pod(machine, 2, "web", others=(client,)) as web:
                (address,) = await client.resolve(f"{name}.default")
                with trio.fail_after(30):
                    yield client, web, (address, port)
            nursery.cancel_scope.cancel()


async def test_datagrams_go_and_come_back_each_whole() -> None:
    async with served() as (_, web, address):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.connect(address)
            answers = set()
            for data in (b"one", b"", b"three"):
                await sock.send(data)
                answer, _, source = (await sock.recv(65_535)).rpartition(b" ")
                assert answer == data.upper()
                answers.add(source)
            assert len(answers) == 1  # one flow: the app sees one client
            big = bytes(range(250)) * 240
            await sock.send(big)
            assert await sock.recv(65_535) == big
            assert web.traffic.inbound.open == 1


async def test_each_client_has_a_flow_of_its_own() -> None:
    async with served() as (_, web, address):
        seen = set()
        for _ in range(3):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                await sock.connect(address)
                await sock.send(b"x")
                seen.add((await sock.recv(100)).split()[1])
        assert len(seen) == 3 == web.traffic.inbound.open


class Replica:
    """A router to something that takes nothing (``stuck``), or is not there."""

    def __init__(self, *, there: bool) -> None:
        self.there = there
        self.opened = 0

    async def connect(self, target: Target, carry: Carry) -> None:
        self.opened += 1
        await trio.lowlevel.checkpoint()
        if not self.there:
            raise Unreachable("nobody")
        await carry(Stuck())


class Stuck:
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.sleep_forever()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        await trio.sleep_forever()
        raise AssertionError


class Clients:
    """A socket to which clients have sent so much; what is sent there is dropped."""

    def __init__(self, *datagrams: tuple[bytes, int]) -> None:
        self.datagrams = [(data, ("127.0.0.1", port)) for data, port in datagrams]

    def getsockname(self) -> tuple[str, int]:
        return "127.64.0.1", 53

    async def recvfrom(self, size: int) -> tuple[bytes, tuple[str, int]]:
        await trio.testing.wait_all_tasks_blocked()
        if not self.datagrams:
            await trio.sleep_forever()
        return self.datagrams.pop(0)


async def carried(
    clients: Clients, replica: Replica, seconds: float, flows: int = 9
) -> tuple[DatagramFront, int]:
    """After so many seconds: the front, and how many flows it had."""
    async with trio.open_nursery() as nursery:
        front = DatagramFront(replica, nursery, flows=flows)  # type: ignore[arg-type]
        nursery.start_soon(front.serve, clients, lambda: Target("default", "dns", 53, "UDP"))  # type: ignore[arg-type]
        await trio.sleep(seconds)
        kept = len(front._flows)
        nursery.cancel_scope.cancel()
    return front, kept


async def test_what_cannot_be_sent_fast_enough_is_dropped(autojump_clock: MockClock) -> None:
    clients = Clients(*[(b"x", 1000)] * (QUEUE + 10))
    front, _ = await carried(clients, Replica(there=True), 10.0)
    assert front.dropped == 9  # one is being sent


async def test_flows_are_bounded_and_end_when_idle(autojump_clock: MockClock) -> None:
    datagrams = [(b"x", 1000 + n) for n in range(5)]
    front, kept = await carried(Clients(*datagrams), Replica(there=True), 59.0, flows=3)
    assert front.dropped == 2 and kept == 3
    _, kept = await carried(Clients(*datagrams), Replica(there=True), 62.0, flows=3)
    assert kept == 0


async def test_a_flow_to_nobody_is_tried_again_by_the_next_datagram(autojump_clock: MockClock) -> None:
    replica = Replica(there=False)
    await carried(Clients((b"x", 1000), (b"x", 1000)), replica, 5.0)
    assert replica.opened == 2


async def test_a_service_s_tcp_port_is_no_udp_port() -> None:
    async with served() as (client, web, _):
        (name,) = web.traffic.inbound.services()
        body = {"namespace": "default", "service": name.name, "port": name.ports[0].port}
        with pytest.raises(Exception, match="has no port"):
            async with client.node.open_call(web.node.id, "/workplane/tcp/1.0.0", body):
                pass
