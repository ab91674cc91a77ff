"""The sending half of :mod:`trio_quic.lean`: what is due, and packets of it."""

from typing import Any

from aioquic._buffer import Buffer
from aioquic.quic.connection import QuicConnectionState, QuicNetworkPath
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicFrameType,
    QuicPacketType,
    push_ack_frame,
)
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch

from .interface import CoreConfig
from .lean_book import LeanBook
from .lean_stream import next_piece
from .recovery import LeanRecovery
from .tls import CertificateCheck

_HEADER_ROOM = (
    1 + 2
)  # first byte, packet number, and the peer's connection id between them (RFC 9000 §17.3.1)
_TAG = 16
_FIXED_BIT = 0x40

# Room that the largest frame of a kind may take, its type included: variable-length integers of 8 bytes.
_ROOM_ACK = 1 + 4 * 8
_ROOM_LIMIT = 1 + 8
_ROOM_STREAM_LIMIT = 1 + 2 * 8
_ROOM_RESET = 1 + 3 * 8
_ROOM_STOP = 1 + 2 * 8
_ROOM_STREAM = 1 + 2 * 8 + 2

# As plain numbers and names, since looking members of an enumeration up costs time.
_ACKED = QuicDeliveryState.ACKED
_ONE_RTT = Epoch.ONE_RTT
_ONE_RTT_PACKET = QuicPacketType.ONE_RTT
_CONNECTED = QuicConnectionState.CONNECTED
_PING = int(QuicFrameType.PING)
_ACK = int(QuicFrameType.ACK)
_MAX_STREAM_DATA = int(QuicFrameType.MAX_STREAM_DATA)
_STREAM = int(QuicFrameType.STREAM_BASE)
_STREAM_FIN, _STREAM_LENGTH, _STREAM_OFFSET = 1, 2, 4

Datagram = tuple[bytes, Any]


def _size(value: int) -> int:
    """Bytes of a variable-length integer (RFC 9000 §16)."""
    return 1 if value < 0x40 else 2 if value < 0x4000 else 4 if value < 0x40000000 else 8


Handler = tuple[Any, tuple[Any, ...]]


