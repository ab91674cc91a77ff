"""The resolver on a loopback port: asked by UDP and TCP, with resolvers that answer, lie, cut off and are silent."""

import errno
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trio
from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from structlog.testing import capture_logs
from trio import socket
from trio.testing import MockClock

from workplane.names import Found, ServiceName
from workplane.naming import serve_names
from workplane.resolver import Address, Resolver, open_pair, upstreams

OURS = "web.default.svc.cluster.local"


async def lookup(name: ServiceName) -> Found | None:
    await trio.lowlevel.checkpoint()
    match name.service:
        case "broken":
            raise OSError("the machine is away")
        case "outside":
            return Found(alias="example.org")
        case "inside":
            return Found(alias=OURS)
        case "round":
            return Found(alias="round.default.svc.cluster.local")
    return Found((IPv4Address("127.64.0.7"),)) if name == ServiceName("web", "default") else None


class Upstream:
    """A machine's resolver. ``cut``: by UDP it only says that there is more; ``silent``: it hears and says nothing."""

    def __init__(self, *, cut: bool = False, silent: bool = False) -> None:
        self.cut, self.silent = cut, silent
        self.asked: list[str] = []

    def reply(self, message: bytes, *, datagram: bool) -> bytes:
        record = DNSRecord.parse(message)
        self.asked.append(f"{record.q.qname} by {'UDP' if datagram else 'TCP'}")
        reply = record.reply()
        if datagram and self.cut:
            reply.header.tc = 1
        else:
            reply.add_answer(RR(record.q.qname, QTYPE.A, ttl=9, rdata=A("192.0.2.9")))
        return bytes(reply.pack())

    async def run(self, *, task_status: trio.TaskStatus[Address]) -> None:
        sock, listener = await open_pair("127.0.0.1")
        with sock:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, self._stream, [listener])
                task_status.started(sock.getsockname())
                while True:
                    message, peer = await sock.recvfrom(4096)
                    if not self.silent:
                        await sock.sendto(b"\0" * 12, peer)  # somebody else's answer, or one of before
                        await sock.sendto(self.reply(message, datagram=True), peer)

    async def _stream(self, stream: trio.SocketStream) -> None:
        message = (await stream.receive_some(4096))[2:]
        reply = self.reply(bytes(message), datagram=False)
        await stream.send_all(struct.pack(">H", len(reply)) + reply)


@asynccontextmanager
async def resolving(*upstreams: Upstream) -> AsyncIterator[Address]:
    async with trio.open_nursery() as nursery:
        addresses = [await nursery.start(upstream.run) for upstream in upstreams]
        resolver = Resolver("cluster.local", lookup, addresses)
        yield await nursery.start(resolver.serve, "127.0.0.1", 0)
        nursery.cancel_scope.cancel()


async def ask(address: Address, name: str) -> DNSRecord:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.sendto(DNSRecord.question(name).pack(), address)
        return DNSRecord.parse(await sock.recv(4096))


async def ask_by_stream(stream: trio.SocketStream, name: str) -> DNSRecord:
    message = bytes(DNSRecord.question(name).pack())
    await stream.send_all(struct.pack(">H", len(message)) + message)
    reply = await stream.receive_some(4096)
    return DNSRecord.parse(bytes(reply[2:]))


def addresses(reply: DNSRecord) -> list[str]:
    return [str(rr.rdata) for rr in reply.rr]


async def test_own_names_are_answered_by_both_ways_and_never_passed_on() -> None:
    upstream = Upstream()
    async with resolving(upstream) as address:
        assert addresses(await ask(address, OURS)) == ["127.64.0.7"]
        async with await trio.open_tcp_stream(*address) as stream:
            for _ in range(2):
                assert addresses(await ask_by_stream(stream, OURS)) == ["127.64.0.7"]
        assert (await ask(address, "none.default.svc.cluster.local")).header.rcode == RCODE.NXDOMAIN
    assert upstream.asked == []


