"""Calls over bare stream pairs: what a hostile or hasty caller does, and what the handler and node see of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import structlog
import trio
from attrs import define, field
from structlog.testing import capture_logs
from trio.testing import MemoryReceiveStream, MockClock

from magik_mesh import Call, CallRefused, RpcFailed, Stats, codes
from magik_mesh.alarm import Alarm
from magik_mesh.rpc_client import ask, ask_by, calling
from magik_mesh.rpc_server import Caller, Handler, RpcServer, Slots
from magik_mesh.streams import FramedStream
from magik_mesh.testing import identity_of
from magik_proto import codec
from magik_proto.rpc import Request, encode_frame
from trio_quic import StreamReset

METHOD = "/test/echo/1.0.0"
CALLER = Caller(identity_of(9).peer_id, frozenset({"run"}))


@define(eq=False)
class End:
    """One end of an in-memory stream that can be reset, as a QUIC stream can."""

    incoming: MemoryReceiveStream = field(factory=MemoryReceiveStream)
    other: End | None = None
    broken: int | None = None  # the code with which the other end reset it
    was_reset: int | None = None  # the code with which this end did
    ended: bool = False
    closed: bool = False
    _scopes: list[trio.CancelScope] = field(factory=list)
    _on_broken: Callable[[], None] | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        assert self.other is not None
        self.other.incoming.put_data(data)

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._end()

    async def send_last(self, data: bytes) -> None:
        await self.send_all(data)
        await self.send_eof()

    def send_last_nowait(self, data: bytes) -> None:
        self._check()
        assert self.other is not None
        self.other.incoming.put_data(data)
        self._end()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        with trio.CancelScope() as scope:
            self._scopes.append(scope)
            self._check()
            return await self.incoming.receive_some(max_bytes)
        self._check()
        raise AssertionError("cancelled by nobody")

    def receive_nowait(self) -> bytes:
        raise trio.WouldBlock

    def watch(self, on_broken: Callable[[], None] | None) -> None:
        self._on_broken = on_broken
        if on_broken is not None and self.broken is not None:
            on_broken()

    def reset(self, code: int) -> None:
        if self.closed:
            return
        self.was_reset, self.closed = code, True
        self._wake()
        assert self.other is not None
        self.other.broken = code
        self.other._wake()
        if self.other._on_broken is not None:
            self.other._on_broken()

    async def aclose(self) -> None:
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        if not self.closed:
            self._end()
        self.closed = True

    def _end(self) -> None:
        assert self.other is not None
        if not self.ended:
            self.other.incoming.put_eof()
        self.ended = True

    def _wake(self) -> None:
        for scope in self._scopes:
            scope.cancel()

    def _check(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
        if self.broken is not None:
            raise StreamReset(self.broken)


def pair() -> tuple[End, End]:
    ours, theirs = End(), End()
    ours.other, theirs.other = theirs, ours
    return ours, theirs


def server_with(handler: Handler, *, header: float = 10.0) -> RpcServer:
    return RpcServer({METHOD: handler}, Alarm(), Stats(), structlog.get_logger(), header, 3600.0)


async def serve(server: RpcServer, stream: End, slots: Slots | None = None) -> None:
    """Serve one stream as a worker does."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.alarm.run)
        with trio.CancelScope() as scope:
            await server.serve(stream, CALLER, slots or Slots(64), scope)
        nursery.cancel_scope.cancel()


async def echo(call: Call) -> object:
    return call.body


async def served(server: RpcServer, data: bytes) -> End:
    """What the server does with a stream that holds `data` and ends."""
    ours, theirs = pair()
    await ours.send_all(data)
    await ours.send_eof()
    await serve(server, theirs)
    return theirs


async def outcome(handler: Handler, body: object = None) -> object:
    ours, theirs = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, server_with(handler), theirs)
        return await ask(ours, METHOD, body, 1000)


