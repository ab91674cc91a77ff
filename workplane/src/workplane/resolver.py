"""DNS on the pod's loopback: the fabric's names answered here, all others by the machine's resolvers.

By UDP and TCP. A question is answered or passed on in a task of its own, and of those there is a number at a time; at it a
datagram is dropped, as the network might have, and asked again by whoever wants to know.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Final

import dnslib
import trio
from trio import socket

from workplane.names import (
    Found,
    Question,
    ServiceName,
    about,
    answer,
    failure,
    is_ours,
    read_question,
    service_of,
    shortened,
)

HOST: Final = "127.0.0.1"
PORT: Final = 53
MAX_UPSTREAMS: Final = 3
"""As many as C libraries ask (resolv.conf(5))."""
UPSTREAM_TIMEOUT_S: Final = 2.0
"""For one resolver, then the next: half of what the C library waits (resolv.conf(5): 5 s), so that two can be asked."""
MAX_AT_ONCE: Final = 256
"""Questions under way; a guess, several times what an app asks at once."""
MAX_CONNECTIONS: Final = 64
"""By TCP; at it a connection is closed again. A guess."""
IDLE_S: Final = 10.0
"""A TCP connection without a question is closed (RFC 7766, 6.2.3: a few seconds)."""
MAX_ALIASES: Final = 8
"""Names that mean other names, one after the other; at it the last one is told without addresses. A guess."""
_MAX_DATAGRAM: Final = 65_535
_TRIES: Final = 16
"""Of ports, where any will do; a guess: each is taken as seldom as ports are."""

Address = tuple[str, int]
Lookup = Callable[[ServiceName], Awaitable[Found | None]]
"""None: there is no such name. An OSError: it cannot be told now."""


def upstreams(resolv_conf: str) -> tuple[Address, ...]:
    """The machine's resolvers: the first three that resolv.conf(5) names, but for our own address."""
    found = []
    for line in resolv_conf.splitlines():
        match line.split():
            case ["nameserver", server, *_] if server != HOST and _is_address(server):
                found.append((server, PORT))
    return tuple(found[:MAX_UPSTREAMS])


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


class Resolver:
    """Answers at an address; `upstream` are the machine's resolvers, in their order."""

    def __init__(self, domain: str, lookup: Lookup, upstream: Sequence[Address]) -> None:
        self._domain = domain
        self._lookup = lookup
        self._upstream = tuple(upstream)
        self._under_way = trio.CapacityLimiter(MAX_AT_ONCE)
        self._connections = 0
        self.dropped = 0

    async def serve(
        self,
        host: str = HOST,
        port: int = PORT,
        *,
        task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; the address goes to ``task_status``. Raises OSError if it cannot be had."""
        datagrams, listener = await open_pair(host, port)
        with datagrams:
            async with listener, trio.open_nursery() as nursery:
                nursery.start_soon(partial(trio.serve_listeners, self._serve_stream, [listener]))
                task_status.started(datagrams.getsockname())
                while True:
                    await self._take(datagrams, nursery)

    async def _take(self, datagrams: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        try:
            message, peer = await datagrams.recvfrom(_MAX_DATAGRAM)
        except OSError:  # an earlier answer found nobody: the kernel says so here
            return
        if self._under_way.available_tokens < 1:
            self.dropped += 1
        else:
            self._under_way.acquire_on_behalf_of_nowait(borrower := object())
            nursery.start_soon(self._reply, datagrams, message, peer, borrower)

    async def _reply(
        self, datagrams: trio.socket.SocketType, message: bytes, peer: Address, borrower: object
    ) -> None:
        try:
            question = read_question(message)
            if question is not None:
                reply = await self._answer(question, message)
                await datagrams.sendto(shortened(question, reply), peer)
        except OSError:
            pass  # who asked is gone
        finally:
            self._under_way.release_on_behalf_of(borrower)

    async def _serve_stream(self, stream: trio.SocketStream) -> None:
        if self._connections >= MAX_CONNECTIONS:
            return
        self._connections += 1
        try:
            while (message := await _read(stream)) is not None:
                question = read_question(message)
                if question is None:
                    return
                reply = await self._answer(question, message)
                await stream.send_all(struct.pack(">H", len(reply)) + reply)
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass  # who asked is gone, or has stopped in the middle of it
        finally:
            self._connections -= 1

    async def _answer(self, question: Question, message: bytes, aliases: int = MAX_ALIASES) -> bytes:
        if not is_ours(question.name, self._domain):
            return await self._ask_others(question, message)
        name = service_of(question, self._domain)
        try:
            found = None if name is None else await self._lookup(name)
        except OSError:
            return failure(question)
        others = await self._behind(question, found.alias, aliases) if found and found.alias else ()
        return answer(question, self._domain, found, others)

    async def _behind(self, question: Question, alias: str, aliases: int) -> Sequence[dnslib.RR]:
        """What stands under the name that an alias means: a stub resolver does not ask again."""
        if not aliases:
            return ()
        other = about(question, alias)
        reply = await self._answer(other, bytes(other.record.pack()), aliases - 1)
        try:
            return tuple(dnslib.DNSRecord.parse(reply).rr)
        except (dnslib.DNSError, ValueError, IndexError, UnicodeError):
            return ()

    async def _ask_others(self, question: Question, message: bytes) -> bytes:
        """The first answer of the machine's resolvers, asked one after the other."""
        for upstream in self._upstream:
            with trio.move_on_after(UPSTREAM_TIMEOUT_S):
                try:
                    return await _ask(upstream, message)
                except (OSError, trio.BrokenResourceError):
                    continue
        return failure(question)


async def open_pair(host: str, port: int = 0) -> tuple[trio.socket.SocketType, trio.SocketListener]:
    """One port for UDP and TCP. With 0 any: as one that is free by UDP may be taken by TCP, several are tried."""
    for left in reversed(range(1 if port else _TRIES)):
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            await datagrams.bind((host, port))
            (listener,) = await trio.open_tcp_listeners(datagrams.getsockname()[1], host=host)
        except OSError as error:
            datagrams.close()
            if not left or error.errno != errno.EADDRINUSE:
                raise
        else:
            return datagrams, listener
    raise AssertionError("the last try raises")


async def _ask(upstream: Address, message: bytes) -> bytes:
    """By UDP; where the answer was cut off, again by TCP. Another's answer, or an old one, is not listened to."""
    family = socket.AF_INET6 if ":" in upstream[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams:
        await datagrams.connect(upstream)  # a port of its own, and only this peer
        await datagrams.send(message)
        while True:
            reply = await datagrams.recv(_MAX_DATAGRAM)
            if reply[:2] == message[:2] and len(reply) >= 12:
                break
    if not reply[2] & 0x02:
        return bytes(reply)
    async with await trio.open_tcp_stream(*upstream) as stream:
        await stream.send_all(struct.pack(">H", len(message)) + message)
        whole = await _read(stream)
    if whole is None:
        raise trio.BrokenResourceError("the resolver closed without an answer")
    return whole


async def _read(stream: trio.abc.ReceiveStream) -> bytes | None:
    """A message after its length (RFC 1035, 4.2.2); None at the end of the stream."""
    with trio.fail_after(IDLE_S):
        head = await _exactly(stream, 2)
        return None if head is None else await _exactly(stream, struct.unpack(">H", head)[0])


async def _exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        part = await stream.receive_some(count - len(data))
        if not part:
            return None
        data += part
    return data
