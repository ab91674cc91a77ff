"""The simulator does what it says: otherwise what it proves is worth nothing."""

import pytest

from magik_proto.errors import LocalProtocolError
from magik_proto.identity import PeerId
from magik_proto.testing.builders import peer
from magik_proto.testing.network import Conditions, Network, Send
from magik_proto.testing.seeded import SeededRandom


class Recorder:
    """Notes what comes in; rings once at a reading of its own clock."""

    def __init__(self, alarm: float | None = None) -> None:
        self.alarm = alarm
        self.heard: list[tuple[PeerId, object, float]] = []
        self.rang: list[float] = []
        self.started: float | None = None

    def start(self, now: float) -> list[Send]:
        self.started = now
        return []

    def receive(self, source: PeerId, message: object, now: float) -> list[Send]:
        self.heard.append((source, message, now))
        return []

    def poll(self, now: float) -> list[Send]:
        if self.alarm is not None and now >= self.alarm:
            self.alarm = None
            self.rang.append(now)
        return []

    def next_timeout(self) -> float | None:
        return self.alarm


def pair(conditions: Conditions, seed: int = 1) -> tuple[Network[Recorder], Recorder]:
    network: Network[Recorder] = Network(seed, conditions)
    network.add(peer(1), Recorder)
    return network, network.add(peer(2), Recorder)


def send(network: Network[Recorder], count: int, *, reliable: bool = False) -> None:
    network.act(peer(1), lambda actor, now: [Send(peer(2), n, reliable) for n in range(count)])


def test_messages_take_their_time() -> None:
    network, other = pair(Conditions(latency_s=0.5, jitter_s=0.0))
    send(network, 1)
    network.run(0.49)
    assert other.heard == []
    network.run(0.51)
    assert other.heard == [(peer(1), 0, 0.5)]
    assert network.now == 0.51


def test_loss_duplication_and_reordering() -> None:
    network, other = pair(Conditions(loss=0.2, duplication=0.1, jitter_s=1.0))
    send(network, 1000)
    network.run(5.0)
    numbers = [message for _, message, _ in other.heard]
    assert 740 < len(set(numbers)) < 860
    assert 50 < len(numbers) - len(set(numbers)) < 120
    assert numbers != sorted(numbers)  # type: ignore[type-var]
    assert (network.stats.sent, network.stats.delivered) == (1000, len(numbers))


def test_reliable_messages_come_later_but_once() -> None:
    network, other = pair(Conditions(loss=0.5, duplication=0.5, jitter_s=0.0))
    send(network, 200, reliable=True)
    network.run(30.0)
    assert sorted(message for _, message, _ in other.heard) == list(range(200))  # type: ignore[type-var]
    assert other.heard[-1][2] > 0.2


def test_a_partition_cuts_and_heals() -> None:
    network, other = pair(Conditions())
    network.partition([peer(1)], [peer(2)])
    send(network, 1)
    network.run(1.0)
    assert other.heard == []
    network.heal()
    send(network, 1)
    network.run(2.0)
    assert len(other.heard) == 1


def test_a_crash_forgets_all_and_nothing_of_before_arrives() -> None:
    network, other = pair(Conditions())
    other.alarm = 0.5
    network.act(peer(2), lambda actor, now: [])
    send(network, 1)
    network.crash(peer(2))
    assert network.actor(peer(2)) is None
    network.act(peer(2), lambda actor, now: [Send(peer(1), "ghost")])
    again = network.restart(peer(2))
    network.run(1.0)
    assert (again is not other, again.heard, other.heard, other.rang) == (True, [], [], [])
    with pytest.raises(LocalProtocolError):
        network.restart(peer(2))
    with pytest.raises(LocalProtocolError):
        network.add(peer(2), Recorder)


def test_clocks_are_skewed_and_drift() -> None:
    network: Network[Recorder] = Network(1)
    fast = network.add(peer(1), lambda: Recorder(alarm=130.0), skew_s=100.0, drift=0.5)
    assert fast.started == 100.0
    network.run(19.9)
    assert fast.rang == []
    network.run(20.1)
    assert fast.rang == [pytest.approx(130.0)]


def test_to_nobody_is_lost() -> None:
    network, _ = pair(Conditions())
    network.act(peer(1), lambda actor, now: [Send(peer(9), "anyone?")])
    network.run(1.0)
    assert network.stats.lost == 1


def test_the_random_source_is_the_one_that_was_published() -> None:
    rng = SeededRandom(1234567)
    assert [rng.getrandbits(64) for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    assert SeededRandom(1).getrandbits(3) < 8
    assert SeededRandom(1).getrandbits(130).bit_length() <= 130
    assert 0 <= SeededRandom(5).random() < 1


def test_the_hosts_are_known_and_one_without_alarms_is_left_alone() -> None:
    network, other = pair(Conditions())
    assert network.peers == (peer(1), peer(2))
    network.run(100.0)
    assert (network.stats.wakeups, other.rang) == (0, [])


class Fickle(Recorder):
    """Puts its alarm off when it hears something."""

    def receive(self, source: PeerId, message: object, now: float) -> list[Send]:
        assert self.alarm is not None
        self.alarm += 1.0
        return []


def test_an_alarm_that_was_put_off_rings_when_it_is_due() -> None:
    network: Network[Recorder] = Network(1, Conditions(latency_s=0.1, jitter_s=0.0))
    fickle = network.add(peer(1), lambda: Fickle(alarm=0.5))
    network.add(peer(2), Recorder)
    network.act(peer(2), lambda actor, now: [Send(peer(1), "later")])
    network.run(1.4)
    assert fickle.rang == []
    network.run(1.6)
    assert fickle.rang == [pytest.approx(1.5)]


def test_a_crash_while_something_is_due_and_one_without_a_wakeup() -> None:
    network: Network[Recorder] = Network(1)
    network.add(peer(1), lambda: Recorder(alarm=0.5))
    network.crash(peer(1))
    network.act(peer(1), lambda actor, now: [Send(peer(1), "nobody")])
    network.run(1.0)
    assert network.stats.wakeups == 0
