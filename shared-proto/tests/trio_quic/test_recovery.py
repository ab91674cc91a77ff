"""What trio_quic's loss recovery does otherwise: pacing by a late timer, and a window that grows while it is used."""

import trio
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.tls import Epoch
from hypothesis import given
from hypothesis import strategies as st
from trio_quic_support import connected, network, stream_pair

from trio_quic.recovery import LeanPacer, LeanRecovery

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


def acknowledged(number: int, sent_time: float) -> QuicSentPacket:
    return QuicSentPacket(
        Epoch.ONE_RTT, True, True, False, number, QuicPacketType.ONE_RTT, sent_time, SIZE, []
    )


class Flight:
    """A recovery with one packet number space: what is sent is acknowledged in the order of sending."""

    def __init__(self) -> None:
        self.loss = LeanRecovery(
            initial_rtt=0.1,
            max_datagram_size=SIZE,
            peer_completed_address_validation=True,
            send_probe=lambda: None,
        )
        self.space = QuicPacketSpace(is_application_data=True)
        self.loss.spaces = [self.space]
        self.now, self.sent, self.acked = 1.0, 0, 0

    @property
    def window(self) -> int:
        return self.loss.congestion_window

    def send(self, count: int) -> None:
        for _ in range(count):
            self.loss.note_sent(acknowledged(self.sent, self.now), self.space)
            self.sent += 1

    def hear(self, count: int, *, gap: bool = False) -> None:
        """An acknowledgement of so many more; with a gap behind what was acknowledged before."""
        self.now += 0.05
        ranges = RangeSet([range(self.acked + gap, self.acked + count)])
        if gap:
            ranges.add(0, max(1, self.acked - 1))
        self.acked += count
        self.loss.on_ack_received(ack_rangeset=ranges, ack_delay=0.0, now=self.now, space=self.space)


@given(rounds=st.lists(st.integers(1, 4), min_size=20, max_size=200), gaps=st.booleans())
def test_a_window_that_is_not_used_does_not_grow(rounds: list[int], gaps: bool) -> None:
    flight = Flight()
    before = flight.window
    for number, count in enumerate(rounds):
        flight.send(count)
        flight.hear(count, gap=gaps and count > 2 and number % 5 == 4)
    # Losses narrow it; nothing widens it: four datagrams are less than half of ten.
    assert flight.window <= before


def test_a_window_that_is_used_grows_as_before() -> None:
    flight = Flight()
    for _ in range(5):
        before, count = flight.window, flight.window // SIZE
        flight.send(count)
        flight.hear(count)
        assert flight.window == before + count * SIZE, "slow start doubles it in a round trip"


def test_who_waits_for_the_pace_uses_the_window() -> None:
    flight = Flight()
    before = flight.window
    flight.loss.control.pressed = True
    flight.send(1)
    flight.hear(1)
    assert flight.window == before + SIZE
    flight.loss.control.pressed = False
    flight.send(1)
    flight.hear(1)
    assert flight.window == before + SIZE


async def until_pressed(loss: LeanRecovery) -> None:
    """Wait for the sender to note that it has to wait."""
    with trio.fail_after(1):
        while not loss.control.pressed:  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.0005)


async def test_calls_one_by_one_leave_the_window_alone_and_bulk_opens_it(autojump_clock: object) -> None:
    """The whole way: what the sender notes is what the rule needs."""
    async with connected(network()) as (ours, theirs):
        await trio.sleep(1)
        loss = ours._core._quic._loss
        before = loss.congestion_window
        for _ in range(100):
            mine, other = await stream_pair(ours, theirs)
            await mine.send_last(b"x" * 1000)
            await other.receive_all(2000)
            await other.aclose()
            await mine.aclose()
        assert loss.congestion_window == before
        mine, other = await stream_pair(ours, theirs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mine.send_last, bytes(1_000_000))
            nursery.start_soon(until_pressed, loss)
            assert len(await other.receive_all(2_000_000)) > 900_000
        assert loss.congestion_window > 2 * before
        assert not loss.control.pressed
