"""A small HTTP/1.1 server for the pod's own processes: h11 over Trio's listeners, bounded in everything."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import h11
import structlog
import trio
from attrs import field, frozen

MAX_CONNECTIONS: Final = 64
"""At it the next is answered 503 and closed. A guess: an app has a few."""
MAX_BODY: Final = 3 << 20
"""Bytes of a request: a call's MiB in base64, and what stands around it. At it: 413."""
REQUEST_S: Final = 10.0
"""For a request to come whole, once it has begun or the connection was made. At it: 408. A guess."""
IDLE_S: Final = 60.0
"""A connection between requests. At it: closed. A guess."""
READ_BYTES: Final = 65_536
_REASONS: Final[Mapping[int, str]] = {
    400: "BadRequest",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "RequestTimeout",
    409: "Conflict",
    413: "RequestEntityTooLarge",
    429: "TooManyRequests",
    500: "InternalError",
    502: "BadGateway",
    503: "ServiceUnavailable",
    504: "Timeout",
}


@frozen
class Asked:
    """A request that has come whole."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    def json(self) -> dict[str, Any]:
        """The body as an object. Raises Refused."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is no JSON: {error}") from None
        if not isinstance(value, dict):
            raise Refused(400, "the body is no JSON object")
        return value


@frozen
class Answer:
    """What is answered."""

    status: int = 200
    body: bytes = field(default=b"", repr=False)
    type: str = "application/json"

    @classmethod
    def of(cls, value: Any, status: int = 200) -> Answer:
        """A JSON value."""
        return cls(status, json.dumps(value).encode() + b"\n")


class Refused(Exception):
    """Answered with a `Status`, as the machines' APIs do."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        self.status, self.message = status, message
        self.reason = reason or _REASONS.get(status, "Unknown")
        super().__init__(message)

    def answer(self) -> Answer:
        """The Status."""
        said = {
            "apiVersion": "v1",
            "kind": "Status",
            "status": "Failure",
            "code": self.status,
            "reason": self.reason,
            "message": self.message,
        }
        return Answer.of(said, self.status)


Handle = Callable[[Asked], Awaitable[Answer]]


async def serve(
    listeners: list[trio.SocketListener],
    handle: Handle,
    *,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Until cancelled. What `handle` raises but Refused is a fault of ours: logged, and answered 500."""
    room = trio.CapacityLimiter(MAX_CONNECTIONS)

    async def one(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                room.acquire_nowait()
            except trio.WouldBlock:
                await _say(stream, h11.Connection(h11.SERVER), _full().answer())
                return
            try:
                await _Connection(stream, handle).run()
            finally:
                room.release()

    async def guarded(stream: trio.SocketStream) -> None:
        try:
            await one(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # who asked has gone

    await trio.serve_listeners(guarded, listeners, task_status=task_status)


def _full() -> Refused:
    return Refused(503, f"{MAX_CONNECTIONS} connections are open: close one, or try again later")


class _Connection:
    """One client, request after request."""

    def __init__(self, stream: trio.SocketStream, handle: Handle) -> None:
        self._stream = stream
        self._handle = handle
        self._h11 = h11.Connection(h11.SERVER)
        self._log = structlog.get_logger(part="local-api")

    async def run(self) -> None:
        while await self._begun() and await self._one():
            self._h11.start_next_cycle()

    async def _begun(self) -> bool:
        """Whether another request begins in time."""
        if self._h11.trailing_data[0]:
            return True
        with trio.move_on_after(IDLE_S):
            data = await self._stream.receive_some(READ_BYTES)
            if data:
                self._h11.receive_data(bytes(data))
                return True
        return False

    async def _one(self) -> bool:
        """Answer one request; whether the connection can go on."""
        try:
            with trio.fail_after(REQUEST_S):
                asked = await self._read()
            answer = await self._answer(asked)
        except Refused as error:
            answer = error.answer()
        except h11.RemoteProtocolError as error:
            answer = Refused(400, str(error)).answer()
        except trio.TooSlowError:
            answer = Refused(408, f"no whole request within {REQUEST_S:g} s").answer()
        await _say(self._stream, self._h11, answer)
        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    async def _answer(self, asked: Asked) -> Answer:
        try:
            return await self._handle(asked)
        except Refused:
            raise
        except Exception as error:
            self._log.exception("local-api-fault", path=asked.path)
            raise Refused(500, "the agent failed at it; see its log") from error

    async def _read(self) -> Asked:
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                await self._more()
            elif isinstance(event, h11.Request):
                head = event
                _check_length(head)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY:
                    raise Refused(413, f"a body of more than {MAX_BODY} bytes")
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _asked(head, bytes(body))
            else:
                raise trio.BrokenResourceError("the client closed the connection")

    async def _more(self) -> None:
        if self._h11.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            await self._stream.send_all(self._h11.send(go_on) or b"")
        self._h11.receive_data(bytes(await self._stream.receive_some(READ_BYTES)))


def _check_length(head: h11.Request) -> None:
    """What is said to be too long is refused before it comes (h11 has checked that the length is a number)."""
    if int(dict(head.headers).get(b"content-length", b"0")) > MAX_BODY:
        raise Refused(413, f"a body of more than {MAX_BODY} bytes")


def _asked(head: h11.Request, body: bytes) -> Asked:
    try:
        parts = urlsplit(head.target.decode("ascii"))
        query = dict(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=16))
    except ValueError as error:
        raise Refused(400, f"the request's target: {error}") from None
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in head.headers}
    return Asked(head.method.decode("ascii"), parts.path, query, headers, body)


async def _say(stream: trio.SocketStream, connection: h11.Connection, answer: Answer) -> None:
    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return
    headers = [("Content-Type", answer.type), ("Content-Length", str(len(answer.body)))]
    head = h11.Response(status_code=answer.status, headers=headers)
    for event in (head, h11.Data(answer.body), h11.EndOfMessage()):
        await stream.send_all(connection.send(event) or b"")