async def test_aliases_come_with_what_they_mean() -> None:
    async with resolving(Upstream()) as address:
        outside = await ask(address, "outside.default.svc.cluster.local")
        assert addresses(outside) == ["example.org.", "192.0.2.9"]
        inside = await ask(address, "inside.default.svc.cluster.local")
        assert addresses(inside) == [OURS + ".", "127.64.0.7"]
        endless = await ask(address, "round.default.svc.cluster.local")
        assert set(addresses(endless)) == {"round.default.svc.cluster.local."}


async def test_what_cannot_be_told_now_is_an_error_and_no_missing_name() -> None:
    async with resolving() as address:
        reply = await ask(address, "broken.default.svc.cluster.local")
        assert reply.header.rcode == RCODE.SERVFAIL


async def test_other_names_are_asked_of_the_machines_resolver() -> None:
    upstream = Upstream()
    async with resolving(upstream) as address:
        assert addresses(await ask(address, "example.org")) == ["192.0.2.9"]
    assert upstream.asked == ["example.org. by UDP"]


async def test_what_was_cut_off_is_asked_again_by_tcp() -> None:
    upstream = Upstream(cut=True)
    async with resolving(upstream) as address, await trio.open_tcp_stream(*address) as stream:
        assert addresses(await ask_by_stream(stream, "example.org")) == ["192.0.2.9"]
    assert upstream.asked == ["example.org. by UDP", "example.org. by TCP"]


async def test_a_silent_resolver_gives_way_to_the_next_and_at_last_to_an_error(
    autojump_clock: MockClock,
) -> None:
    async with resolving(Upstream(silent=True), Upstream()) as address:
        assert addresses(await ask(address, "example.org")) == ["192.0.2.9"]
    async with resolving(Upstream(silent=True)) as address:
        assert (await ask(address, "example.org")).header.rcode == RCODE.SERVFAIL
    async with resolving() as address:
        assert (await ask(address, "example.org")).header.rcode == RCODE.SERVFAIL


async def test_nonsense_and_half_questions_do_no_harm(autojump_clock: MockClock) -> None:
    async with resolving() as address:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.sendto(b"nonsense", address)
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(b"\0\x08nonsense")
            assert await stream.receive_some(10) == b""
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(b"\0")
            assert await stream.receive_some(10) == b""  # after a while
        assert addresses(await ask(address, OURS)) == ["127.64.0.7"]


async def test_a_port_taken_by_tcp_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free by UDP is not by TCP, once; but a port that was asked for is that one or none."""
    opened: list[int] = []
    really = trio.open_tcp_listeners

    async def taken_at_first(port: int, *, host: str) -> list[trio.SocketListener]:
        opened.append(port)
        if len(opened) == 1:
            raise OSError(errno.EADDRINUSE, "taken")
        return await really(port, host=host)

    monkeypatch.setattr(trio, "open_tcp_listeners", taken_at_first)
    datagrams, listener = await open_pair("127.0.0.1")
    with datagrams:
        async with listener:
            assert datagrams.getsockname()[1] == listener.socket.getsockname()[1] == opened[1]
            with pytest.raises(OSError, match="in use"):
                await open_pair("127.0.0.1", opened[1])


def test_the_machine_s_resolvers_are_those_of_its_configuration() -> None:
    text = "# nameserver 9.9.9.9\nsearch x\nnameserver 127.0.0.1\nnameserver 192.0.2.1 x\nnameserver\nnameserver dns\n"
    assert upstreams(text + "nameserver 2001:db8::1\n") == (("192.0.2.1", 53), ("2001:db8::1", 53))
    assert len(upstreams("nameserver 192.0.2.1\n" * 9)) == 3


async def test_without_its_port_or_its_configuration_the_agent_goes_on(tmp_path: Path) -> None:
    datagrams, listener = await open_pair("127.0.0.1")
    with datagrams, capture_logs() as logs:
        async with listener:
            await serve_names(lookup, datagrams.getsockname(), tmp_path / "none")
    assert [entry["log_level"] for entry in logs] == ["warning", "error"]
