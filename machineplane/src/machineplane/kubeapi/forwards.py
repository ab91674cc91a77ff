"""``pods/<name>/portforward``: kubectl's SPDY in a WebSocket, and the ``v4.channel`` form of other clients."""

from typing import Final

import trio
from attrs import define, field

from machineplane.channels import SessionRefused

from .calls import Call, Target
from .context import Api
from .errors import ApiError
from .podports import STALL, Pod, text_of
from .portchannels import serve_ports
from .spdy import (
    CANCEL,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    Data,
    Decoder,
    Encoder,
    Event,
    Opened,
    Ping,
    SpdyError,
)
from .websocket import WebSocket

TUNNEL: Final = "SPDY/3.1+portforward.k8s.io"
CHANNELS: Final = "v4.channel.k8s.io"

#: Connections of one port-forward at a time, a guess; one more is refused by a reset.
MAX_CONNECTIONS: Final = 64
#: Chunks that wait for a connection's other end; then the whole socket waits, as SPDY here has no windows.
MAX_WAITING: Final = 16
_READ: Final = 32 * 1024


async def serve_forward(api: Api, call: Call, target: Target, socket: WebSocket, subprotocol: str) -> None:
    """Forward until the client goes."""
    pod = Pod(api.backend, str(target.namespace), str(target.name))
    if subprotocol == TUNNEL:
        await Tunnel(pod, socket).run()
    else:
        await serve_ports(pod, call, socket)


@define
class _Connection:
    """One forwarded connection: the streams of kubectl that make it up."""

    port: int
    error: int
    data: int = 0
    waiting: trio.MemorySendChannel[bytes] | None = None
    scope: trio.CancelScope = field(factory=trio.CancelScope)


class Tunnel:
    """SPDY on one WebSocket. For each connection kubectl opens two streams, ``error`` and ``data``, of one request id."""

    def __init__(self, pod: Pod, socket: WebSocket) -> None:
        self._pod = pod
        self._socket = socket
        self._encoder = Encoder()
        self._sending = trio.Lock()
        self._half: dict[str, _Connection] = {}  # by request id; the data stream is still to come
        self._open: dict[int, _Connection] = {}  # by data stream

    async def run(self) -> None:
        """Until the client leaves. Raises ClientGone."""
        decoder = Decoder()
        async with trio.open_nursery() as nursery:
            try:
                while True:
                    for event in decoder.feed(await self._socket.receive()):
                        await self._on_event(event, nursery)
            except SpdyError:
                nursery.cancel_scope.cancel()  # the socket is closed: there is no other answer

    async def _send(self, data: bytes) -> None:
        async with self._sending:
            await self._socket.send(data)

    async def _on_event(self, event: Event, nursery: trio.Nursery) -> None:
        if isinstance(event, Opened):
            await self._on_opened(event, nursery)
        elif isinstance(event, Data):
            await self._on_data(event)
        elif isinstance(event, Ping):
            await self._send(self._encoder.ping(event.number))
        elif connection := self._open.get(event.stream):
            connection.scope.cancel()

    # -- streams

    async def _on_opened(self, event: Opened, nursery: trio.Nursery) -> None:
        kind, port, request = (event.headers.get(name, "") for name in ("streamtype", "port", "requestid"))
        usable = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536
        if kind == "error" and usable and request not in self._half:
            if len(self._half) + len(self._open) >= MAX_CONNECTIONS:
                await self._send(self._encoder.reset(event.stream, REFUSED_STREAM))
                return
            self._half[request] = _Connection(int(port), event.stream)
        elif kind == "data" and request in self._half and event.stream not in self._open:
            self._begin(event.stream, self._half.pop(request), nursery)
        else:
            await self._send(self._encoder.reset(event.stream, PROTOCOL_ERROR))
            return
        async with self._sending:  # together: header blocks are packed in the order in which they are sent
            await self._socket.send(self._encoder.reply(event.stream))

    def _begin(self, stream: int, connection: _Connection, nursery: trio.Nursery) -> None:
        connection.data = stream
        connection.waiting, chunks = trio.open_memory_channel[bytes](MAX_WAITING)
        self._open[stream] = connection
        nursery.start_soon(self._carry, connection, chunks)

    async def _on_data(self, event: Data) -> None:
        connection = self._open.get(event.stream)
        if connection is None or connection.waiting is None:
            return  # the end of an error stream, or what was under way when a connection ended
        with trio.move_on_after(STALL) as scope:
            for start in range(0, len(event.payload), _READ):
                try:
                    await connection.waiting.send(event.payload[start : start + _READ])
                except trio.BrokenResourceError:
                    return
        if scope.cancelled_caught:
            connection.scope.cancel()
        elif event.ended:
            connection.waiting.close()
            connection.waiting = None

    # -- one connection

    async def _carry(self, connection: _Connection, chunks: trio.MemoryReceiveChannel[bytes]) -> None:
        problem, whole = "", False
        try:
            with chunks, connection.scope:
                await self._join(connection, chunks)
                whole = True
        except* (SessionRefused, ApiError) as group:
            problem = text_of(group)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            whole = False  # the program in the pod broke it off
        del self._open[connection.data]
        encoder = self._encoder
        if not whole:
            await self._send(encoder.reset(connection.data, CANCEL))
        await self._send(encoder.data(connection.error, problem.encode(), end=True))

    async def _join(self, connection: _Connection, chunks: trio.MemoryReceiveChannel[bytes]) -> None:
        async with self._pod.connect(connection.port) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(_upload, chunks, stream)
            while data := await stream.receive_some(_READ):
                await self._send(self._encoder.data(connection.data, bytes(data)))
            await self._send(self._encoder.data(connection.data, b"", end=True))


async def _upload(chunks: trio.MemoryReceiveChannel[bytes], stream: trio.abc.HalfCloseableStream) -> None:
    async for chunk in chunks:
        await stream.send_all(chunk)
    await stream.send_eof()
