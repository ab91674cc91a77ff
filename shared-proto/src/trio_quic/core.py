"""The place that knows aioquic: its sans-IO core, held to our rules, behind :mod:`trio_quic.interface`.

Where aioquic's habits differ from ours, :class:`~trio_quic.hardened.HardenedConnection` and, on the hot path,
:class:`~trio_quic.lean.LeanConnection` override them:

- *Credit follows consumption.* aioquic doubles a stream's and the connection's receive limits as data
  arrives. Here a limit is always "what the application consumed, plus the window", so unread bytes never
  exceed the window.
- *Streams count until the application has let go of them*, not until their last frame, so that a peer cannot
  pile up finished, unread streams.
- *Handshake data is small*: 64 KiB a packet number space, where aioquic buffers 512 KiB a space before
  anybody is known.
"""

from collections.abc import Iterator
from typing import cast

from aioquic.quic import events as aioquic_events
from aioquic.quic.connection import (
    QuicConnectionState,
    stream_is_client_initiated,
)

from .errors import PeerRejected
from .interface import (
    Address,
    CidIssued,
    CidRetired,
    CoreConfig,
    CoreFault,
    Data,
    Datagram,
    Event,
    Reset,
    Stopped,
    Termination,
)
from .lean import LeanConnection
from .lean_stream import LeanStream
from .tls import CertificateCheck, short_reason

# The peer is told of new credit for the connection when it is this part of the window: a guess, a frame in half a
# megabyte.
_TELL = 8

_OVER = frozenset({QuicConnectionState.CLOSING, QuicConnectionState.DRAINING, QuicConnectionState.TERMINATED})


