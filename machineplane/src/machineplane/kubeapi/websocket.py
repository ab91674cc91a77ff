"""One WebSocket, straight from the ASGI server: empty frames, subprotocols and refusals with a ``Status`` all work so."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from attrs import define, field

from .errors import ApiError

Scope = MutableMapping[str, Any]
Send = Callable[[Any], Awaitable[None]]
Receive = Callable[[], Awaitable[Any]]

#: RFC 6455, 7.4.1.
NORMAL: Final = 1000


class ClientGone(Exception):
    """The client has closed the connection, or it broke."""


@define
class WebSocket:
    """Accept it or refuse it first. One task may send while another receives."""

    _receive: Receive
    _send: Send
    _shut: bool = field(default=False, init=False)

    async def accept(self, subprotocol: str | None) -> None:
        """Let the client in. Raises ClientGone."""
        event = await self._receive()
        if event["type"] != "websocket.connect":
            raise ClientGone
        await self._send({"type": "websocket.accept", "subprotocol": subprotocol, "headers": []})

    async def receive(self) -> bytes:
        """A message, maybe empty; text as UTF-8, since some clients send bytes so. Raises ClientGone."""
        event = await self._receive()
        if event["type"] != "websocket.receive":
            raise ClientGone
        data = event.get("bytes")
        return bytes(data) if data is not None else str(event.get("text") or "").encode()

    async def send(self, data: bytes) -> None:
        """A binary message; waits while the client takes no more. To a client that has gone, nothing is sent."""
        if not self._shut:
            await self._send({"type": "websocket.send", "bytes": data, "text": None})

    async def close(self) -> None:
        """Nothing more will be sent."""
        if not self._shut:
            self._shut = True
            await self._send({"type": "websocket.close", "code": NORMAL, "reason": ""})


async def refuse(send: Send, error: ApiError) -> None:
    """Answer an upgrade with an ordinary response that says why not."""
    body = json.dumps(error.status()).encode() + b"\n"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.code == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "websocket.http.response.start", "status": error.code, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body, "more_body": False})
