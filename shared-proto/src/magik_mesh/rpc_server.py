"""The answering side of a call: one stream, one handler, one scope.

A call's stream carries the request's frame, the response's frame, and after that whatever the two
applications agreed on. A caller who gives up (resets) is noticed at once, and the handler is cancelled; a
handler that reads slowly slows the caller. What needs no waiting (a request that is there as a whole, an
answer that has room) does none: a call is a task switch or two.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import trio
from attrs import define, field, frozen
from structlog.typing import FilteringBoundLogger

from magik_mesh import codes
from magik_mesh.alarm import Alarm, Deadline
from magik_mesh.errors import CallRefused
from magik_mesh.stats import Stats
from magik_mesh.streams import STREAM_ERRORS, FramedStream, RawStream, WholeStream
from magik_proto import codec
from magik_proto.errors import LocalProtocolError, RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.rpc import MAX_FRAME, Request, Response, encode_frame


@frozen
class Caller:
    """Who calls: proved by the handshake, admitted with `roles`."""

    peer: PeerId
    roles: frozenset[str]
    address: str = ""  # as ip:port, where its datagrams come from


@define
class Slots:
    """What one peer may have at work here: so many calls, and so many bytes of answers that it has not read."""

    limit: int
    unread_limit: int = 32 << 20  # see MeshLimits.unread_answers
    used: int = 0
    unread: int = 0

    def take(self) -> bool:
        """A slot, or False when all are in use."""
        if self.used >= self.limit:
            return False
        self.used += 1
        return True

    def give(self) -> None:
        """Return a slot."""
        self.used -= 1

    def hold(self, size: int) -> bool:
        """Room for an answer that waits to be read, or False when too much waits already."""
        if self.unread + size > self.unread_limit:
            return False
        self.unread += size
        return True


class CallStream(trio.abc.HalfCloseableStream):
    """The raw bytes of a call, both ways, after its header."""

    def __init__(self, framed: FramedStream) -> None:
        self._framed = framed

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send to the caller; waits while it takes no more."""
        await self._framed.raw.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """A checkpoint: the stream below tells by `send_all` alone."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """End our half; the caller may go on sending."""
        await self._framed.raw.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Bytes from the caller; none when it has ended its half."""
        return await self._framed.receive_some(max_bytes)

    def reset(self, code: int) -> None:
        """Tear both halves down at once; the caller sees a reset stream."""
        self._framed.raw.reset(code)

    async def aclose(self) -> None:
        """Close both halves."""
        await self._framed.raw.aclose()


class Call:
    """One call, as its handler sees it.

    A handler either returns the answer's body, or awaits `reply(body)` and then owns `stream`: raw bytes
    both ways until it returns. Raise `CallRefused(code, message)` before the reply to answer with an error.
    """

    def __init__(
        self, caller: Caller, request: Request, framed: FramedStream, alarm: Alarm, deadline: Deadline
    ) -> None:
        self.peer: PeerId = caller.peer
        self.roles: frozenset[str] = caller.roles
        self.address: str = caller.address
        self.method: str = request.method
        self.body: Any = request.body
        self.replied = False
        self._alarm = alarm
        self._deadline = deadline
        self._framed = framed
        self._stream: CallStream | None = None

    @property
    def stream(self) -> CallStream:
        """The raw stream. Only after `reply`: before it the caller still waits for a frame."""
        if self._stream is None:
            self._stream = CallStream(self.frames)
        return self._stream

    @property
    def frames(self) -> FramedStream:
        """The same stream for a method that goes on in frames."""
        if not self.replied:
            raise RuntimeError("await call.reply(body) before using call.stream")
        return self._framed

    @property
    def remaining(self) -> float:
        """Seconds until the caller's deadline; infinite after `reply`, or if the caller named none."""
        return math.inf if self.replied else self._deadline.at - trio.current_time()

    async def reply(self, body: Any = None) -> None:
        """Send the answer now and keep the stream. The deadline concerned the answer: it ends here."""
        if self.replied:
            raise RuntimeError(f"{self.method} was already answered")
        self.replied = True
        self._alarm.cancel(self._deadline)
        await self._framed.raw.send_all(encode_frame(Response.success(body)))


Handler = Callable[[Call], Awaitable[Any]]
Answerer = Callable[[Call], Any]
"""A plain function that returns the answer's body or raises, as a handler does, and waits for nothing."""

# Bytes of a request that is answered, or read, in the endpoint's own pass: what decoding takes there keeps others waiting.
MAX_AT_ONCE = 16 << 10


@define(eq=False)
class Read:
    """What was done of a call when its stream came: the request, and perhaps an answer that found no room."""

    framed: FramedStream
    request: Request | None = None
    answer: bytes | None = None


