"""Loss recovery and congestion control: aioquic's, with a shorter way for the acknowledgement without gaps.

Only :mod:`trio_quic.lean` uses this. Besides being shorter, that way tells the congestion control the round-trip
time *without* the delay that the peer put into its acknowledgement: aioquic passes on the raw time, and its slow
start would end early on connections whose acknowledgements wait for company (HyStart takes growing times for a
queue; RFC 9406 §4.2).

A congestion window grows only while it is used (RFC 9002 §7.8): aioquic's grows with every acknowledgement, so that
hours of small calls would let a connection send megabytes at once that no path was ever seen to carry.

Pacing reckons with a timer that is late by a millisecond: aioquic's saves up for 16 datagrams at most, which is less
than a fast path takes in that time, and so a fast path's rate would be what the timer makes it.
"""

from typing import Any

from aioquic.quic.congestion.reno import RenoCongestionControl
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

# Datagrams for which the window may have room left and yet count as used: what is written between two acknowledgements
# of two packets each. A guess; as in Chromium's QUIC.
_NEARLY_FULL = 3

_ACKED = QuicDeliveryState.ACKED


class UsedReno(RenoCongestionControl):
    """aioquic's NewReno, with a window that does not grow while it is not used (RFC 9002 §7.8)."""

    pressed = False
    """Whether something waits to be sent that the window, or the pace that it makes, holds back: the sender's note."""
    grows = True
    """Whether packets that are acknowledged now widen the window; ``judge`` decides."""

    def judge(self) -> None:
        """An acknowledgement has come, and none of its packets is accounted for: was the window used?

        It was when the sender had to wait, or nearly; in slow start from one half on, since that doubles in a round trip
        what the sender doubles as well.
        """
        window, flight = self.congestion_window, self.bytes_in_flight
        starting = self.ssthresh is None or window < self.ssthresh
        self.grows = (
            self.pressed
            or flight + _NEARLY_FULL * self._max_datagram_size >= window
            or (starting and 2 * flight > window)
        )

    def on_packet_acked(self, *, now: float, packet: QuicSentPacket) -> None:
        """As in aioquic, for a window that was used."""
        if self.grows:
            super().on_packet_acked(now=now, packet=packet)
        else:
            self.bytes_in_flight -= packet.sent_bytes


class LeanPacer(QuicPacketPacer):
    """Spreads datagrams over the round trip (RFC 9002 §7.7), with bursts that make up for a late timer."""

    def next_send_time(self, now: float) -> float | None:  # type: ignore[override]  # aioquic's own says None, too
        """None: now. Whole datagrams are saved up for: aioquic lets one go that has been saved up for in part."""
        if self.packet_time is None:
            return None
        self.update_bucket(now=now)
        missing = self.packet_time - self.bucket_time
        return now + missing if missing > _ROUNDING else None

    def update_after_send(self, now: float) -> None:
        """As in aioquic."""
        if self.packet_time is not None:
            if now > self.evaluation_time:
                self.update_bucket(now=now)
            left = self.bucket_time - self.packet_time
            self.bucket_time = left if left > 0.0 else 0.0

    def update_rate(self, congestion_window: int, smoothed_rtt: float) -> None:
        """As in aioquic; what may be saved up is more where the path is fast."""
        super().update_rate(congestion_window=congestion_window, smoothed_rtt=smoothed_rtt)
        burst = _LARGEST_BURST // self._max_datagram_size * (self.packet_time or 0.0)
        self.bucket_max = max(self.bucket_max, min(_LATENESS, burst))


class LeanRecovery(QuicPacketRecovery):
    """aioquic's recovery for one connection."""

    def __init__(self, *, max_datagram_size: int, **options: Any) -> None:
        super().__init__(congestion_control_algorithm="reno", max_datagram_size=max_datagram_size, **options)
        self._cc = self.control = UsedReno(max_datagram_size=max_datagram_size)
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
            self.control.judge()
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
        if number > newest:
            return True
        self.control.judge()
        eliciting = False
        while number <= newest:
            packet = sent.pop(number)
            if packet.is_ack_eliciting:
                eliciting = True
                space.ack_eliciting_in_flight -= 1
            if packet.in_flight:
                self.control.on_packet_acked(now=now, packet=packet)
            for handler, args in packet.delivery_handlers:
                handler(_ACKED, *args)
            number = next(iter(sent), newest + 1)
        if eliciting and now >= self._next_sample and packet.packet_number == newest:
            self._on_sample(now - (packet.sent_time or now), min(ack_delay, self.max_ack_delay), now)
        # All packets up to the newest acknowledged one are, so none of them can be lost.
        space.loss_time = None
        if self.peer_completed_address_validation:
            self._pto_count = 0
        return True

    def note_sent(self, packet: QuicSentPacket, space: QuicPacketSpace) -> None:
        """A packet of a confirmed connection has left: what ``on_packet_sent`` and the pacer do in aioquic."""
        space.sent_packets[packet.packet_number] = packet
        if packet.is_ack_eliciting:
            space.ack_eliciting_in_flight += 1
        if packet.in_flight:
            self._time_of_last_sent_ack_eliciting_packet = packet.sent_time or 0.0
            self.control.bytes_in_flight += packet.sent_bytes
        self._pacer.update_after_send(packet.sent_time or 0.0)

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