class AioquicCore:
    """A :class:`~trio_quic.interface.Core` over aioquic. See the module's text for the rules that it keeps."""

    def __init__(
        self,
        config: CoreConfig,
        check: CertificateCheck,
        *,
        original_cid: bytes | None = None,
        retry_cid: bytes | None = None,
    ) -> None:
        """A client's side, or with the ``original_cid`` of a client's first datagram, a server's. ``retry_cid`` is
        what our Retry told the client to use instead, if there was one.
        """
        self._quic = LeanConnection(config, check, original_cid, retry_cid)
        self._limits = config.limits
        self._is_client = original_cid is None
        self._accounts: dict[int, LeanStream] = {}
        self._consumed = 0
        self._own_streams = 0
        self._first_window = self._limits.first_window
        streams = 2 * self._limits.max_streams * self._first_window
        # What streams may be given beyond their first windows. All their windows together and the credit that was not
        # yet told are never more than the connection's window: it is never what a stream waits for.
        window = self._limits.connection_window
        self._spare = max(0, window - window // _TELL - streams)

    # -- datagrams and time

    @property
    def cid(self) -> bytes:
        """Our first connection id."""
        return self._quic.host_cid

    @property
    def is_known(self) -> bool:
        """Whether any packet of the peer could be decrypted yet."""
        return self._quic._state is not QuicConnectionState.FIRSTFLIGHT

    @property
    def address_proven(self) -> bool:
        """Whether the peer has shown that it receives where it says it is (RFC 9000 §8.1)."""
        paths = self._quic._network_paths
        return bool(paths) and bool(paths[0].is_validated)

    @property
    def established(self) -> bool:
        """Both sides are proven, accepted, and know it of each other (RFC 9001 §4.1.2)."""
        context = self._quic.context
        return self._quic._handshake_confirmed and context is not None and context.proven

    @property
    def verified(self) -> object:
        """What the certificate check returned."""
        return self._quic.context.verified if self._quic.context is not None else None

    @property
    def rejection(self) -> PeerRejected | None:
        """Why we refused the peer, if we did."""
        return self._quic.context.failure if self._quic.context is not None else None

    @property
    def remote_address(self) -> Address | None:
        """Where the peer was heard last."""
        address: Address | None = self._quic.get_peer_address()
        return address

    @property
    def peer_reset_token(self) -> bytes:
        """By what the peer would disown the connection after a restart; empty while unknown."""
        token: bytes | None = self._quic._peer_cid.stateless_reset_token
        return token or b""

    def connect(self, address: Address, now: float) -> None:
        """Start a client's handshake."""
        self._quic.connect(address, now=now)

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """Take in one datagram. Raises CoreFault if the core cannot go on."""
        if self._quic._close_event is not None:
            return
        try:
            self._quic.receive_datagram(data, address, now=now)
        except Exception as exc:
            raise CoreFault(f"a datagram from {address} broke the connection: {exc!r}") from exc

    def timer(self, now: float) -> None:
        """To be called when ``next_timeout`` has come."""
        try:
            self._quic.handle_timer(now=now)
        except Exception as exc:
            raise CoreFault(f"the connection's timer broke it: {exc!r}") from exc

    def next_timeout(self) -> float | None:
        """When to call ``timer`` and ``datagrams``, if nothing happens before."""
        return self._quic.get_timer() if self._quic._close_at is not None else None

    @property
    def is_calm(self) -> bool:
        """See the protocol."""
        return self._quic.is_calm

    def datagrams(self, now: float) -> list[Datagram]:
        """What is to be sent now; best asked for once a batch."""
        if not self._quic._network_paths:
            return []
        self._free_streams()
        try:
            return self._quic.datagrams_to_send(now=now)
        except Exception as exc:
            raise CoreFault(f"the connection cannot send: {exc!r}") from exc

    def wants_to_send(self, now: float) -> bool:
        """Whether ``datagrams`` is worth a call before ``next_timeout``."""
        if self._quic.discarded:
            self._free_streams()
        return bool(self._quic._network_paths) and self._quic.wants_to_send(now)

    @property
    def has_news(self) -> bool:
        """Whether streams have something to say to the peer."""
        return self._quic.has_news

    @property
    def has_events(self) -> bool:
        """Whether ``events`` has any."""
        return bool(self._quic.inbox)

    def events(self) -> Iterator[Event]:
        """What has happened since the last call."""
        inbox = self._quic.inbox
        while inbox:
            event = inbox.popleft()
            if type(event) is Data:
                if self._arrived(event.stream_id):
                    yield event
                continue
            match event:
                case aioquic_events.StreamReset(error_code=code, stream_id=stream_id):
                    if self._arrived(stream_id):
                        self.drain(stream_id)
                        yield Reset(stream_id, code)
                case aioquic_events.StopSendingReceived(error_code=code, stream_id=stream_id):
                    self._account(stream_id)
                    yield Stopped(stream_id, code)
                case aioquic_events.ConnectionIdIssued(connection_id=cid):
                    yield CidIssued(cid)
                case aioquic_events.ConnectionIdRetired(connection_id=cid):
                    yield CidRetired(cid)

    def seek_reset_token(self) -> None:
        """See to it that the peer can disown the connection after a restart. Costs some frames: not for connections
        that live for milliseconds.
        """
        self._quic.seek_reset_token()

    def ping(self) -> None:
        """Make the peer answer."""
        self._quic.send_ping(0)

    def close(self, code: int, reason: str) -> None:
        """Close for the application's reasons; ``datagrams`` then has the farewell."""
        self._quic.close(error_code=code, reason_phrase=short_reason(reason))

    @property
    def termination(self) -> Termination | None:
        """How the connection ended, as soon as nothing more can be sent or received on it."""
        event = self._quic._close_event
        if event is None or self._quic._state not in _OVER:
            return None
        if self._quic._state is QuicConnectionState.CLOSING:
            by = "us"
        elif event.reason_phrase == "Idle timeout" and self._quic._state is QuicConnectionState.TERMINATED:
            by = "silence"
        else:
            by = "peer"
        return Termination(by, int(event.error_code), event.reason_phrase, event.frame_type is None)

    # -- streams

    def can_open(self) -> bool:
        """Whether a stream more is allowed by the peer's limit and by ours."""
        next_count = self._quic.get_next_available_stream_id() // 4 + 1
        return (
            next_count <= self._quic._remote_max_streams_bidi and self._own_streams < self._limits.max_streams
        )

    def open_stream(self) -> int:
        """A new bidirectional stream's id; the peer learns of it with its first byte, FIN or reset."""
        stream = self._quic.open_stream()
        stream_id = stream.stream_id or 0
        self._accounts[stream_id] = stream
        self._own_streams += 1
        return stream_id

    def buffered(self, stream_id: int) -> int:
        """Bytes of a stream that were written and not yet acknowledged."""
        sender = self._accounts[stream_id].sender
        return int(sender._buffer_stop - sender._buffer_start)

    def send(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        """Queue bytes of a stream whose sending side is open."""
        stream = self._accounts[stream_id]
        stream.sender.write(data, end_stream=fin)
        self._quic.activate(stream)

    def reset(self, stream_id: int, code: int) -> None:
        """Abandon our sending side of a stream; what was not yet delivered may be lost."""
        stream = self._accounts[stream_id]
        stream.sender.reset(code)
        if stream.sender.reset_pending:
            self._quic.activate(stream)

    def stop(self, stream_id: int, code: int) -> None:
        """Ask the peer to send no more on a stream, unless it has sent all."""
        stream = self._accounts[stream_id]
        if not stream.receiver.is_finished:
            stream.receiver.stop(code)
            self._quic.activate(stream)

    def consumed(self, stream_id: int, count: int) -> bool:
        """The application has read ``count`` bytes. Returns whether the peer is to be told of new credit."""
        stream = self._accounts[stream_id]
        stream.credited += count
        window = stream.window or self._first_window
        limit, news = stream.credited + window, False
        if limit - stream.max_stream_data_local >= window // 2 and not stream.receiver.is_finished:
            stream.max_stream_data_local = limit + self._widen(stream, window)
            self._quic.announce(stream)
            news = True
        return self._credit(count) or news

    def _widen(self, stream: LeanStream, window: int) -> int:
        """Double the window of a stream that is read, as far as there is to spare. Returns the difference."""
        more = min(window, self._limits.stream_window - window, self._spare)
        self._spare -= more
        stream.window = window + more
        return more

    def drain(self, stream_id: int) -> None:
        """Nobody will read this stream: credit what has come and what will come."""
        stream = self._accounts.get(stream_id)
        if stream is not None:
            stream.drained = True
            self._settle(stream)

    def let_go(self, stream_id: int) -> None:
        """The application is done with a stream; its slot is free when the wire is done with it, too."""
        stream = self._accounts.get(stream_id)
        if stream is not None:
            stream.drained = stream.let_go = True
            self._settle(stream)
            if stream_id not in self._quic._streams:
                self._free(stream_id, stream)

    def is_let_go(self, stream_id: int) -> bool:
        """Whether the application is done with a stream."""
        stream = self._accounts.get(stream_id)
        return stream is not None and stream.let_go

    # -- accounts

    def _account(self, stream_id: int) -> LeanStream:
        stream = self._accounts.get(stream_id)
        if stream is None:
            stream = self._accounts[stream_id] = cast(LeanStream, self._quic._streams[stream_id])
        return stream

    def _arrived(self, stream_id: int) -> bool:
        """Whether anybody is interested in news of a stream's receiving side."""
        stream = self._account(stream_id)
        if stream.drained:
            self._settle(stream)
        return not stream.drained

    def _settle(self, stream: LeanStream) -> None:
        received = stream.receiver.highest_offset
        if received != stream.credited:
            count, stream.credited = received - stream.credited, received
            self._credit(count)

    def _credit(self, count: int) -> bool:
        self._consumed += count
        limit = self._consumed + self._limits.connection_window
        if limit - self._quic._local_max_data.value < self._limits.connection_window // _TELL:
            return False
        self._quic._local_max_data.value = limit
        return True

    def _free_streams(self) -> None:
        """Give slots back of streams that are over on the wire, and that the application has let go of."""
        gone, self._quic.discarded = self._quic.discarded, []
        for stream_id in gone:
            stream = self._accounts.get(stream_id)
            if stream is not None and stream.let_go:
                self._free(stream_id, stream)

    def _free(self, stream_id: int, stream: LeanStream) -> None:
        del self._accounts[stream_id]
        if stream.window:
            self._spare += stream.window - self._first_window
        self._settle(stream)
        if stream_is_client_initiated(stream_id) == self._is_client:
            self._own_streams -= 1
        else:
            self._quic.allowed_streams += 1