@define
class RpcServer:
    """Serves calls from admitted peers with the node's handlers."""

    handlers: Mapping[str, Handler]
    alarm: Alarm
    stats: Stats
    log: FilteringBoundLogger
    header_timeout: float
    longest_deadline: float
    max_request: int = MAX_FRAME  # bytes of a request: a longer one is malformed
    unlimited: frozenset[str] = field(default=frozenset((codes.GOSSIP,)))
    plain: Mapping[str, Answerer] = field(factory=dict)  # of those in `handlers`, what waits for nothing

    def answer_at_once(self, raw: WholeStream, caller: Caller) -> Read | None:
        """Serve a call of a plain method whose request is there as a whole; None when the stream is done with.

        Else what was read of it, which `serve` goes on with. Waits for nothing and never raises.
        """
        data = raw.receive_whole_nowait(MAX_AT_ONCE)
        framed = FramedStream(raw, data or b"")
        if data is None:
            return Read(framed)
        try:
            payload = framed.read_frame_nowait(self.max_request)
            request = None if payload is None else _request_in(payload)
            if request is None:
                raw.close_now()
                return None
            function = self.plain.get(request.method)
            if function is None:
                return Read(framed, request)
            answer = self._answer_of(function, request, framed, caller)
            try:
                raw.send_last_nowait(answer)
            except trio.WouldBlock:
                return Read(framed, request, answer)
            raw.close_now()
        except RemoteProtocolError as error:
            self._malformed(raw, caller, error)
        except STREAM_ERRORS as error:
            self.log.debug("call broken off", peer=str(caller.peer), error=str(error))
            raw.reset(codes.RESET_CANCELLED)
        return None

    def _answer_of(self, function: Answerer, request: Request, framed: FramedStream, caller: Caller) -> bytes:
        """The answer as a frame, whether the function has one or fails."""
        self.stats.calls_served += 1
        call = Call(
            caller, request, framed, self.alarm, Deadline(trio.current_time() + self._seconds(request), None)
        )
        try:
            return encode_frame(Response.success(function(call)))
        except Exception as error:  # noqa: BLE001 - what a function raises ends its call, never the node
            return self._failed(call, ExceptionGroup("", [error])) or b""

    def _malformed(self, raw: RawStream, caller: Caller, error: RemoteProtocolError) -> None:
        self.stats.frames_malformed += 1
        self.log.warning("malformed call", peer=str(caller.peer), error=str(error))
        raw.reset(codes.RESET_MALFORMED)

    async def serve(
        self,
        raw: RawStream,
        caller: Caller,
        slots: Slots,
        scope: trio.CancelScope,
        payload: bytes | None = None,
        read: Read | None = None,
    ) -> None:
        """Serve one stream from its first byte, or from after a request read as `payload`, or as it was `read`, to its end.

        Never raises but for cancellation. Has to run in `scope`, which it cancels when the caller has gone or the deadline
        passed; what was to be said is said when the cancellation comes out of here.
        """
        framed = FramedStream(raw) if read is None else read.framed
        ending: int | None = codes.RESET_CANCELLED
        try:
            if read is not None and read.request is not None:
                request: Request | None = read.request
            else:
                request = await self._read_request(framed) if payload is None else _request_in(payload)
            if read is not None and read.answer is not None and request is not None:
                await self._deliver_by(self._seconds(request), raw, read.answer, slots, scope)
            elif request is not None:
                await self._answer(request, framed, caller, slots, scope)
            ending = None
            raw.close_now()
        except RemoteProtocolError as error:
            ending = None
            self._malformed(raw, caller, error)
        except STREAM_ERRORS as error:
            self.log.debug("call broken off", peer=str(caller.peer), error=str(error))
        finally:
            if ending is not None:
                raw.reset(ending)

    async def _read_request(self, framed: FramedStream) -> Request | None:
        try:
            payload = framed.read_frame_nowait(self.max_request)
        except trio.WouldBlock:
            with trio.move_on_after(self.header_timeout) as scope:
                payload = await framed.read_frame(self.max_request)
            if scope.cancelled_caught:
                raise RemoteProtocolError(
                    "rpc.slow-header", f"no complete request within {self.header_timeout:g} s"
                ) from None
        return None if payload is None else _request_in(payload)

    async def _answer(
        self, request: Request, framed: FramedStream, caller: Caller, slots: Slots, scope: trio.CancelScope
    ) -> None:
        handler = self.handlers.get(request.method)
        if handler is None:
            text = f"this machine has no method {request.method}"
            await _send_last(framed.raw, encode_frame(Response.failure(codes.UNIMPLEMENTED, text)))
        elif request.method in self.unlimited:
            await self._handle(handler, request, framed, caller, scope, slots)
        elif not slots.take():
            self.stats.calls_busy += 1
            text = f"{slots.limit} calls of yours are at work: try again later"
            await _send_last(framed.raw, encode_frame(Response.failure(codes.BUSY, text)))
        else:
            try:
                await self._handle(handler, request, framed, caller, scope, slots)
            finally:
                slots.give()

    async def _handle(
        self,
        handler: Handler,
        request: Request,
        framed: FramedStream,
        caller: Caller,
        scope: trio.CancelScope,
        slots: Slots,
    ) -> None:
        self.stats.calls_served += 1
        deadline = self.alarm.set(trio.current_time() + self._seconds(request), scope.cancel)
        call = Call(caller, request, framed, self.alarm, deadline)
        try:
            answer = await self._run(handler, call, framed.raw, scope)
            if answer is None:
                framed.raw.reset(codes.RESET_HANDLER)
            elif not call.replied:
                await self._deliver(framed.raw, answer, slots)
        finally:
            # Not before the answer is out: a caller that does not read it has its call end all the same.
            self.alarm.cancel(deadline)

    async def _deliver_by(
        self, seconds: float, raw: RawStream, answer: bytes, slots: Slots, scope: trio.CancelScope
    ) -> None:
        deadline = self.alarm.set(trio.current_time() + seconds, scope.cancel)
        try:
            await self._deliver(raw, answer, slots)
        finally:
            self.alarm.cancel(deadline)

    async def _deliver(self, raw: RawStream, answer: bytes, slots: Slots) -> None:
        """Send the answer. What a peer does not read is kept for it within bounds, and until the call's deadline."""
        try:
            raw.send_last_nowait(answer)
            return
        except trio.WouldBlock:
            size = len(answer)
        if not slots.hold(size):
            self.stats.calls_busy += 1
            text = f"{slots.unread} bytes of answers wait for you to read them: try again later"
            await _send_last(raw, encode_frame(Response.failure(codes.BUSY, text)))
            return
        try:
            await raw.send_last(answer)
        finally:
            slots.unread -= size

    async def _run(
        self, handler: Handler, call: Call, raw: RawStream, scope: trio.CancelScope
    ) -> bytes | None:
        """The handler's answer as a frame.

        None when the stream is to be reset: the caller has gone, or the handler failed after its reply.
        """
        gone = False

        def caller_gone() -> None:
            nonlocal gone
            gone = True
            scope.cancel()

        answer: bytes | None = None
        try:
            raw.watch(caller_gone)
            body = await handler(call)
            answer = b"" if call.replied else encode_frame(Response.success(body))
        # Not plain `except`s: the handler's error and Trio's cancellation may come as one group, of which the
        # cancellation has to go on.
        except* trio.Cancelled:
            if scope.cancel_called and not (gone or call.replied):
                _cut_short(raw, call.method)
            raise
        except* Exception as errors:  # noqa: BLE001 - what a handler raises ends its call, never the node
            answer = self._failed(call, errors)
        finally:
            raw.watch(None)
        return None if gone else answer

    def _failed(self, call: Call, error: ExceptionGroup[Exception]) -> bytes | None:
        cause = _unwrapped(error)
        if call.replied and isinstance(cause, STREAM_ERRORS):
            self.log.debug("caller left", method=call.method, peer=str(call.peer))
            return None
        frame = None if not isinstance(cause, CallRefused) else _refusal(cause)
        if frame is None:
            self.stats.calls_failed += 1
            self.log.error("handler failed", method=call.method, peer=str(call.peer), exc_info=error)
            text = "the handler failed; see the log of the machine that answered"
            frame = encode_frame(Response.failure(codes.INTERNAL, text))
        return None if call.replied else frame

    def _seconds(self, request: Request) -> float:
        return min(self.longest_deadline, request.deadline_ms / 1000)


def _request_in(payload: bytes) -> Request:
    return Request.from_value(codec.decode(payload))


async def _send_last(raw: RawStream, data: bytes) -> None:
    """Send the whole answer; waits only while there is no room."""
    try:
        raw.send_last_nowait(data)
    except trio.WouldBlock:
        await raw.send_last(data)


def _cut_short(raw: RawStream, method: str) -> None:
    """Answer that the deadline has passed, and close."""
    frame = encode_frame(Response.failure(codes.DEADLINE, f"{method} did not finish in time"))
    with suppress(trio.WouldBlock, *STREAM_ERRORS):
        raw.send_last_nowait(frame)
        raw.close_now()


def _unwrapped(error: Exception) -> Exception:
    """The one error inside groups of one, which nurseries wrap around it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _refusal(error: CallRefused) -> bytes | None:
    """The frame of an error that a handler chose;

    None if the code is no slug, which is the handler's mistake.
    """
    try:
        return encode_frame(Response.failure(error.code, error.message))
    except LocalProtocolError:
        return None
