"""One HTTP request to the own pod's app at 127.0.0.1, and its whole answer. The protocol is h11's, the I/O Trio's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import h11
import trio
from attrs import frozen

HOST: Final = "127.0.0.1"
READ_BYTES: Final = 65_536


class AppFailed(Exception):
    """The app did not answer, or with what is no HTTP, or with too much; the text says which."""


Headers = Sequence[tuple[str, str]]


@frozen
class AppAnswer:
    """What the app said."""

    status: int
    type: str
    body: bytes


async def post(port: int, path: str, body: bytes, headers: Callable[[], Headers], *, most: int) -> AppAnswer:
    """POST to the app, on a connection of its own; at most ``most`` bytes of answer are taken. Raises AppFailed.

    ``headers`` are asked for when the app has taken the connection; what that raises is raised here, and nothing was sent.
    There is no time-out here: the caller knows how long it has.
    """
    try:
        async with await trio.open_tcp_stream(HOST, port) as stream:
            return await _exchange(stream, port, path, body, headers(), most)
    except (OSError, trio.BrokenResourceError) as error:
        raise AppFailed(f"port {port}: {error}") from error
    except h11.RemoteProtocolError as error:
        raise AppFailed(f"port {port} answered what is no HTTP: {error}") from error


async def _exchange(
    stream: trio.SocketStream,
    port: int,
    path: str,
    body: bytes,
    headers: Headers,
    most: int,
) -> AppAnswer:
    connection = h11.Connection(h11.CLIENT)
    common = [("Host", f"{HOST}:{port}"), ("Content-Length", str(len(body))), ("Connection", "close")]
    request = h11.Request(method="POST", target=path, headers=[*common, *headers])
    for part in (request, h11.Data(body), h11.EndOfMessage()):
        await stream.send_all(connection.send(part) or b"")
    head: h11.Response | None = None
    content = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(READ_BYTES)))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            content += event.data
            if len(content) > most:
                raise AppFailed(f"port {port} answered more than {most} bytes")
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            kind = dict(head.headers).get(b"content-type", b"").decode("ascii", errors="replace")
            return AppAnswer(head.status_code, kind[:128], bytes(content))
        elif isinstance(event, h11.ConnectionClosed):
            raise AppFailed(f"port {port} closed the connection without an answer")
