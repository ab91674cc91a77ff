"""UDP of the pod's apps: a flow for each client's address and port, its datagrams framed on one call's stream.

A frame is the datagram's length in two bytes, and the datagram. A stream delivers in order and loses nothing, which is more
than UDP promises; what it cannot carry fast enough is dropped before it, as a network would.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import structlog
import trio
from attrs import define, field
from trio import socket

from magik_mesh import Call
from workplane.inbound import HOST, RESET_BROKEN, Inbound
from workplane.lifesigns import Stream
from workplane.logs import Sparing, correlated
from workplane.pumps import CHUNK, in_parallel
from workplane.routing import Router, Target, Unreachable

IDLE_S: Final = 60.0
"""A flow without a datagram is forgotten. Half of what RFC 4787, REQ-5 asks of a NAT: here only a stream is given up, and
the next datagram opens another."""
MAX_FLOWS: Final = 1024
"""Of the pod's apps; at it datagrams of further ones are dropped. A guess."""
QUEUE: Final = 128
"""Datagrams of a flow that wait to be sent; at it the next is dropped. A guess."""
MAX_DATAGRAM: Final = 65_535

Address = tuple[str, int]


@define
class Unframer:
    """Takes datagrams out of a stream's bytes. No I/O."""

    _buffer: bytearray = field(factory=bytearray)

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """The datagrams that `data` completes."""
        self._buffer += data
        found, start = [], 0
        while len(self._buffer) >= start + 2:
            end = start + 2 + int.from_bytes(self._buffer[start : start + 2], "big")
            if len(self._buffer) < end:
                break
            found.append(bytes(self._buffer[start + 2 : end]))
            start = end
        del self._buffer[:start]
        return found


def frame(datagram: bytes) -> bytes:
    """A datagram as it goes onto a stream."""
    return struct.pack(">H", len(datagram)) + datagram


@define(eq=False)
class _Flow:
    send: trio.MemorySendChannel[bytes]
    last: float


class DatagramFront:
    """Flows of clients in this pod. Runs in `nursery`."""

    def __init__(
        self, router: Router, nursery: trio.Nursery, *, flows: int = MAX_FLOWS, idle: float = IDLE_S
    ) -> None:
        self._router = router
        self._nursery = nursery
        self._max_flows = flows
        self._idle = idle
        self._flows: dict[tuple[Address, Address], _Flow] = {}
        self._failures = Sparing(structlog.get_logger(part="traffic"))
        self.dropped = 0

    async def serve(self, server: trio.socket.SocketType, target: Callable[[], Target]) -> None:
        """Carry what clients send to a socket, until cancelled; flows go on until they are idle."""
        here = server.getsockname()
        while True:
            try:
                data, source = await server.recvfrom(MAX_DATAGRAM)
            except OSError:  # an earlier answer found nobody: the kernel says so here
                continue
            flow = self._flows.get((here, source)) or self._start(server, here, source, target())
            if flow is None:
                self.dropped += 1
                continue
            flow.last = trio.current_time()
            try:
                flow.send.send_nowait(data)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self.dropped += 1

    def _start(
        self, server: trio.socket.SocketType, here: Address, source: Address, target: Target
    ) -> _Flow | None:
        if len(self._flows) >= self._max_flows:
            return None
        send, receive = trio.open_memory_channel[bytes](QUEUE)
        flow = self._flows[here, source] = _Flow(send, trio.current_time())
        self._nursery.start_soon(self._run, server, (here, source), flow, receive, target)
        return flow

    async def _run(
        self,
        server: trio.socket.SocketType,
        key: tuple[Address, Address],
        flow: _Flow,
        receive: trio.MemoryReceiveChannel[bytes],
        target: Target,
    ) -> None:
        async def carry(stream: Stream) -> None:
            def heard() -> None:
                flow.last = trio.current_time()

            await in_parallel(
                partial(_send_frames, receive, stream),
                partial(_receive_frames, stream, lambda data: server.sendto(data, key[1]), heard),
            )

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_when_idle, lambda: flow.last, self._idle, nursery.cancel_scope)
                try:
                    with correlated():
                        await self._router.connect(target, carry)
                except Unreachable as error:
                    self._failures.info("datagrams-dropped", target=str(target), error=str(error))
                nursery.cancel_scope.cancel()
        finally:
            receive.close()
            del self._flows[key]


@define(eq=False)
class DatagramInbound:
    """Datagrams for the pod's own app that other agents bring."""

    inbound: Inbound
    idle: float = IDLE_S

    async def on_udp(self, call: Call) -> None:
        """A flow to the app."""
        with self.inbound.told(call):
            port = self.inbound.admit(call, "UDP")
        async with self.inbound.counted(call.peer):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
                await app.connect((HOST, port))
                await call.reply({})
                await self._carry(call, app)

    async def _carry(self, call: Call, app: trio.socket.SocketType) -> None:
        last = trio.current_time()

        def heard() -> None:
            nonlocal last
            last = trio.current_time()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_when_idle, lambda: last, self.idle, nursery.cancel_scope)
            await in_parallel(
                partial(_send_datagrams, app, call.stream, heard),
                partial(_receive_frames, call.stream, app.send, heard),
            )
            nursery.cancel_scope.cancel()
        call.stream.reset(RESET_BROKEN)


async def open_datagrams(host: str, port: int) -> trio.socket.SocketType:
    """A UDP socket there. Raises OSError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        await sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


async def _send_frames(receive: trio.MemoryReceiveChannel[bytes], stream: Stream) -> None:
    async for datagram in receive:
        frames = [frame(datagram)]
        try:
            while len(frames) < QUEUE:
                frames.append(frame(receive.receive_nowait()))
        except (trio.WouldBlock, trio.EndOfChannel):
            pass
        await stream.send_all(b"".join(frames))


async def _send_datagrams(app: trio.socket.SocketType, stream: Stream, heard: Callable[[], None]) -> None:
    while True:
        try:
            datagram = await app.recv(MAX_DATAGRAM)
        except OSError:  # nobody had the port when something was sent there
            continue
        heard()
        await stream.send_all(frame(datagram))


async def _receive_frames(
    stream: Stream, send: Callable[[bytes], Awaitable[object]], heard: Callable[[], None]
) -> None:
    """Until the stream ends, which ends the flow."""
    frames = Unframer()
    while data := await stream.receive_some(CHUNK):
        heard()
        for datagram in frames.feed(data):
            try:
                await send(datagram)
            except OSError:
                continue  # too long, or nobody has the port: lost, as any datagram may be
    raise trio.BrokenResourceError("the flow has ended")


async def _end_when_idle(last: Callable[[], float], idle: float, scope: trio.CancelScope) -> None:
    while (left := last() + idle - trio.current_time()) > 0:  # noqa: ASYNC110 - time itself is waited for
        await trio.sleep(left)
    scope.cancel()
