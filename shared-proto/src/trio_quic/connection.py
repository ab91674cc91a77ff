"""A connection: a :class:`~trio_quic.interface.Core` with the streams on it, driven by its endpoint's tasks.

The endpoint calls ``feed`` and ``digest`` when datagrams have come, ``flush`` when there is something to send, and
``on_time`` when ``due`` has come.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, cast

import trio

from .errors import ConnectionClosed, ConnectionLost, HandshakeFailed, PeerRejected, QuicError
from .interface import (
    CALM,
    Address,
    CidIssued,
    CidRetired,
    Core,
    CoreFault,
    Data,
    Datagram,
    Reset,
    Stopped,
    Termination,
)
from .limits import Limits
from .stream import Stream
from .tls import REJECTING_ALERTS

T = TypeVar("T")

logger = logging.getLogger("trio_quic")

# The core is called so much after its own timer, in seconds: it computes "sent + delay <= now" as "sent <=
# now - delay", and with a clock that stands still at the deadline, a rounding error would have it ask for the
# same moment forever.
CLOCK_GRAIN = 1e-6


class Port(Protocol):
    """What a connection needs of its endpoint."""

    def send(self, datagrams: list[Datagram]) -> None:
        """Put datagrams on the wire; what does not fit is lost, as on any wire."""

    def add_cid(self, cid: bytes, connection: "Connection[T]") -> None:
        """Route datagrams with this id to the connection."""

    def remove_cid(self, cid: bytes) -> None:
        """Route them no more."""

    def note_token(self, old: bytes, new: bytes, connection: "Connection[T]") -> None:
        """A datagram with this reset token is the peer's word that the connection is no more."""

    def wake(self, connection: "Connection[T]") -> None:
        """Have the connection flushed soon."""

    def arm(self, connection: "Connection[T]") -> None:
        """Look at the connection's ``due`` again."""

    def on_ready(self, connection: "Connection[T]") -> None:
        """Both sides are proven."""

    def on_over(self, connection: "Connection[T]", farewell: list[Datagram]) -> None:
        """The connection is over; ``farewell`` is what we sent last if we closed it."""