async def failure(handler: Handler) -> RpcFailed:
    """The error that a caller of `handler` gets."""
    with pytest.RaisesGroup(RpcFailed) as caught:
        await outcome(handler)
    error = caught.value.exceptions[0]
    assert isinstance(error, RpcFailed)
    return error


async def test_an_answer() -> None:
    assert await outcome(echo, {"a": [1, b"2", None]}) == {"a": [1, b"2", None]}


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\x00\x00\x00\x05abc",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\xff",
        encode_frame([1, 2]),
        encode_frame({"method": "no slash", "deadline_ms": 1, "body": None}),
        encode_frame({"method": METHOD, "deadline_ms": 0, "body": None}),
    ],
)
async def test_a_malformed_request_resets_the_stream_and_is_counted(data: bytes) -> None:
    server = server_with(echo)
    end = await served(server, data)
    assert end.was_reset == codes.RESET_MALFORMED
    assert (server.stats.frames_malformed, server.stats.calls_served) == (1, 0)


async def test_a_header_that_never_ends_is_given_up(autojump_clock: MockClock) -> None:
    server = server_with(echo, header=7.0)
    ours, theirs = pair()
    await ours.send_all(b"\x00\x00")
    await serve(server, theirs)
    assert trio.current_time() == pytest.approx(7.0, abs=0.1)
    assert theirs.was_reset == codes.RESET_MALFORMED


async def test_an_unknown_method() -> None:
    ours, theirs = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, server_with(echo), theirs)
        with pytest.raises(RpcFailed) as caught:
            await ask(ours, "/test/other/1.0.0", None, 1000)
    assert caught.value.code == "unimplemented"


async def test_a_bug_in_a_handler_is_logged_and_not_told() -> None:
    async def broken(_: Call) -> None:
        async with trio.open_nursery():
            raise KeyError("secret detail")

    with capture_logs() as logs:
        error = await failure(broken)
    assert error.code == "internal"
    assert "secret" not in error.message
    assert [entry["event"] for entry in logs] == ["handler failed"]


async def test_a_refusal_inside_a_nursery_is_still_that_refusal() -> None:
    async def refuse(_: Call) -> None:
        async with trio.open_nursery():
            raise CallRefused("not-found", "no such pod")

    error = await failure(refuse)
    assert (error.code, error.message) == ("not-found", "no such pod")


async def test_an_answer_that_cannot_be_encoded_is_the_handlers_failure() -> None:
    async def pi(_: Call) -> float:
        return 3.14

    with capture_logs():
        assert (await failure(pi)).code == "internal"


async def test_a_code_that_is_no_slug_is_the_handlers_failure() -> None:
    async def shout(_: Call) -> None:
        raise CallRefused("NOT FOUND!")

    with capture_logs():
        assert (await failure(shout)).code == "internal"


async def test_the_handler_is_stopped_at_the_deadline(autojump_clock: MockClock) -> None:
    async def slow(call: Call) -> None:
        assert call.remaining == pytest.approx(1.0, abs=0.01)
        await trio.sleep_forever()

    assert (await failure(slow)).code == "deadline"
    assert trio.current_time() == pytest.approx(1.0, abs=0.1)


async def test_a_reply_lifts_the_deadline(autojump_clock: MockClock) -> None:
    async def long(call: Call) -> None:
        await call.reply("go")
        await trio.sleep(100.0)
        await call.stream.send_all(b"done")

    ours, theirs = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, server_with(long), theirs)
        async with calling(ours, METHOD, None, 1000) as (answer, stream):
            assert answer == "go"
            assert await stream.receive_some() == b"done"
            assert await stream.receive_some() == b""


async def test_giving_up_cancels_the_handler() -> None:
    started, cancelled = trio.Event(), trio.Event()

    async def hang(_: Call) -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    ours, theirs = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, server_with(hang), theirs)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(ask, ours, METHOD, None, 60_000)
                await started.wait()
                scope.cancel()
        with trio.fail_after(1.0):
            await cancelled.wait()


