"""Streams on the hot path: aioquic's, with what :mod:`trio_quic.core` keeps of them, and shorter ways for the usual case.

The usual case is a message: written in one piece, sent in one frame, received in order, acknowledged as a whole.
"""

from aioquic.quic.packet import QuicStreamFrame
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.stream import QuicStream, QuicStreamSender

from .interface import Data

_ACKED = QuicDeliveryState.ACKED


class LeanStream(QuicStream):
    """One bidirectional stream. The attributes are the core's notes."""

    credited = 0
    """Received bytes that were credited back to the peer."""
    window = 0
    """How many bytes more than were credited the peer may send; 0: the first window still."""
    drained = False
    """Nobody reads any more: whatever arrives is credited at once."""
    let_go = False
    """The application is done with it."""


def take_in(stream: QuicStream, offset: int, data: bytes, fin: bool) -> Data | None:
    """What a STREAM frame brings that is new and in order, if anything. Raises aioquic's FinalSizeError."""
    receiver, end = stream.receiver, offset + len(data)
    if offset == receiver._buffer_start and data and receiver._final_size is None and not receiver._buffer:
        receiver._buffer_start = receiver.highest_offset = end
        if fin:
            receiver._final_size = end
            receiver.is_finished = True
        return Data(stream.stream_id or 0, data, fin)
    event = receiver.handle_frame(QuicStreamFrame(data, fin, offset))
    return None if event is None else Data(event.stream_id, event.data, event.end_stream)


def next_piece(sender: QuicStreamSender, room: int, allowed: int) -> tuple[bytes, int, bool] | None:
    """The (data, offset, fin) of a stream's next frame, or None if credit or data is missing."""
    pending = sender._pending
    if len(pending) == 1:
        piece = pending[0]
        start, stop = piece.start, piece.stop
        if stop <= allowed and stop - start <= room:
            pending.shift()
            if stop > sender.highest_offset:
                sender.highest_offset = stop
            fin = sender._buffer_fin == stop
            if fin:
                sender._pending_eof = False
            base = sender._buffer_start
            return bytes(sender._buffer[start - base : stop - base]), start, fin
    frame = sender.get_frame(room, allowed)
    return None if frame is None else (frame.data, frame.offset, frame.fin)


def on_delivery(
    sender: QuicStreamSender, delivery: QuicDeliveryState, start: int, stop: int, fin: bool
) -> None:
    """What became of a frame with these bytes."""
    if (
        delivery is _ACKED
        and start == sender._buffer_start
        and sender._reset_error_code is None
        and not len(sender._acked)
    ):
        # In order, as nearly always.
        sender._buffer_start = stop
        del sender._buffer[: stop - start]
        sender._acked_fin = sender._acked_fin or fin
        sender.is_finished = sender._acked_fin and stop == sender._buffer_fin
    else:
        sender.on_data_delivery(delivery, start, stop, fin)
