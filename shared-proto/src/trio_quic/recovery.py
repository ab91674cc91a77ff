"""Loss recovery and congestion control: aioquic's, with a shorter way for the acknowledgement without gaps.

Only :mod:`trio_quic.lean` uses this. Besides being shorter, that way tells the congestion control the round-trip
time *without* the delay that the peer put into its acknowledgement: aioquic passes on the raw time, and its slow
start would end early on connections whose acknowledgements wait for company (HyStart takes growing times for a
queue; RFC 9406 §4.2).

Pacing reckons with a timer that is late by a millisecond: aioquic's saves up for 16 datagrams at most, which is less
than a fast path takes in that time, and so a fast path's rate would be what the timer makes it.
"""

from typing import Any

from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketPacer, QuicPacketRecovery, QuicPacketSpace

# The least round-trip time that is reckoned with, in seconds: aioquic's choice (kGranularity, RFC 9002 §6.1.2).
_LEAST_RTT = 0.001

# How late a timer may be, in seconds: epoll counts in milliseconds, and rounds up; twice that, for the tasks before us.
_LATENESS = 0.002
# Bytes that may leave at once for it. In the kernel's usual receive buffer (room for 425,984 bytes, where a datagram of 1200
# bytes takes up 2304) they fit.
_LARGEST_BURST = 128 * 1024
# Of a datagram's time, what rounding may take away.
_ROUNDING = 1e-7


class LeanPacer(QuicPacketPacer):
    """Spreads datagrams over the round trip (RFC 9002 §7.7), with bursts that make up for a late timer."""

    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]  # aioquic's own says None, too
        """None: now. Whole datagrams are saved up for: aioquic lets one go that has been saved up for in part."""
        if self.packet_time is None:
            return None
        self.update_bucket(now=now)
        missing = self.packet_time - self.bucket_time
        return now + missing if missing > _ROUNDING else None

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """As in aioquic; what may be saved up is more where the path is fast."""
        super().update_rate(congestion_window=congestion_window, smoothed_rtt=smoothed_rtt)
        burst = _LARGEST_BURST // self._max_datagram_size * (self.packet_time or 0.0)
        self.bucket_max = max(self.bucket_max, min(_LATENESS, burst))


class LeanRecovery(QuicPacketRecovery):
    """aioquic's recovery for one connection."""

    def __init__(self, *, max_datagram_size: int, **options: Any) -> None:
        super().__init__(max_datagram_size=max_datagram_size, **options)
        self._pacer = LeanPacer(max_datagram_size=max_datagram_size)

    def resize(self, datagram_size: int) -> None:
        """Datagrams are of this size at most from now on."""
        for part in (self._pacer, self._cc):
            vars(part)["_max_datagram_size"] = datagram_size
        if self._rtt_initialized:
            self._pacer.update_rate(
                congestion_window=self._cc.congestion_window, smoothed_rtt=self._rtt_smoothed
            )

    _next_sample = float("-inf")
    probe_timeout = 0.0
    """``get_probe_timeout()`` as of the last sample; 0 before the first."""

    def on_ack_received(
        self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace
    ) -> None:
        """As in aioquic."""
        newest = ack_rangeset[-1]
        if not self.on_newest_acked(newest.start, newest.stop - 1, ack_delay, now, space):
            super().on_ack_received(ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space)
            self.probe_timeout = self.get_probe_timeout()

    def on_newest_acked(
        self, oldest: int, newest: int, ack_delay: float, now: float, space: QuicPacketSpace
    ) -> bool:
        """An acknowledgement of which the newest range is from ``oldest`` to ``newest``. False, having done nothing, if
        it leaves a gap: that goes aioquic's own way.
        """
        sent = space.sent_packets
        number = next(iter(sent), newest + 1)
        if number < oldest or newest < space.largest_acked_packet:
            return False
        space.largest_acked_packet = newest
        packet, eliciting = None, False
        while number <= newest:
            packet = sent.pop(number)
            eliciting = self._on_acked(packet, space, now) or eliciting
            number = next(iter(sent), newest + 1)
        if packet is None:
            return True
        if eliciting and packet.packet_number == newest and now >= self._next_sample:
            self._on_sample(now - (packet.sent_time or now), min(ack_delay, self.max_ack_delay), now)
        # All packets up to the newest acknowledged one are, so none of them can be lost.
        space.loss_time = None
        if self.peer_completed_address_validation:
            self._pto_count = 0
        return True

    def _on_acked(self, packet: QuicSentPacket, space: QuicPacketSpace, now: float) -> bool:
        if packet.is_ack_eliciting:
            space.ack_eliciting_in_flight -= 1
        if packet.in_flight:
            self._cc.on_packet_acked(packet=packet, now=now)
        for handler, args in packet.delivery_handlers:
            handler(QuicDeliveryState.ACKED, *args)
        return packet.is_ack_eliciting

    def _on_sample(self, latest: float, delay: float, now: float) -> None:
        """A new round-trip time (RFC 9002 §5.3), by the formulas of aioquic; one per millisecond will do, which is the
        least that is reckoned with.
        """
        self._next_sample = now + _LEAST_RTT
        raw = max(latest, _LEAST_RTT)
        self._rtt_min = min(self._rtt_min, raw)
        self._rtt_latest = raw - delay if raw > self._rtt_min + delay else raw
        if not self._rtt_initialized:
            self._rtt_first_sample_time, self._rtt_initialized = now, True
            self._rtt_variance, self._rtt_smoothed = latest / 2, latest
        else:
            self._rtt_variance = 0.75 * self._rtt_variance + 0.25 * abs(self._rtt_min - self._rtt_latest)
            self._rtt_smoothed = 0.875 * self._rtt_smoothed + 0.125 * self._rtt_latest
        self.probe_timeout = self.get_probe_timeout()
        self._cc.on_rtt_measurement(now=now, rtt=self._rtt_latest)
        self._pacer.update_rate(congestion_window=self._cc.congestion_window, smoothed_rtt=self._rtt_smoothed)
