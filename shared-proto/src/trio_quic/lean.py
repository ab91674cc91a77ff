"""The hot path of a connection: 1-RTT packets of a confirmed connection, without what they do not need.

aioquic walks every open stream on every call that asks for datagrams, builds packets through a dozen calls and
acknowledges each packet on its own after a millisecond. :class:`LeanConnection` takes over while a connection
is *quiet*: confirmed, on one validated path, with nothing to say but stream data, credit and acknowledgements.
Whatever else there is (handshakes, path changes, new connection ids, probes, farewells) goes through aioquic's
own code first.

- A stream is looked at when it has something to say: it is in ``_waiting``, or in ``_held`` while the peer's
  credit holds it back. Streams take turns, one frame each (RFC 9000 §2.3 leaves the order to us).
- Acknowledgements ride on what is sent anyway; alone they go after two packets (RFC 9000 §13.2.2), after one out
  of order (§13.2.1), or after ACK_DELAY.
- A finished stream is dropped at once, and its id reported in ``discarded``.
- All frames about streams and credit are written here and nowhere else; so limits are told only when the rules
  of :mod:`trio_quic.core` say so.

Only :mod:`trio_quic.core` uses this. The overridden methods are private ones of the pinned aioquic; each has a
test in ``tests/trio_quic`` that fails without it.
"""

from collections import deque
from typing import Any

from aioquic._buffer import Buffer, BufferReadError
from aioquic._crypto import CryptoError
from aioquic.quic.connection import (
    QuicConnectionError,
    QuicConnectionState,
    QuicReceiveContext,
)
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    decode_packet_number,
)
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from aioquic.quic.stream import FinalSizeError, QuicStream, StreamFinishedError
from aioquic.tls import Epoch
from cryptography.exceptions import InvalidTag

from .hardened import MAX_GAPS
from .interface import CALM, CID_LENGTH, CoreConfig
from .lean_send import LeanSender
from .lean_stream import LeanStream, take_in
from .tls import CertificateCheck

# How long an acknowledgement may wait for company, in seconds. Peers reckon with 25 ms (RFC 9000 §18.2,
# max_ack_delay), the timer's lateness included.
ACK_DELAY = CALM

# Packets that make one acknowledgement (RFC 9000 §13.2.2).
ACK_EVERY = 2

_NUMBER_AT = 1 + CID_LENGTH
_SMALLEST = 1 + CID_LENGTH + 4 + 16  # a sample fits (RFC 9001 §5.4.2)
_RESERVED_BITS = 0x18
_KEY_PHASE = 0x04
_LONG_HEADER = 0x80

# As plain numbers and names, since looking members of an enumeration up costs time.
_ONE_RTT = Epoch.ONE_RTT
_CONNECTED = QuicConnectionState.CONNECTED
_ACK = int(QuicFrameType.ACK)
_STREAM = int(QuicFrameType.STREAM_BASE)
_STREAM_FIN, _STREAM_LENGTH, _STREAM_OFFSET = 1, 2, 4


