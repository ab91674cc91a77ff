"""One bidirectional QUIC stream as a :class:`trio.abc.HalfCloseableStream`."""

from collections.abc import Callable
from typing import Protocol

import trio

from .errors import StreamReset
from .interface import Core

Buffer = bytes | bytearray | memoryview

# Bytes that one receive_some() returns when the caller names no number: a guess, a few dozen datagrams.
DEFAULT_READ = 64 * 1024


class Owner(Protocol):
    """What a stream needs of its connection."""

    busy: int
    """Tasks between two calls on streams, which may soon have more to send: what is queued waits for them a
    little.
    """

    def wake(self) -> None:
        """Have what was queued in the core sent soon."""

    def wake_whole(self) -> None:
        """The same, when all of a stream is queued: it need not wait for more."""

    def stall(self, stream: "Stream") -> None:
        """A sender waits for acknowledgements: tell the stream of progress."""

    def forget(self, stream: "Stream") -> None:
        """The application is done with the stream."""


class Stream(trio.abc.HalfCloseableStream):
    """A stream of a connection; get one from ``open_stream()`` or ``accept_stream()``, and always close it.

    Both directions have back-pressure: ``send_all`` waits while ``Limits.send_buffer`` bytes are
    unacknowledged, and the peer's waits while ``Limits.stream_window`` bytes were not read here. Errors other
    than Trio's own: :class:`StreamReset`, :class:`ConnectionClosed`, :class:`ConnectionLost`, all of them
    :class:`trio.BrokenResourceError`.

    Closing after a whole ``send_all`` is graceful: the connection goes on to deliver what was sent. If
    ``send_all`` was cancelled half-way, closing resets the stream instead, so that the peer cannot take a
    part for the whole.
    """

    def __init__(self, owner: Owner, core: Core, stream_id: int, send_buffer: int) -> None:
        self._owner = owner
        self._core = core
        self._id = stream_id
        self._send_buffer = send_buffer
        self._received = bytearray()
        self._eof = False
        self._fin_sent = False
        self._torn = False
        self._closed = False
        self._receive_error: Exception | None = None
        self._send_error: Exception | None = None
        self._reader: trio.lowlevel.Task | None = None  # waits for news
        self._writable: trio.Event | None = None
        self._reading = False
        self._writing = False
        self._on_broken: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<trio_quic.Stream {self._id}>"

    @property
    def id(self) -> int:
        """The stream's id on the wire (RFC 9000 §2.1); unique within its connection."""
        return self._id

    # -- receiving

    @property
    def at_eof(self) -> bool:
        """Whether all that the peer sent was read, its end of stream included: nothing more will come."""
        return self._eof and not self._received

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, as soon as there are any; ``b""`` at the peer's end of stream."""
        if max_bytes is None:
            max_bytes = DEFAULT_READ
        elif not isinstance(max_bytes, int):
            raise TypeError("max_bytes must be an int or None")
        elif max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._reading:
            raise trio.BusyResourceError("another task is already reading this stream")
        self._reading = True
        try:
            await self._wait_for_news()
            return self._take(max_bytes)
        finally:
            self._reading = False

    def receive_nowait(self, max_bytes: int = DEFAULT_READ) -> bytes:
        """What ``receive_some()`` would return without waiting. Raises :class:`trio.WouldBlock` if it would wait."""
        if self._reading:
            raise trio.BusyResourceError("another task is already reading this stream")
        if not self._has_news():
            raise trio.WouldBlock
        return self._take(max_bytes)

    def receive_whole_nowait(self, max_bytes: int) -> bytes | None:
        """All that the peer has sent, if its end of stream is here too and it is no more than ``max_bytes``; else None,
        and nothing is taken.
        """
        if self._reading or not self._eof or not 0 < len(self._received) <= max_bytes:
            return None
        return self._take(max_bytes)

    async def receive_all(self, max_bytes: int) -> bytes:
        """Everything up to the peer's end of stream, in one piece. Raises ValueError as soon as it is more than
        ``max_bytes``.
        """
        if self._reading:
            raise trio.BusyResourceError("another task is already reading this stream")
        self._reading = True
        whole = bytearray()
        try:
            while True:
                await self._wait_for_news()
                part = self._take(DEFAULT_READ)
                if len(whole) + len(part) > max_bytes:
                    raise ValueError(f"the peer sends more than {max_bytes} bytes")
                whole += part
                if self.at_eof:
                    return bytes(whole)
        finally:
            self._reading = False

    async def _wait_for_news(self) -> None:
        """A checkpoint, for as long as there is nothing to tell a reader."""
        if self._has_news():
            await self._pause()
        while not self._has_news():
            # What an event does, by hand: readers wait for every answer, and there is one at most.
            self._reader = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)

    def _stop_waiting(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake_reader(self) -> None:
        if self._reader is not None:
            trio.lowlevel.reschedule(self._reader)
            self._reader = None

    async def _pause(self) -> None:
        """A checkpoint in the midst of work."""
        self._owner.busy += 1
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self._owner.busy -= 1

    def _has_news(self) -> bool:
        return bool(self._received or self._eof or self._closed or self._receive_error)

    def _take(self, max_bytes: int) -> bytes:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed here")
        if not self._received:
            if self._eof:
                return b""
            assert self._receive_error is not None
            raise self._receive_error.with_traceback(None)
        if len(self._received) <= max_bytes:
            data = bytes(self._received)
            self._received.clear()
        else:
            data = bytes(memoryview(self._received)[:max_bytes])
            del self._received[:max_bytes]
        if self._core.consumed(self._id, len(data)):
            self._owner.wake()
        return data

    # -- sending

    async def send_all(self, data: Buffer) -> None:
        """Queue all of ``data``; returns when the last byte is in the send buffer, not when it arrived."""
        self._start_writing()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_sending()
            if isinstance(data, bytes) and len(data) <= self._room():
                self._queue(data)
                self._owner.busy += 1
                await trio.lowlevel.cancel_shielded_checkpoint()
                self._owner.busy -= 1
            else:
                await self._pause()
                self._check_sending()
                await self._send_in_parts(memoryview(data).cast("B"))
        finally:
            self._writing = False

    def _room(self) -> int:
        return self._send_buffer - self._core.buffered(self._id)

    async def _send_in_parts(self, view: memoryview) -> None:
        done = 0
        try:
            while done < len(view):
                await self._wait_for_room()
                chunk = view[done : done + self._room()]
                self._queue(bytes(chunk))
                done += len(chunk)
        except trio.Cancelled:
            self._torn = done > 0
            raise

    def _queue(self, data: bytes) -> None:
        self._core.send(self._id, data)
        self._owner.wake()

    def _start_writing(self) -> None:
        if self._writing:
            raise trio.BusyResourceError("another task is already writing to this stream")
        self._writing = True

    async def send_last(self, data: bytes) -> None:
        """``send_all(data)`` and ``send_eof()`` in one, and so in one datagram if there is room: for a request or an
        answer that is whole.
        """
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            self.send_last_nowait(data)
            await trio.lowlevel.cancel_shielded_checkpoint()
        except trio.WouldBlock:
            await self.send_all(data)
            await self.send_eof()

    def send_last_nowait(self, data: bytes) -> None:
        """``send_last(data)`` without a checkpoint. Raises :class:`trio.WouldBlock`, having sent nothing, if the send
        buffer has no room for all of it.
        """
        self._start_writing()
        self._writing = False
        self._check_sending()
        if len(data) > self._room():
            raise trio.WouldBlock
        self._fin_sent = True
        self._core.send(self._id, data, fin=True)
        self._owner.wake_whole()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room in the send buffer."""
        self._start_writing()
        try:
            await trio.lowlevel.checkpoint()
            self._check_sending()
            await self._wait_for_room()
        finally:
            self._writing = False

    async def send_eof(self) -> None:
        """End our direction of the stream; the peer reads what was sent and then ``b""``. May be repeated."""
        self._start_writing()
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._closed:
                raise trio.ClosedResourceError("this stream was closed here")
            if not self._fin_sent:
                self._check_sending()
                self._finish_sending()
                self._owner.wake()
            await trio.lowlevel.cancel_shielded_checkpoint()
        finally:
            self._writing = False

    def _check_sending(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed here")
        if self._fin_sent:
            raise trio.ClosedResourceError("this stream's sending side was ended by send_eof()")
        if self._send_error is not None:
            raise self._send_error.with_traceback(None)

    async def _wait_for_room(self) -> None:
        while self._core.buffered(self._id) >= self._send_buffer:
            await self._wait_for_progress()

    async def _wait_for_progress(self) -> None:
        self._writable = trio.Event()
        self._owner.stall(self)
        await self._writable.wait()
        self._check_sending()

    def _finish_sending(self) -> None:
        self._fin_sent = True
        self._core.send(self._id, b"", fin=True)

    # -- ending

    def watch(self, on_broken: Callable[[], None] | None) -> None:
        """Have ``on_broken`` called when the peer abandons the stream in either direction, or the connection ends, and at
        once if that was before: for who works for the peer and neither reads nor writes meanwhile. Not after this side
        has closed or reset the stream; None: nobody watches any more.
        """
        self._on_broken = None if self._closed else on_broken
        if on_broken is not None and (self._receive_error or self._send_error) is not None:
            on_broken()

    async def aclose(self) -> None:
        """Close both directions: an end of stream for the peer to read, and no interest in what it still
        sends.

        Closes at once even when cancelled.
        """
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """``aclose()`` without a checkpoint."""
        if not self._closed:
            if self._torn:
                self._core.reset(self._id, 0)
            elif not self._fin_sent and self._send_error is None:
                self._finish_sending()
            self._end(0)

    def reset(self, code: int = 0) -> None:
        """Abandon both directions at once: the peer's calls raise :class:`StreamReset` with this application
        code.

        Unlike ``aclose()``, this drops what the peer has not received yet.
        """
        if not 0 <= code < 1 << 62:
            raise ValueError("an application's error code is a number below 2**62 (RFC 9000 §20.2)")
        if not self._closed:
            self._core.reset(self._id, code)
            self._end(code)

    def _end(self, code: int) -> None:
        self._closed = True
        self._on_broken = None
        self._received.clear()
        self._core.stop(self._id, code)
        self._owner.forget(self)
        self._notify()
        if self._core.has_news:
            self._owner.wake()

    # -- what the connection tells

    def on_data(self, data: bytes, fin: bool) -> None:
        """Bytes have arrived, the last ones if ``fin``."""
        self._received += data
        self._eof = self._eof or fin
        self._wake_reader()

    def on_reset(self, code: int) -> None:
        """The peer abandoned its sending side: what was not read is gone."""
        self._received.clear()
        self._receive_error = StreamReset(code)
        self._broken()

    def on_stopped(self, code: int) -> None:
        """The peer wants no more of what we send."""
        self._send_error = StreamReset(code)
        self._broken()

    def on_disconnected(self, error: Exception) -> None:
        """The connection is over. What has arrived can still be read."""
        self._receive_error = self._receive_error or error
        self._send_error = self._send_error or error
        self._broken()

    def on_progress(self) -> bool:
        """Acknowledgements have come in; half-full is low enough to wake a sender. Returns whether nobody waits
        any more.
        """
        if self._writable is not None and self._core.buffered(self._id) <= self._send_buffer // 2:
            self._writable.set()
            self._writable = None
        return self._writable is None

    def _broken(self) -> None:
        self._notify()
        if self._on_broken is not None:
            self._on_broken()

    def _notify(self) -> None:
        self._wake_reader()
        if self._writable is not None:
            self._writable.set()
            self._writable = None
