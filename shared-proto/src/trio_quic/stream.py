"""One bidirectional QUIC stream as a :class:`trio.abc.HalfCloseableStream`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import trio

from .core import Core
from .errors import StreamReset

Buffer = bytes | bytearray | memoryview

# Bytes that one receive_some() returns when the caller names no number: a guess, a few dozen datagrams.
DEFAULT_READ = 64 * 1024


class Owner(Protocol):
    """What a stream needs of its connection."""

    def wake(self) -> None:
        """Have what was queued in the core sent soon."""

    def forget(self, stream: "Stream") -> None:
        """The application is done with the stream."""


class _OneUser:
    """Turns a second task that uses one direction at the same time away, as Trio's streams do."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.busy = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        if self.busy:
            raise trio.BusyResourceError(f"another task is already {self._what} this stream")
        self.busy = True
        try:
            yield
        finally:
            self.busy = False


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
        self._readable = trio.Event()
        self._writable: trio.Event | None = None
        self._reading = _OneUser("reading")
        self._writing = _OneUser("writing")

    def __repr__(self) -> str:
        return f"<trio_quic.Stream {self._id}>"

    @property
    def id(self) -> int:
        """The stream's id on the wire (RFC 9000 §2.1); unique within its connection."""
        return self._id

    # -- receiving

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Some bytes, as soon as there are any; ``b""`` at the peer's end of stream."""
        if max_bytes is None:
            max_bytes = DEFAULT_READ
        elif not isinstance(max_bytes, int):
            raise TypeError("max_bytes must be an int or None")
        elif max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        with self._reading.turn():
            await trio.lowlevel.checkpoint()
            while not (self._received or self._closed or self._eof or self._receive_error):
                self._readable = trio.Event()
                await self._readable.wait()
            return self._take(max_bytes)

    def _take(self, max_bytes: int) -> bytes:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed here")
        if not self._received:
            if self._eof:
                return b""
            assert self._receive_error is not None
            raise self._receive_error.with_traceback(None)
        data = bytes(memoryview(self._received)[:max_bytes])
        del self._received[:max_bytes]
        if self._core.consumed(self._id, len(data)):
            self._owner.wake()
        return data

    # -- sending

    async def send_all(self, data: Buffer) -> None:
        """Queue all of ``data``; returns when the last byte is in the send buffer, not when it arrived."""
        with self._writing.turn():
            await trio.lowlevel.checkpoint()
            self._check_sending()
            view, done = memoryview(data).cast("B"), 0
            try:
                while done < len(view):
                    await self._wait_for_room()
                    room = self._send_buffer - self._core.buffered(self._id)
                    chunk = view[done : done + room]
                    self._core.send(self._id, bytes(chunk))
                    self._owner.wake()
                    done += len(chunk)
            except trio.Cancelled:
                self._torn = done > 0
                raise

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room in the send buffer."""
        with self._writing.turn():
            await trio.lowlevel.checkpoint()
            self._check_sending()
            await self._wait_for_room()

    async def send_eof(self) -> None:
        """End our direction of the stream; the peer reads what was sent and then ``b""``. May be repeated."""
        with self._writing.turn():
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError("this stream was closed here")
            if not self._fin_sent:
                self._check_sending()
                self._finish_sending()
                self._owner.wake()

    def _check_sending(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed here")
        if self._fin_sent:
            raise trio.ClosedResourceError("this stream's sending side was ended by send_eof()")
        if self._send_error is not None:
            raise self._send_error.with_traceback(None)

    async def _wait_for_room(self) -> None:
        while self._core.buffered(self._id) >= self._send_buffer:
            self._writable = trio.Event()
            await self._writable.wait()
            self._check_sending()

    def _finish_sending(self) -> None:
        self._fin_sent = True
        self._core.send(self._id, b"", fin=True)

    # -- ending

    async def aclose(self) -> None:
        """Close both directions: an end of stream for the peer to read, and no interest in what it still
        sends.

        Closes at once even when cancelled.
        """
        if not self._closed:
            if self._torn:
                self._core.reset(self._id, 0)
            elif not self._fin_sent and self._send_error is None:
                self._finish_sending()
            self._end(0)
        await trio.lowlevel.checkpoint()

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
        self._received.clear()
        self._core.stop(self._id, code)
        self._owner.forget(self)
        self._notify()
        self._owner.wake()

    # -- what the connection tells

    def on_data(self, data: bytes, fin: bool) -> None:
        """Bytes have arrived, the last ones if ``fin``."""
        self._received += data
        self._eof = self._eof or fin
        self._readable.set()

    def on_reset(self, code: int) -> None:
        """The peer abandoned its sending side: what was not read is gone."""
        self._received.clear()
        self._receive_error = StreamReset(code)
        self._notify()

    def on_stopped(self, code: int) -> None:
        """The peer wants no more of what we send."""
        self._send_error = StreamReset(code)
        self._notify()

    def on_disconnected(self, error: Exception) -> None:
        """The connection is over. What has arrived can still be read."""
        self._receive_error = self._receive_error or error
        self._send_error = self._send_error or error
        self._notify()

    def on_progress(self) -> None:
        """Acknowledgements have come in; half-full is low enough to wake a sender."""
        if self._writable is not None and self._core.buffered(self._id) <= self._send_buffer // 2:
            self._writable.set()
            self._writable = None

    @property
    def awaits_progress(self) -> bool:
        """Whether a sender waits for room."""
        return self._writable is not None

    def _notify(self) -> None:
        self._readable.set()
        if self._writable is not None:
            self._writable.set()
            self._writable = None