class Connection(Generic[T]):
    """An authenticated connection; get one from ``Endpoint.connect()`` or ``Endpoint.accept()``.

    ``open_stream`` and ``accept_stream`` raise :class:`ConnectionClosed` or :class:`ConnectionLost` when the
    connection has ended (also found in ``close_error``), and :class:`trio.ClosedResourceError` when it was
    closed on this side.
    """

    def __init__(self, port: Port, core: Core, limits: Limits, *, is_client: bool, give_up_at: float) -> None:
        self._port = port
        self._core = core
        self._limits = limits
        self._is_client = is_client
        self._give_up_at = give_up_at
        self._last_heard = trio.current_time()
        self._streams: dict[int, Stream] = {}
        self._stalled: dict[Stream, None] = {}
        self._incoming: deque[Stream] = deque()
        self._fresh: list[Stream] = []
        self._taker: Callable[[Stream], bool] | None = None
        self._acceptors = trio.lowlevel.ParkingLot()
        self._lone = False
        self._called = False
        self._slots_news = trio.Event()
        self._ready = False
        self._over = False
        self._remote_address = core.remote_address
        self.settled = trio.Event()
        """Set once the handshake has come to an end, good or bad."""
        self.closed = trio.Event()
        """Set once the connection is over, whoever ended it."""
        self.close_error: QuicError | None = None
        """Why the connection is over; None while it lives, and if this side closed it."""
        self.armed = float("inf")
        """When the endpoint's clock is going to look at this connection: the endpoint's note."""
        self.reset_token = b""
        """By what the peer would disown this connection."""
        self.busy = 0
        """Tasks that are between two calls on this connection's streams: the streams' note."""
        self.waited = 0
        """For how many passes what is queued has waited for such tasks: the endpoint's note."""

    def __repr__(self) -> str:
        state = "over" if self._over else "open" if self._ready else "connecting"
        return f"<trio_quic.Connection with {self.remote_address}, {state}>"

    @property
    def peer(self) -> T:
        """What ``verify_peer`` returned for the peer's certificate."""
        return cast(T, self._core.verified)

    @property
    def remote_address(self) -> Address | None:
        """Where the peer was heard last, as (host, port)."""
        return self._core.remote_address or self._remote_address

    @property
    def is_client(self) -> bool:
        """Whether this side opened the connection."""
        return self._is_client

    # -- for the application

    async def open_stream(self) -> Stream:
        """A new bidirectional stream. Waits while as many are open as the peer, or ``Limits.max_streams``,
        allows.

        The peer's ``accept_stream()`` returns it when the first byte, end of stream or reset is sent on it.
        """
        await trio.lowlevel.checkpoint()
        while True:
            try:
                return self.open_stream_nowait()
            except trio.WouldBlock:
                self._slots_news = trio.Event() if self._slots_news.is_set() else self._slots_news
                await self._slots_news.wait()

    def open_stream_nowait(self) -> Stream:
        """``open_stream()`` without a checkpoint. Raises :class:`trio.WouldBlock` where that would wait."""
        self._check_open()
        if not self._core.can_open():
            raise trio.WouldBlock
        return self._add_stream(self._core.open_stream())

    async def accept_stream(self) -> Stream:
        """The next stream that the peer has opened. Streams that had arrived can be had after the
        connection's end.
        """
        if self._incoming:
            await trio.lowlevel.checkpoint()
        while not self._incoming:
            self._check_open()
            await self._acceptors.park()
            self._called = False
        return self.accept_stream_nowait()

    def accept_stream_nowait(self) -> Stream:
        """``accept_stream()`` without a checkpoint. Raises :class:`trio.WouldBlock` where that would wait."""
        if not self._incoming:
            self._check_open()
            raise trio.WouldBlock
        stream = self._incoming.popleft()
        self._call_acceptor()
        return stream

    def take_streams(self, taker: Callable[[Stream], bool]) -> None:
        """Offer each stream that the peer opens to ``taker`` first, in the very pass of the endpoint's task that has brought
        its first bytes: for what is answered without waiting. It returns whether it has taken the stream; what it leaves
        goes to ``accept_stream()``. It must be quick, cannot wait, and must not raise.
        """
        self._taker = taker

    def _offer(self) -> None:
        fresh, self._fresh = self._fresh, []
        for stream in fresh:
            if self._taker is None or not self._taker(stream):
                self._incoming.append(stream)
        self._call_acceptor()

    def _call_acceptor(self) -> None:
        """Wake one waiting ``accept_stream()`` if there is something to accept and none is on its way. Who takes a stream
        calls the next: what one task can accept in a row wakes no other.
        """
        if self._incoming and not self._called and len(self._acceptors):
            self._called = True
            self._acceptors.unpark()

    async def aclose(self, code: int = 0, reason: str = "") -> None:
        """Close at once; the peer gets :class:`ConnectionClosed` with ``code`` and the first 200 bytes of
        ``reason``.

        What was sent on streams and not yet acknowledged may be lost: have the peer confirm, or end streams,
        first.
        """
        self.close_now(code, reason)
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._over:
            error = self.close_error or trio.ClosedResourceError("this connection was closed here")
            raise error.with_traceback(None)

    # -- for streams

    def wake(self) -> None:
        """Have what is queued sent soon, together with what else is written until then."""
        self._port.wake(self)

    def wake_whole(self) -> None:
        """The same for all of a stream: at once if only one thing came in last, of which this must be the answer. With
        more under way it waits a little for the others.
        """
        if self._lone:
            self._lone = False
            self.flush(trio.current_time())
        else:
            self._port.wake(self)

    def stall(self, stream: Stream) -> None:
        """A sender of this stream waits for acknowledgements."""
        self._stalled[stream] = None

    def forget(self, stream: Stream) -> None:
        """The application is done with a stream."""
        self._core.let_go(stream.id)
        self._streams.pop(stream.id, None)
        self._stalled.pop(stream, None)

    # -- for the endpoint

    def feed(self, data: bytes, address: Address, now: float) -> None:
        """Take in one datagram of a batch; ``digest`` follows after the last."""
        self._last_heard = now
        if not self._over:
            try:
                self._core.receive(data, address, now)
            except Exception as exc:  # noqa: BLE001 - see _broke
                self._broke(exc)

    def digest(self, now: float) -> None:
        """Hand on what a batch of datagrams has brought."""
        if self._over:
            return
        try:
            self._hand_on_events()
            wanted = self._core.termination is not None or self._core.wants_to_send(now)
        except Exception as exc:  # noqa: BLE001 - see _broke
            self._broke(exc)
            return
        if wanted:
            self.wake()
        else:
            self._arm(now)

    def _arm(self, now: float) -> None:
        """See to it that the endpoint's clock looks at this connection when it is due."""
        try:
            soon_enough = self.armed <= now + CALM and self._core.is_calm
        except Exception as exc:  # noqa: BLE001 - see _broke
            self._broke(exc)
            return
        if not soon_enough:
            self._port.arm(self)

    def abandon(self) -> None:
        """End without a word to anybody."""
        self._finish(None)

    def disowned(self) -> None:
        """The peer has sent its reset token."""
        self._finish(ConnectionLost(f"{self.remote_address} was restarted, or has lost this connection"))

    def close_now(self, code: int = 0, reason: str = "") -> None:
        """Close and send the farewell without waiting for anything."""
        if not self._over:
            self._core.close(code, reason)
            self._depart(None)

    @property
    def ready(self) -> bool:
        """Whether the handshake succeeded."""
        return self._ready

    def is_known(self) -> bool:
        """Whether the peer has sent anything that could be decrypted."""
        return self._core.is_known

    def due(self) -> float:
        """When ``on_time`` is to be called, if nothing happens before."""
        try:
            timeout = self._core.next_timeout()
        except Exception as exc:  # noqa: BLE001 - see _broke
            self._broke(exc)
            return float("inf")
        due = self._give_up_at if timeout is None else timeout + CLOCK_GRAIN
        if not self._ready:
            return min(due, self._give_up_at)
        if self._limits.keep_alive is not None:
            due = min(due, self._last_heard + self._limits.keep_alive)
        return due

    def on_time(self, now: float) -> None:
        """Do what has become due."""
        if self._over:
            return
        try:
            self._on_time(now)
        except Exception as exc:  # noqa: BLE001 - see _broke
            self._broke(exc)

    def _on_time(self, now: float) -> None:
        if not self._ready and now >= self._give_up_at:
            self._core.close(0, "handshake timed out")
            self._depart(HandshakeFailed(f"no answer from {self.remote_address} in time"))
            return
        timeout = self._core.next_timeout()
        if timeout is not None and now >= timeout + CLOCK_GRAIN:
            self._core.timer(now)
            self._hand_on_events()
        if self._ready and not self.reset_token:
            self._core.seek_reset_token()
        keep_alive = self._limits.keep_alive
        if self._ready and keep_alive is not None and now >= self._last_heard + keep_alive:
            self._last_heard = now
            self._core.ping()
        self.flush(now)

    def flush(self, now: float) -> None:
        """Send what is due, and see whether that, or what came in, was the end."""
        if self._over:
            return
        try:
            datagrams = self._transmit(now)
            if self._core.has_events or self._core.peer_reset_token != self.reset_token:
                self._hand_on_events()  # connection ids that the peer may use from its first answer on
            end = self._core.termination
        except Exception as exc:  # noqa: BLE001 - see _broke
            self._broke(exc)
            return
        if end is not None:
            self._finish(self._explain(end), datagrams if end.by == "us" else [])
        else:
            self._arm(now)

    # -- driving the core

    def _broke(self, error: Exception) -> None:
        """The core cannot go on, or has a defect: that ends this connection, and never the endpoint, which drives it from
        the tasks that it drives all others from. The peer hears of it by a reset, should it say anything more.
        """
        if not isinstance(error, CoreFault):
            logger.error("connection with %s ends: the core failed", self._remote_address, exc_info=error)
            error = CoreFault(f"internal error: {error!r}")
        self._finish(ConnectionLost(str(error)) if self._ready else HandshakeFailed(str(error)))

    def _transmit(self, now: float) -> list[Datagram]:
        datagrams = self._core.datagrams(now)
        if datagrams:
            self._port.send(datagrams)
        return datagrams

    def _depart(self, error: QuicError | None) -> None:
        """Say farewell, having closed the core, and be over for this reason.

        Not to an address that is unproven: farewells do not count against the amplification limit.
        """
        proven = self._is_client or self._core.address_proven
        farewell: list[Datagram] = []
        if proven:
            try:
                farewell = self._transmit(trio.current_time())
            except Exception as exc:  # noqa: BLE001 - see _broke
                self._broke(exc)
        self._finish(error, farewell)

    def _hand_on_events(self) -> None:
        heard = 0
        for event in self._core.events():
            match event:
                case Data():
                    heard += 1
                    self._stream(event.stream_id).on_data(event.data, event.fin)
                case Reset(stream_id, code):
                    self._stream(stream_id).on_reset(code)
                case Stopped(stream_id, code):
                    self._on_stopped(stream_id, code)
                case CidIssued(cid):
                    self._port.add_cid(cid, self)
                case CidRetired(cid):
                    self._port.remove_cid(cid)
        if heard:
            self._lone = heard == 1
        if not self._ready and self._core.established:
            self._ready = True
            self._port.on_ready(self)
            self.settled.set()
        if not self._slots_news.is_set() and self._core.can_open():
            self._slots_news.set()
        token = self._core.peer_reset_token
        if token != self.reset_token:
            self._port.note_token(self.reset_token, token, self)
            self.reset_token = token
        if self._stalled:
            self._stalled = {stream: None for stream in self._stalled if not stream.on_progress()}
        if self._fresh:
            self._offer()

    def _add_stream(self, stream_id: int) -> Stream:
        stream = self._streams[stream_id] = Stream(self, self._core, stream_id, self._limits.send_buffer)
        return stream

    def _stream(self, stream_id: int) -> Stream:
        """The stream that an event is about; the first event of a stream of the peer brings it to
        accept_stream().
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            stream = self._add_stream(stream_id)
            self._fresh.append(stream)
        return stream

    def _on_stopped(self, stream_id: int, code: int) -> None:
        if self._core.is_let_go(stream_id):
            return
        self._stream(stream_id).on_stopped(code)

    # -- the end

    def _explain(self, end: Termination) -> QuicError | None:
        """The error that tells the application how the connection ended."""
        if not self._ready:
            return self._explain_handshake(end)
        if end.by == "silence":
            return ConnectionLost(f"nothing was heard from {self.remote_address} for the idle time-out")
        if end.by == "us":
            return ConnectionLost(f"the peer broke the protocol: {end.reason} (code {end.code})")
        if end.application or end.code == 0:
            return ConnectionClosed(end.code, end.reason)
        return ConnectionLost(f"the peer gave up the connection: {end.reason} (transport code {end.code})")

    def _explain_handshake(self, end: Termination) -> HandshakeFailed:
        if end.by == "us" and self._core.rejection is not None:
            return self._core.rejection
        if end.by == "peer" and end.alert in REJECTING_ALERTS:
            return PeerRejected(end.reason or "the peer refused our certificate", by_remote=True)
        if end.by == "silence":
            return HandshakeFailed(f"no answer from {self.remote_address}")
        who = "the peer" if end.by == "peer" else "this side"
        alert = f"TLS alert {end.alert}" if end.alert is not None else f"code {end.code}"
        return HandshakeFailed(f"{who} ended the handshake with {alert}: {end.reason or 'no reason given'}")

    def _finish(self, error: QuicError | None, farewell: list[Datagram] | None = None) -> None:
        if self._over:
            return
        self._over = True
        self._remote_address = self._core.remote_address
        self.close_error = error
        for stream in list(self._streams.values()):
            stream.on_disconnected(error or trio.ClosedResourceError("this connection was closed here"))
        self._streams.clear()
        self._port.on_over(self, farewell or [])
        self._acceptors.unpark_all()
        for event in (self.settled, self.closed, self._slots_news):
            event.set()