class LeanSender(LeanBook):
    """A hardened connection that sends its everyday packets by a shorter way."""

    def __init__(
        self,
        config: CoreConfig,
        check: CertificateCheck,
        original_cid: bytes | None = None,
        retry_cid: bytes | None = None,
    ) -> None:
        super().__init__(config, check, original_cid, retry_cid)
        self._loss: LeanRecovery = LeanRecovery(
            initial_rtt=self._configuration.initial_rtt,
            max_datagram_size=self._max_datagram_size,
            peer_completed_address_validation=not self._is_client,
            send_probe=self._send_probe,
            logger=self._logger,
        )
        self._unacknowledged = 0
        self._cid_news = True
        self._was_quiet = False
        self._idle_limit = 0.0
        self._out = Buffer(max(self._max_datagram_size, config.limits.largest_datagram))
        self._sized_for: Any = None
        self._pair: CryptoPair | None = None
        self._space: QuicPacketSpace | None = None

    # -- what is to be sent

    @property
    def is_quiet(self) -> bool:
        """Whether there is nothing to say that only aioquic's own code can."""
        path = self._network_paths[0]
        return (
            self._handshake_confirmed
            and path.is_validated
            and self._state is _CONNECTED
            and not (
                self._close_pending
                or self._ping_pending
                or self._probe_pending
                or self._handshake_done_pending
                or self._retire_connection_ids
                or path.remote_challenges
                or (len(self._network_paths) > 1 and self._other_paths_want_something())
            )
            and self._crypto_streams[_ONE_RTT].sender.buffer_is_empty
            and not self._cid_news
        )

    def _other_paths_want_something(self) -> bool:
        return any(
            path.remote_challenges or not (path.is_validated or path.local_challenge_sent)
            for path in self._network_paths[1:]
        )

    def wants_to_send(self, now: float) -> bool:
        """Whether what was received has made ``datagrams_to_send`` worth a call.

        Everyday packets cannot end the quiet: it is looked for again where aioquic's own code took something in.
        """
        if self.has_news or not (self._was_quiet or self.is_quiet):
            return True
        ack_at = (self._space or self._application()).ack_at
        return ack_at is not None and ack_at <= now

    def datagrams_to_send(self, now: float) -> list[Datagram]:
        """As in aioquic: what is due, and what the congestion window lets through."""
        out: list[Datagram] = []
        if self._network_paths[0].addr != self._sized_for:
            self._sized_for = self._network_paths[0].addr
            self._path_size.restart()
            self.resize()
        self._was_quiet = self.is_quiet
        if not self._was_quiet:
            out = super().datagrams_to_send(now=now)
            self._cid_news = not all(cid.was_sent for cid in self._host_cids)
        path = self._network_paths[0]
        if path.is_validated and self._handshake_confirmed and self._state is _CONNECTED:
            self._add_everyday(out, path.addr, now)
            if size := self._path_size.probe():
                out.append((self._size_probe(size, now), path.addr))
        return out

    def _add_everyday(self, out: list[Datagram], address: Any, now: float) -> None:
        """Packets of what is due, as many as pacing and the congestion window let through."""
        space, loss = self._space or self._application(), self._loss
        self._pacing_at = None
        news = self.has_news
        while True:
            ack_due = space.ack_at is not None and space.ack_at <= now
            if not ack_due:
                if not news:
                    break
                self._pacing_at = loss._pacer.next_send_time(now)
                if self._pacing_at is not None:
                    break
            datagram = self._build(space, ack_due, now)
            if datagram is not None:
                out.append((datagram, address))
            news = self.has_news
            if datagram is None or not news:
                break
        loss.control.pressed = news

    @property
    def is_calm(self) -> bool:
        """No timer can be near: acknowledgements wait for ACK_DELAY, probes for longer than the peer's may (25 ms), and
        neither a lost packet nor the pace waits for its time.
        """
        return (
            self._was_quiet
            and self._pacing_at is None
            and self._state is _CONNECTED
            and (self._space or self._application()).loss_time is None
        )

    def get_timer(self) -> float | None:
        """As in aioquic, for a quiet connection with a single look at each of its timers."""
        if (
            not self._handshake_confirmed
            or not self._network_paths[0].is_validated
            or self._state is not _CONNECTED
        ):
            timer: float | None = super().get_timer()
            return timer
        space, loss, due = self._space or self._application(), self._loss, self._close_at
        assert due is not None
        self._loss_at = space.loss_time
        if self._loss_at is None and space.ack_eliciting_in_flight:
            backoff = (loss.probe_timeout or loss.get_probe_timeout()) * (1 << loss._pto_count)
            self._loss_at = loss._time_of_last_sent_ack_eliciting_packet + backoff
        if self._loss_at is not None and self._loss_at < due:
            due = self._loss_at
        if space.ack_at is not None and space.ack_at < due:
            due = space.ack_at
        if self._pacing_at is not None and self._pacing_at < due:
            due = self._pacing_at
        return due

    def _idle_timeout(self) -> float:
        """As in aioquic (RFC 9000 §10.1), with the smaller of both sides' values taken once."""
        if not self._handshake_confirmed:
            before: float = super()._idle_timeout()
            return before
        if not self._idle_limit:
            ours, theirs = self._configuration.idle_timeout, self._remote_max_idle_timeout
            self._idle_limit = ours if theirs is None else min(ours, theirs)
        probes = 3 * (self._loss.probe_timeout or self._loss.get_probe_timeout())
        return self._idle_limit if self._idle_limit > probes else probes

    # -- building packets

    def _application(self) -> QuicPacketSpace:
        if self._space is None:
            self._space, self._pair = self._spaces[_ONE_RTT], self._cryptos[_ONE_RTT]
        return self._space

    def _build(self, space: QuicPacketSpace, ack_due: bool, now: float) -> bytes | None:
        buf, handlers = self._out, list[Handler]()
        header = _HEADER_ROOM + len(self._peer_cid.cid)
        buf.seek(header)
        if space.ack_at is not None:
            self._put_ack(buf, space, handlers, now)
        control, end = self._loss.control, self._max_datagram_size
        flight = control.congestion_window - control.bytes_in_flight
        eliciting = self._put_frames(buf, (end if end < flight else flight) - _TAG, handlers)
        if not (eliciting or ack_due):
            return None  # an acknowledgement waits for something to ride on
        if space.ack_at is not None:
            space.ack_at = None
            self._unacknowledged = 0
            if not eliciting and len(space.ack_queue) > 1 and self._packet_number % 8 == 0:
                buf.push_uint_var(_PING)  # have acknowledgements acknowledged, so that we can forget them
                eliciting = True
        return self._seal(buf, header, handlers, eliciting, now)

    def _size_probe(self, size: int, now: float) -> bytes:
        """A packet that makes a datagram of this size."""
        buf, header = self._out, _HEADER_ROOM + len(self._peer_cid.cid)
        buf.seek(header)
        buf.push_uint_var(_PING)
        buf.push_bytes(bytes(size - _TAG - buf.tell()))
        return self._seal(buf, header, [(self._on_size_probe, (size,))], True, now, in_flight=False)

    def _on_size_probe(self, delivery: QuicDeliveryState, size: int) -> None:
        self._path_size.on_probe(size, delivery is _ACKED)
        self.resize()

    def resize(self) -> None:
        """Send datagrams of the size that the path takes."""
        if self._max_datagram_size != self._path_size.size:
            self._max_datagram_size = self._path_size.size
            self._loss.resize(self._max_datagram_size)

    def _send_probing_frames(self, network_path: QuicNetworkPath, now: float) -> list[Datagram]:
        """As in aioquic: on another path, so with what every path takes."""
        size, self._max_datagram_size = self._max_datagram_size, self._path_size.base
        try:
            probes: list[Datagram] = super()._send_probing_frames(network_path=network_path, now=now)
        finally:
            self._max_datagram_size = size
        return probes

    def _put_frames(self, buf: Buffer, end: int, handlers: list[Handler]) -> bool:
        """Fill a packet up to ``end``. Returns whether there was anything."""
        start = buf.tell()
        if end - start >= _ROOM_STREAM_LIMIT:
            self.hold_stream_limit()
            if self._limit_news or self._limits_are_news():
                self._put_limits(buf, end, handlers)
            if self._waiting:
                self._put_streams(buf, end, handlers)
        return buf.tell() > start

    def _put_ack(self, buf: Buffer, space: QuicPacketSpace, handlers: list[Handler], now: float) -> None:
        delay = (
            int((now - (space.largest_received_time or now)) * 1_000_000) >> self._local_ack_delay_exponent
        )
        push, ranges = buf.push_uint_var, space.ack_queue
        push(_ACK)
        if len(ranges) == 1:
            only = ranges[0]
            newest = only.stop - 1
            push(newest)
            push(delay)
            push(0)
            push(newest - only.start)
        else:
            push_ack_frame(buf, ranges, delay, buf.capacity - buf.tell() - _TAG)
        handlers.append((self._on_ack_delivery, (space, space.largest_received_packet)))

    def _put_limits(self, buf: Buffer, end: int, handlers: list[Handler]) -> None:
        if self._limits_are_news():
            for limit in (self._local_max_data, self._local_max_streams_bidi):
                if limit.value != limit.sent and end - buf.tell() >= _ROOM_LIMIT:
                    buf.push_uint_var(limit.frame_type)
                    buf.push_uint_var(limit.value)
                    limit.sent = limit.value
                    handlers.append((self._on_connection_limit_delivery, (limit,)))
        while self._limit_news and end - buf.tell() >= _ROOM_STREAM_LIMIT:
            stream, _ = self._limit_news.popitem()
            if stream.max_stream_data_local_sent != stream.max_stream_data_local:
                if stream.receiver.is_finished:
                    continue
                buf.push_uint_var(_MAX_STREAM_DATA)
                buf.push_uint_var(stream.stream_id or 0)
                buf.push_uint_var(stream.max_stream_data_local)
                stream.max_stream_data_local_sent = stream.max_stream_data_local
                handlers.append((self._on_max_stream_data_delivery, (stream,)))

    def _put_streams(self, buf: Buffer, end: int, handlers: list[Handler]) -> None:
        waiting = self._waiting
        for stream in tuple(waiting):
            if end - buf.tell() < _ROOM_RESET + _ROOM_STOP:
                return
            del waiting[stream]
            if stream.receiver.stop_pending:
                self._put_stop(buf, stream, handlers)
            if stream.sender.reset_pending:
                self._put_reset(buf, stream, handlers)
            elif not stream.sender.buffer_is_empty:
                self._put_data(buf, end, stream, handlers)

    def _put_stop(self, buf: Buffer, stream: QuicStream, handlers: list[Handler]) -> None:
        frame = stream.receiver.get_stop_frame()
        for value in (QuicFrameType.STOP_SENDING, frame.stream_id, frame.error_code):
            buf.push_uint_var(value)
        handlers.append((self._on_stop_delivery, (stream,)))

    def _put_reset(self, buf: Buffer, stream: QuicStream, handlers: list[Handler]) -> None:
        frame = stream.sender.get_reset_frame()
        for value in (QuicFrameType.RESET_STREAM, frame.stream_id, frame.error_code, frame.final_size):
            buf.push_uint_var(value)
        handlers.append((self._on_reset_delivery, (stream,)))

    def _put_data(self, buf: Buffer, end: int, stream: QuicStream, handlers: list[Handler]) -> None:
        """One STREAM frame, if credit allows; what is left waits for its next turn, or for credit."""
        sender, stream_id = stream.sender, stream.stream_id or 0
        highest, pending = sender.highest_offset, sender._pending
        allowed = highest + self._remote_max_data - self._remote_max_data_used
        if stream.max_stream_data_remote < allowed:
            allowed = stream.max_stream_data_remote
        offset = pending[0].start if len(pending) else sender._buffer_stop
        overhead = 3 + _size(stream_id) + (_size(offset) if offset else 0)
        frame = next_piece(sender, end - buf.tell() - overhead, allowed)
        if frame is None:
            if not sender.buffer_is_empty:
                self._held[stream] = None
            return
        data, offset, fin = frame
        size = len(data)
        buf.push_uint8(
            _STREAM | _STREAM_LENGTH | (_STREAM_OFFSET if offset else 0) | (_STREAM_FIN if fin else 0)
        )
        buf.push_uint_var(stream_id)
        if offset:
            buf.push_uint_var(offset)
        buf.push_uint16(size | 0x4000)
        buf.push_bytes(data)
        self._remote_max_data_used += sender.highest_offset - highest
        handlers.append((self._on_data_delivery, (stream, offset, offset + size, fin)))
        if len(pending) or sender._pending_eof:
            self._waiting[stream] = None
        else:
            sender.buffer_is_empty = True

    def _seal(
        self,
        buf: Buffer,
        header: int,
        handlers: list[Handler],
        eliciting: bool,
        now: float,
        *,
        in_flight: bool = True,
    ) -> bytes:
        """Encrypt the packet in ``buf``, and account for it."""
        number, space = self._packet_number, self._space or self._application()
        stop = buf.tell()
        if stop < header + 2:
            buf.push_bytes(bytes(header + 2 - stop))
            stop = header + 2
        datagram = self._encrypt(buf.data_slice(header, stop), number)
        size = len(datagram)
        self._packet_number = number + 1
        self._loss.note_sent(
            QuicSentPacket(
                _ONE_RTT,
                eliciting and in_flight,
                eliciting,
                False,
                number,
                _ONE_RTT_PACKET,
                now,
                size,
                handlers,
            ),
            space,
        )
        if eliciting and not self._ack_eliciting_sent_since_receipt:
            self._close_at = now + self._idle_timeout()
            self._ack_eliciting_sent_since_receipt = True
        self._network_paths[0].bytes_sent += size
        if size + _ROOM_STREAM > self._max_datagram_size:
            self._path_size.on_full()
        return datagram

    def _encrypt(self, payload: bytes, number: int) -> bytes:
        """A whole packet of this payload, with a packet number of two bytes (RFC 9001 §5)."""
        pair = self._pair
        assert pair is not None
        cid, keys = self._peer_cid.cid, pair.send
        first = _FIXED_BIT | (self._spin_bit << 5) | (pair.key_phase << 2) | 1
        low = number & 0xFFFF
        header = b"%c%b%b" % (first, cid, low.to_bytes(2, "big"))
        if pair._update_key_requested or (aead := keys.aead) is None or keys.hp is None:
            return pair.encrypt_packet(header, payload, number)
        sealed = aead._aead.encrypt((aead._iv ^ number).to_bytes(12, "big"), payload, header)
        mask = int.from_bytes(keys.hp._mask(sealed[2:18])[:3], "big")
        masked = (low ^ mask & 0xFFFF).to_bytes(2, "big")
        return b"%c%b%b%b" % (first ^ (mask >> 16 & 0x1F), cid, masked, sealed)

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        self._cid_news = True  # those that get lost are told again with the next ping or probe
