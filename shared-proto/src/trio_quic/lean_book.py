"""The book of :mod:`trio_quic.lean`'s streams: who has something to say, and what became of what was sent."""

from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from .hardened import HardenedConnection
from .interface import CoreConfig
from .lean_stream import LeanStream, on_delivery
from .path_size import PathSize
from .tls import CertificateCheck

_ACKED = QuicDeliveryState.ACKED


class LeanBook(HardenedConnection):
    """A hardened connection that knows which of its streams have something to say."""

    def __init__(
        self,
        config: CoreConfig,
        check: CertificateCheck,
        original_cid: bytes | None = None,
        retry_cid: bytes | None = None,
    ) -> None:
        super().__init__(config, check, original_cid, retry_cid)
        self.discarded: list[int] = []
        """Streams that are over on the wire since somebody last emptied this list."""
        self._waiting: dict[QuicStream, None] = {}
        self._held: dict[QuicStream, None] = {}
        self._limit_news: dict[QuicStream, None] = {}
        self._path_size = PathSize(config.limits.datagram_size, config.limits.largest_datagram)

    # aioquic's list of all streams that it walks: for ever empty, since nobody but us writes stream frames.
    @property
    def _streams_queue(self) -> list[QuicStream]:
        return []

    @_streams_queue.setter
    def _streams_queue(self, value: list[QuicStream]) -> None:
        pass

    # -- who has something to say

    @property
    def has_news(self) -> bool:
        """Whether there are stream frames or credit to send."""
        return bool(self._waiting or self._limit_news) or self._limits_are_news()

    def _limits_are_news(self) -> bool:
        data, streams = self._local_max_data, self._local_max_streams_bidi
        if data.value != data.sent:
            return True
        # In batches: when the peer has fewer streams left to open than it would be granted.
        return bool(streams.sent - streams.used < self.allowed_streams - streams.sent)

    def activate(self, stream: QuicStream) -> None:
        """A stream has something to say: data, an end, a reset or a wish to hear no more."""
        self._held.pop(stream, None)
        self._waiting[stream] = None

    def announce(self, stream: QuicStream) -> None:
        """A stream's receive limit was raised, and the peer is to know."""
        self._limit_news[stream] = None

    def open_stream(self) -> LeanStream:
        """A new stream of ours, which the peer's limit must allow. Without aioquic's log line for each."""
        stream_id = self._local_next_stream_id_bidi
        self._local_next_stream_id_bidi = stream_id + 4
        stream = self._streams[stream_id] = LeanStream(
            stream_id, self._local_max_stream_data_bidi_local, self._remote_max_stream_data_bidi_remote
        )
        return stream

    # -- what became of it

    def _on_data_delivery(
        self, delivery: QuicDeliveryState, stream: QuicStream, start: int, stop: int, fin: bool
    ) -> None:
        sender = stream.sender
        on_delivery(sender, delivery, start, stop, fin)
        if stop - start >= self._path_size.base and self._path_size.on_data(delivery is _ACKED):
            self.resize()
        if sender.is_finished:
            self._discard_if_over(stream)
        elif delivery is not _ACKED and not sender.buffer_is_empty:
            self.activate(stream)

    def _on_reset_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        stream.sender.on_reset_delivery(delivery)
        if delivery is _ACKED:
            self._discard_if_over(stream)
        else:
            self.activate(stream)

    def _on_stop_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        stream.receiver.on_stop_sending_delivery(delivery)
        if stream.receiver.stop_pending:
            self.activate(stream)

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        super()._on_max_stream_data_delivery(delivery, stream)
        if delivery is not _ACKED:
            self.announce(stream)

    def _discard_if_over(self, stream: QuicStream) -> None:
        if stream.sender.is_finished and stream.receiver.is_finished:
            stream_id = stream.stream_id or 0
            if self._streams.pop(stream_id, None) is not None:
                self.discarded.append(stream_id)
            self._waiting.pop(stream, None)
            self._held.pop(stream, None)

    def resize(self) -> None:
        """Send datagrams of the size that the path takes, from now on."""
        raise NotImplementedError

    # -- aioquic writes nothing about streams and credit

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        pass

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        pass
