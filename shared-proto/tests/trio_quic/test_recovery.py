"""What trio_quic's loss recovery does otherwise than aioquic's: pacing by a timer that is late."""

from hypothesis import given
from hypothesis import strategies as st

from trio_quic.recovery import LeanPacer

SIZE = 1200
BURST = 128 * 1024 // SIZE


def sent_in(pacer: LeanPacer, seconds: float, lateness: float) -> tuple[int, int]:
    """How many datagrams the pacer lets through, and the most at once, where who waits is woken so late."""
    now, count, largest = 100.0, 0, 0
    while now < 100.0 + seconds:
        burst = 0
        while (due := pacer.next_send_time(now=now)) is None:
            pacer.update_after_send(now=now)
            burst += 1
            assert burst < 10_000, "it does not pace"
        count, largest = count + burst, max(largest, burst)
        now = due + lateness
    return count, largest


def test_a_fast_path_is_not_slowed_down_by_the_timer() -> None:
    pacer = LeanPacer(max_datagram_size=SIZE)
    pacer.update_rate(congestion_window=4_000_000, smoothed_rtt=0.002)
    count, largest = sent_in(pacer, 1.0, lateness=0.001)
    assert count * SIZE > 60_000_000
    assert largest <= BURST + 1


@given(
    window=st.integers(2 * SIZE, 1 << 24),
    rtt=st.floats(0.0001, 0.5),
    lateness=st.floats(0, 0.0015),
)
def test_no_more_is_sent_than_the_rate_and_one_burst(window: int, rtt: float, lateness: float) -> None:
    pacer = LeanPacer(max_datagram_size=SIZE)
    pacer.update_rate(congestion_window=window, smoothed_rtt=rtt)
    seconds = min(0.2, 2 * rtt)
    count, largest = sent_in(pacer, seconds, lateness)
    rate = min(window / rtt / SIZE, 1e6)
    assert largest <= BURST + 1
    # Rounding is a tenth of the shortest time that is reckoned with.
    assert count <= 1.12 * rate * (seconds + lateness + 2e-6) + BURST + 2
    if rate * (lateness + 1e-5) < 14:
        assert count >= rate * seconds * 0.9 - 3
