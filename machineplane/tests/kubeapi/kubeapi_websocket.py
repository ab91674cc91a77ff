"""A WebSocket client over Trio, as small as the tests allow."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)


class Refused(Exception):
    """The server answered the handshake with something else; ``status`` and ``body`` of it."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status}: {body!r}")
        self.status = status
        self.body = body


class Socket:
    """One end."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.wire = WSConnection(ConnectionType.CLIENT)
        self.subprotocol: str | None = None
        self.events: list[object] = []

    async def next_event(self) -> object:
        while not self.events:
            self.wire.receive_data(bytes(await self.stream.receive_some()) or None)
            self.events += self.wire.events()
        return self.events.pop(0)

    async def send(self, message: bytes | str) -> None:
        event = TextMessage(data=message) if isinstance(message, str) else BytesMessage(data=message)
        await self.stream.send_all(self.wire.send(event))

    async def receive(self) -> bytes:
        """The next message; none at the end."""
        parts = bytearray()
        while True:
            event = await self.next_event()
            if isinstance(event, CloseConnection):
                assert event.code == 1000, event
                return b""
            assert isinstance(event, BytesMessage), event
            parts += event.data
            if event.message_finished:
                return bytes(parts)


@asynccontextmanager
async def websocket(base: str, path: str, *subprotocols: str, **headers: str) -> AsyncIterator[Socket]:
    """An open socket; raises Refused. The stream is dropped with the context, as when a client is killed."""
    url = urlsplit(base)
    stream = await trio.open_tcp_stream(str(url.hostname), int(url.port or 0))
    async with stream:
        socket = Socket(stream)
        extra = [(name.encode(), value.encode()) for name, value in headers.items()]
        request = Request(host=url.netloc, target=path, subprotocols=list(subprotocols), extra_headers=extra)
        await stream.send_all(socket.wire.send(request))
        answer = await socket.next_event()
        if isinstance(answer, RejectConnection):
            body = b""
            while isinstance(part := await socket.next_event(), RejectData):
                body += part.data
                if part.body_finished:
                    break
            raise Refused(answer.status_code, body)
        assert isinstance(answer, AcceptConnection)
        socket.subprotocol = answer.subprotocol
        yield socket