async def test_more_calls_than_slots_are_answered_busy_and_slots_come_back() -> None:
    go = trio.Event()

    async def wait(_: Call) -> None:
        await go.wait()

    server, slots = server_with(wait), Slots(2)
    answers: list[str] = []

    async def one() -> None:
        ours, theirs = pair()
        async with trio.open_nursery() as inner:
            inner.start_soon(serve, server, theirs, slots)
            try:
                await ask(ours, METHOD, None, 60_000)
                answers.append("ok")
            except RpcFailed as error:
                answers.append(error.code)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        assert answers == ["busy"]
        go.set()
    assert answers == ["busy", "ok", "ok"]
    assert slots.used == 0


async def test_bytes_right_behind_the_request_reach_the_stream() -> None:
    async def collect(call: Call) -> None:
        await call.reply()
        received = b"".join([bytes(chunk) async for chunk in call.stream])
        await call.stream.send_all(received[::-1])

    ours, theirs = pair()
    await ours.send_all(encode_frame(Request(method=METHOD, deadline_ms=1000)) + b"abc")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, server_with(collect), theirs)
        await ours.send_all(b"def")
        await ours.send_eof()
        received = b""
        while chunk := await ours.receive_some():
            received += chunk
    size = int.from_bytes(received[:4], "big")
    assert codec.decode(received[4 : 4 + size])["ok"] is True
    assert received[4 + size :] == b"fedcba"


async def test_a_failure_after_the_reply_resets_the_stream() -> None:
    async def broken(call: Call) -> None:
        await call.reply()
        raise CallRefused("too-late")

    ours, theirs = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, server_with(broken), theirs)
        with pytest.raises(StreamReset):
            async with calling(ours, METHOD, None, 1000) as (_, stream):
                await stream.receive_some()


async def test_frames_are_read_in_time_linear_in_their_bytes() -> None:
    """However they are cut: as small ones in large pieces, and as a large one in small pieces."""
    ours, theirs = pair()
    framed = FramedStream(theirs)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await ours.send_all(encode_frame(0) * 10_000)
            large = encode_frame(bytes(100_000))
            for start in range(0, len(large), 1000):
                await ours.send_all(large[start : start + 1000])
            await ours.send_eof()

        nursery.start_soon(send)
        for _ in range(10_000):
            assert await framed.read_frame() == b"\x00"
        assert codec.decode(await framed.read_frame() or b"") == bytes(100_000)
        assert await framed.read_frame() is None


async def test_an_answer_that_does_not_come_in_time_resets_the_stream(autojump_clock: MockClock) -> None:
    ours, theirs = pair()
    alarm = Alarm()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.run)
        with pytest.raises(trio.TooSlowError):
            await ask_by(alarm, trio.current_time() + 3.0, ours, METHOD, None)
        assert trio.current_time() == pytest.approx(3.0, abs=0.1)
        assert (ours.was_reset, theirs.broken) == (codes.RESET_CANCELLED, codes.RESET_CANCELLED)
        nursery.cancel_scope.cancel()


async def test_a_stream_closed_here_is_no_timeout() -> None:
    ours, _ = pair()
    alarm = Alarm()
    await ours.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await ask_by(alarm, trio.current_time() + 3.0, ours, METHOD, None)


async def test_the_deadline_of_a_call_ends_with_the_call(autojump_clock: MockClock) -> None:
    """Its worker's scope lives on for other calls, and must not be cancelled for one that is over."""
    server = server_with(echo)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.alarm.run)
        with trio.CancelScope() as scope:
            for _ in range(2):
                ours, theirs = pair()
                async with trio.open_nursery() as inner:
                    inner.start_soon(server.serve, theirs, CALLER, Slots(64), scope)
                    assert await ask(ours, METHOD, 1, 1000) == 1
                await trio.sleep(5.0)
                ours.reset(1)
        assert not scope.cancel_called
        nursery.cancel_scope.cancel()