class LeanConnection(LeanSender):
    """A hardened connection that sends and receives its everyday packets by a shorter way."""

    def __init__(
        self,
        config: CoreConfig,
        check: CertificateCheck,
        original_cid: bytes | None = None,
        retry_cid: bytes | None = None,
    ) -> None:
        super().__init__(config, check, original_cid, retry_cid)
        self._everyday_cid = self.host_cid
        self._context: QuicReceiveContext | None = None
        self.inbox: deque[Any] = self._events
        """What has happened: aioquic's events, and :class:`~trio_quic.interface.Data` in place of its own."""

    # -- receiving

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        """As in aioquic; the everyday packet by a shorter way."""
        if (
            self._handshake_confirmed
            and len(data) >= _SMALLEST
            and not data[0] & _LONG_HEADER
            and data[1 : 1 + CID_LENGTH] == self._everyday_cid
            and self._network_paths[0].addr == addr
            and self._network_paths[0].is_validated
            and self._state is _CONNECTED
        ):
            self._receive_everyday(data, now)
        else:
            self._was_quiet = False
            super().receive_datagram(data, addr, now)
            self._note_cid(data)

    def _note_cid(self, data: bytes) -> None:
        """Where the peer's packets are addressed to from now on. A server leaves it to aioquic, which takes a change
        for a migration.
        """
        if not self._is_client:
            self._everyday_cid = self.host_cid
        elif self._handshake_confirmed and not data[0] & _LONG_HEADER:
            cid = data[1 : 1 + CID_LENGTH]
            if any(known.cid == cid for known in self._host_cids):
                self._everyday_cid = cid

    def _receive_everyday(self, data: bytes, now: float) -> None:
        space = self._space or self._application()
        try:
            first, payload, number = self._decrypt(data, space.expected_packet_number)
        except CryptoError:
            return
        if number in space.received_packets:
            return
        if first & _RESERVED_BITS:
            self.close(QuicErrorCode.PROTOCOL_VIOLATION, QuicFrameType.PADDING, "Reserved bits must be zero")
            return
        in_order = number == space.largest_received_packet + 1
        if number > space.expected_packet_number:
            space.expected_packet_number = number + 1
        try:
            eliciting = self._take_frames(self._everyday_context(now), payload)
        except QuicConnectionError as exc:
            self.close(exc.error_code, exc.frame_type, exc.reason_phrase)
        if self._close_pending or self._state is not _CONNECTED:
            return
        self._close_at = now + self._idle_timeout()
        self._ack_eliciting_sent_since_receipt = False
        if number > space.largest_received_packet:
            space.largest_received_packet, space.largest_received_time = number, now
        space.ack_queue.add(number)
        space.received_packets.add(number)
        if not in_order and len(space.ack_queue) > MAX_ACK_RANGES:
            space.ack_queue.shift()
        if eliciting:
            self._plan_acknowledgement(space, in_order, now)

    def _decrypt(self, data: bytes, expected: int) -> tuple[int, bytes, int]:
        """The (first byte, payload, number) of a packet (RFC 9001 §5). Raises CryptoError."""
        pair = self._pair
        assert pair is not None
        keys = pair.recv
        assert keys.hp is not None and keys.aead is not None
        mask = keys.hp._mask(data[_NUMBER_AT + 4 : _NUMBER_AT + 20])
        first = data[0] ^ (mask[0] & 0x1F)
        if (first & _KEY_PHASE) >> 2 != keys.key_phase:
            header, payload, number = pair.decrypt_packet(data, _NUMBER_AT, expected)
            return header[0], payload, number
        length = (first & 3) + 1
        end = _NUMBER_AT + length
        truncated = int.from_bytes(data[_NUMBER_AT:end], "big") ^ int.from_bytes(mask[1 : 1 + length], "big")
        number = decode_packet_number(truncated, length * 8, expected)
        header = b"%c%b%b" % (first, data[1:_NUMBER_AT], truncated.to_bytes(length, "big"))
        nonce = (keys.aead._iv ^ number).to_bytes(12, "big")
        try:
            return first, keys.aead._aead.decrypt(nonce, data[end:], header), number
        except InvalidTag as exc:
            raise CryptoError(str(exc)) from exc

    def _take_frames(self, context: QuicReceiveContext, payload: bytes) -> bool:
        """Handle a packet's frames up to the first that is not of the everyday kinds; aioquic does the rest.
        Returns whether the packet is to be acknowledged.
        """
        buf, size, start, eliciting = Buffer(data=payload), len(payload), 0, False
        try:
            while start < size:
                kind = payload[start]
                if kind & 0xF8 == _STREAM:
                    buf.seek(start + 1)
                    eliciting = True
                    self._handle_stream_frame(context, kind, buf)
                elif kind == _ACK:
                    buf.seek(start + 1)
                    self._take_ack(context, buf)
                else:
                    self._was_quiet = False
                    rest, _ = self._payload_received(context, payload[start:])
                    return eliciting or rest
                start = buf.tell()
        except BufferReadError as exc:
            raise QuicConnectionError(
                QuicErrorCode.FRAME_ENCODING_ERROR, kind, "a frame ends before its time"
            ) from exc
        if not size:
            raise QuicConnectionError(QuicErrorCode.PROTOCOL_VIOLATION, 0, "a packet without frames")
        return eliciting

    def _take_ack(self, context: QuicReceiveContext, buf: Buffer) -> None:
        """An ACK frame without ECN counts, from behind its type (RFC 9000 §19.3)."""
        start, loss = buf.tell(), self._loss
        newest, delay = buf.pull_uint_var(), buf.pull_uint_var()
        gaps, more = buf.pull_uint_var(), buf.pull_uint_var()
        seconds = (delay << self._remote_ack_delay_exponent) / 1_000_000
        if (
            gaps
            or more > newest
            or not loss.on_newest_acked(newest - more, newest, seconds, context.time, self._application())
        ):
            buf.seek(start)
            self._handle_ack_frame(context, _ACK, buf)
        loss.peer_completed_address_validation = True

    def _everyday_context(self, now: float) -> QuicReceiveContext:
        context, path = self._context, self._network_paths[0]
        if context is None or context.network_path is not path or context.host_cid != self._everyday_cid:
            context = self._context = QuicReceiveContext(
                _ONE_RTT, self._everyday_cid, path, None, now, self._version
            )
        context.time = now
        return context

    def _plan_acknowledgement(self, space: QuicPacketSpace, in_order: bool, now: float) -> None:
        self._unacknowledged += 1
        if self._unacknowledged >= ACK_EVERY or not in_order:
            space.ack_at = now
        elif space.ack_at is None:
            space.ack_at = now + ACK_DELAY

    # -- frames that change what can be sent, or who is done

    def _stream_of(self, buf: Buffer) -> QuicStream | None:
        """The stream that the frame in ``buf`` is about, if it is there already."""
        start = buf.tell()
        stream: QuicStream | None = self._streams.get(buf.pull_uint_var())
        buf.seek(start)
        return stream

    def _handle_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        stream_id = buf.pull_uint_var()
        offset = buf.pull_uint_var() if frame_type & _STREAM_OFFSET else 0
        length = buf.pull_uint_var() if frame_type & _STREAM_LENGTH else buf.capacity - buf.tell()
        data = buf.pull_bytes(length)
        stream = self._streams.get(stream_id)
        if stream is None:
            try:
                self._assert_stream_can_receive(frame_type, stream_id)
                stream = self._get_or_create_stream(frame_type, stream_id)
            except StreamFinishedError:
                return
        self._take_data(stream, frame_type, offset, data)
        if stream.receiver.is_finished:
            self._discard_if_over(stream)

    def _get_or_create_stream(self, frame_type: int, stream_id: int) -> QuicStream:
        """As in aioquic; streams that the peer may open now are made here, without a log line for each."""
        limit, number = self._local_max_streams_bidi, stream_id >> 2
        if stream_id & 3 != self._is_client or not limit.used <= number < limit.value:
            return super()._get_or_create_stream(frame_type, stream_id)
        for each in range(limit.used, number + 1):  # all before it are open as well (RFC 9000 §2.1)
            stream = self._streams[each << 2 | self._is_client] = LeanStream(
                each << 2 | self._is_client,
                self._local_max_stream_data_bidi_remote,
                self._remote_max_stream_data_bidi_local,
            )
        limit.used = number + 1
        return stream

    def _take_data(self, stream: QuicStream, frame_type: int, offset: int, data: bytes) -> None:
        """A STREAM frame of a stream that is there (RFC 9000 §19.8)."""
        receiver, limit = stream.receiver, self._local_max_data
        end, used = offset + len(data), limit.used
        if end > receiver.highest_offset:
            used += end - receiver.highest_offset
        if end > stream.max_stream_data_local or used > limit.value:
            raise QuicConnectionError(
                QuicErrorCode.FLOW_CONTROL_ERROR, frame_type, "more stream data than the limit allows"
            )
        try:
            event = take_in(stream, offset, data, bool(frame_type & _STREAM_FIN))
        except FinalSizeError as exc:
            raise QuicConnectionError(QuicErrorCode.FINAL_SIZE_ERROR, frame_type, str(exc)) from exc
        if event is not None:
            self.inbox.append(event)
        limit.used = used
        if receiver._buffer and len(receiver._ranges) > MAX_GAPS:
            raise QuicConnectionError(
                QuicErrorCode.INTERNAL_ERROR, frame_type, "too many gaps in a stream's data"
            )

    def _handle_reset_stream_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        stream = self._stream_of(buf)
        super()._handle_reset_stream_frame(context, frame_type, buf)
        if stream is not None:
            self._discard_if_over(stream)

    def _handle_stop_sending_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        start = buf.tell()
        super()._handle_stop_sending_frame(context, frame_type, buf)
        end = buf.tell()
        buf.seek(start)
        stream = self._stream_of(buf)
        buf.seek(end)
        if stream is not None and stream.sender.reset_pending:
            self.activate(stream)

    def _handle_max_data_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        super()._handle_max_data_frame(context, frame_type, buf)
        self._waiting.update(self._held)
        self._held.clear()

    def _handle_max_stream_data_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        stream = self._stream_of(buf)
        super()._handle_max_stream_data_frame(context, frame_type, buf)
        if stream in self._held:
            self.activate(stream)
