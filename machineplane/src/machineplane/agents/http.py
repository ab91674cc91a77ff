"""HTTP/1.1 on one connection, with a bound on everything that the other end can make us keep or wait for."""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import h11
import trio
from attrs import field, frozen

from machineplane.agents.calls import Refusal

MAX_BODY: Final = 1 << 20
"""Bytes of a request's body (workplane-spec). At more: 413, and the connection ends."""
MAX_HEAD: Final = 16 * 1024
"""Bytes of a request's line and headers; a guess. At more: 431, and the connection ends."""
IDLE_S: Final = 60.0
"""Between requests; a guess. Then the connection is closed."""
HEAD_S: Final = 10.0
BODY_S: Final = 10.0
SEND_S: Final = 10.0
"""From a head's first byte to its last; for the body; for taking the answer. Guesses: both ends are on one machine."""
_READ_BYTES: Final = MAX_HEAD
_LARGE: Final = 64 * 1024


@frozen
class Request:
    """A request as it came; ``token`` is that of ``Authorization: Bearer``, empty without one."""

    method: str
    target: str
    token: str = field(repr=False)
    body: bytes = field(default=b"", repr=False)


@frozen
class Response:
    """A status and its JSON."""

    code: int
    body: bytes = b""


Admit = Callable[[Request], Awaitable[None]]
"""Sees a request before its body is read; raises Refusal where that is not worth it."""
Answer = Callable[[Request], Awaitable[Response]]


class _Ended(Exception):
    """The connection is over."""


class Connection:
    """Serves requests one after the other. ``turn`` is held while a large body is read: one at a time of a pod's."""

    def __init__(self, stream: trio.abc.Stream, admit: Admit, answer: Answer, turn: trio.Lock) -> None:
        self._stream = stream
        self._admit = admit
        self._answer = answer
        self._turn = turn
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
        self._length = 0

    async def serve(self) -> None:
        """Until the other end leaves, is silent for too long, or does what is not HTTP."""
        with suppress(_Ended, OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            while await self._one():
                self._http.start_next_cycle()

    async def _one(self) -> bool:
        """One request and its answer; whether another may follow."""
        try:
            request = await self._head()
            try:
                await self._admit(request)
                request = await self._with_body(request)
                response = await self._answer(request)
            except Refusal as refusal:
                response = Response(refusal.code, refusal.body())
        except h11.RemoteProtocolError as error:
            wrong = Refusal(error.error_status_hint, "BadRequest", f"this is not HTTP/1.1: {error}")
            response = Response(wrong.code, wrong.body())
        await self._respond(response)
        return bool(self._http.our_state is h11.DONE and self._http.their_state is h11.DONE)

    async def _head(self) -> Request:
        """The next request, without its body."""
        event = self._http.next_event()
        if event is h11.NEED_DATA:
            with trio.fail_after(IDLE_S):
                await self._receive()
            with trio.fail_after(HEAD_S):
                while (event := self._http.next_event()) is h11.NEED_DATA:
                    await self._receive()
        if not isinstance(event, h11.Request):
            raise _Ended
        headers = dict(event.headers)
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        self._length = int(headers.get(b"content-length", b"0"))  # h11 has seen to it that this is a number
        return Request(
            event.method.decode("latin-1"),
            event.target.decode("latin-1"),
            token.strip() if scheme.lower() == "bearer" else "",
        )

    async def _with_body(self, request: Request) -> Request:
        if self._length > MAX_BODY:
            raise _too_large()
        if self._http.they_are_waiting_for_100_continue:
            await self._send(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        with trio.fail_after(BODY_S):
            body = bytearray()
            if await self._read(body, _LARGE):
                return Request(request.method, request.target, request.token, bytes(body))
            async with self._turn:
                if not await self._read(body, MAX_BODY):
                    raise _too_large()
                return Request(request.method, request.target, request.token, bytes(body))

    async def _read(self, body: bytearray, most: int) -> bool:
        """Add to ``body`` until its end; false once it has more than ``most`` bytes."""
        while len(body) <= most:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                await self._receive()
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return True
            else:
                raise _Ended
        return False

    async def _receive(self) -> None:
        self._http.receive_data(bytes(await self._stream.receive_some(_READ_BYTES)))

    async def _respond(self, response: Response) -> None:
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise _Ended
        headers = [("content-type", "application/json")] if response.body else []
        if response.code != 204:
            headers.append(("content-length", str(len(response.body))))
        if self._http.their_state is not h11.DONE:
            headers.append(("connection", "close"))  # of a body that was not read nothing more is read
        head = h11.Response(status_code=response.code, headers=headers)
        data = self._http.send(head) or b""
        data += self._http.send(h11.Data(data=response.body)) or b""
        await self._send(data + (self._http.send(h11.EndOfMessage()) or b""))

    async def _send(self, data: bytes | None) -> None:
        with trio.fail_after(SEND_S):
            await self._stream.send_all(data or b"")


def _too_large() -> Refusal:
    return Refusal(413, "RequestEntityTooLarge", f"a body of at most {MAX_BODY} bytes is expected")
