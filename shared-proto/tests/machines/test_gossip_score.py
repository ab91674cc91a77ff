"""What one peer's conduct comes to, in points."""

from collections.abc import Callable

import attrs
import pytest

from magik_proto.gossip_score import PeerScores, ScoreConfig
from magik_proto.testing.builders import peer

T = "magik-fabric"
P = peer(1)
CONFIG = ScoreConfig()
MESH = {P: 0.0}


def scores_of(mesh: dict[object, float] | None = None, **changes: float) -> PeerScores:
    meshes = {T: mesh if mesh is not None else {}}
    return PeerScores(attrs.evolve(CONFIG, **changes), meshes)  # type: ignore[arg-type]


def accept(scores: PeerScores, number: int, now: float, *senders: int, origin: int | None = None) -> None:
    """A good message, from an origin of its own unless said."""
    by = dict.fromkeys(peer(n) for n in senders)
    scores.accepted(bytes([number]) * 32, T, peer(origin or 100 + number), by, MESH, now)


def deliver(scores: PeerScores, count: int, *senders: int, now: float = 100.0) -> None:
    for number in range(count):
        accept(scores, number, now, *senders)


Story = Callable[[PeerScores], object]


def many(scores: PeerScores, count: int) -> None:
    for number in range(count):
        scores.connected(peer(10 + number), "192.0.2.1")


# With the time at which the score is asked for, and what it is.
STORIES: list[tuple[str, Story, float, float]] = [
    ("nothing at all", lambda s: None, 100.0, 0.0),
    ("P2: a first delivery", lambda s: accept(s, 1, 100.0, 1), 100.0, 0.5),
    ("P2: only the first counts", lambda s: accept(s, 1, 100.0, 2, 1), 100.0, 0.0),
    ("P2: at most so many", lambda s: deliver(s, 60, 1), 100.0, 10.0),
    ("P2: fades", lambda s: deliver(s, 10, 1), 700.0, 0.5 * 10 * 0.01),
    ("P4: one invalid message", lambda s: s.invalid(P, T, 0.0), 0.0, -20.0),
    ("P4: two are four times as bad", lambda s: [s.invalid(P, T, 0.0) for _ in "ab"], 0.0, -80.0),
    ("P4: fades slowly", lambda s: s.invalid(P, T, 0.0), 600.0, -20.0 * 0.01 ** (1 / 3)),
    ("P5: what the application says", lambda s: s.appraise(P, -7.5), 0.0, -7.5),
    ("P7: some offences are forgiven", lambda s: s.offended(P, 0.0, 6.0), 0.0, 0.0),
    ("P7: more are not", lambda s: s.offended(P, 0.0, 9.0), 0.0, -90.0),
    ("P7: fades", lambda s: s.offended(P, 0.0, 9.0), 600.0, 0.0),
    ("P7: broken words", lambda s: [s.promise(P, 0.0, kept=False) for _ in range(8)], 0.0, -40.0),
    (
        "P7: kept words make up for broken ones",
        lambda s: [s.promise(P, 0.0, kept=n % 2 > 0) for n in range(40)],
        0.0,
        0.0,
    ),
]


@pytest.mark.parametrize(("story", "now", "score"), [s[1:] for s in STORIES], ids=[s[0] for s in STORIES])
def test_outside_of_the_mesh(story: Story, now: float, score: float) -> None:
    scores = scores_of()
    story(scores)
    assert scores.score(P, now) == pytest.approx(score)
    assert scores.is_negative(P, now) == (score < 0)


def duty(done: int) -> Story:
    """Twenty messages that count (the first four do not yet), so many of them brought by the peer too."""

    def story(scores: PeerScores) -> None:
        for number in range(24):
            accept(scores, number, 300.0, 2, *([1] if number >= 24 - done else []))

    return story


def one_origin(origin: int) -> Story:
    """Many messages of one origin, beside some of others long ago."""

    def story(scores: PeerScores) -> None:
        deliver(scores, 5, 2, now=100.0)
        for n in range(300):
            accept(scores, n % 250, 300.0 + 10 * n, 2, origin=origin)

    return story


def of_its_own(scores: PeerScores) -> None:
    """As above, while there are others too."""
    for n in range(300):
        accept(scores, n % 6, 100.0 + 10 * n, 2, origin=1 if n % 6 else 2)


MESH_STORIES: list[tuple[str, Story, float, float]] = [
    ("P1: time in the mesh", lambda s: None, 150.0, 0.5),
    ("P1: has an end", lambda s: None, 9000.0, 1.0),
    ("P3: a few messages are no measure", lambda s: deliver(s, 4, 2), 300.0, 1.0),
    ("P3: nothing delivered of many", duty(0), 300.0, 1.0 - 2.0),
    ("P3: half of its duty", duty(2), 300.0, 1.0 - 2.0 * 0.25),
    ("P3: its duty is done", duty(4), 300.0, 1.0),
    ("P3: not before it is active", lambda s: deliver(s, 20, 2, now=29.0), 300.0, 1.0),
    ("P3: one busy origin is no measure", one_origin(9), 3300.0, 1.0),
    ("P3: its own messages it does not owe", of_its_own, 3100.0, 1.0),
]


@pytest.mark.parametrize(
    ("story", "now", "score"), [s[1:] for s in MESH_STORIES], ids=[s[0] for s in MESH_STORIES]
)
def test_in_the_mesh(story: Story, now: float, score: float) -> None:
    scores = scores_of(dict(MESH))  # type: ignore[arg-type]
    story(scores)
    assert scores.score(P, now) == pytest.approx(score)


def test_copies_that_cross_ours_count_and_late_or_repeated_ones_do_not() -> None:
    scores = scores_of(dict(MESH))  # type: ignore[arg-type]
    deliver(scores, 14, 2, now=300.0)
    for number in range(14):
        scores.came_again(bytes([number]) * 32, P, 300.0 + 0.05 * number)
    assert scores.score(P, 302.0) == pytest.approx(1.0), "two of ten in time are a fifth"
    scores = scores_of(dict(MESH))  # type: ignore[arg-type]
    deliver(scores, 14, 2, now=300.0)
    for _ in range(10):
        scores.came_again(bytes([9]) * 32, P, 300.1)
    assert scores.score(P, 302.0) == pytest.approx(1.0 - 2.0 * 0.25), "one message counts once"


def test_undone_duty_stays_when_the_peer_leaves_the_mesh() -> None:
    mesh: dict[object, float] = dict(MESH)
    scores = scores_of(mesh)
    deliver(scores, 20, 2, now=300.0)
    scores.pruned(P, T, 300.0)
    del mesh[P]
    assert scores.score(P, 300.0) == pytest.approx(-2.0)
    assert scores.score(P, 900.0) == pytest.approx(-0.02)
    scores.left(T)
    assert scores.score(P, 902.0) == 0


def test_peers_of_one_address_lose_the_mesh_but_are_not_silenced() -> None:
    scores = scores_of()
    many(scores, 16)
    assert scores.score(peer(10), 0.0) == 0
    scores.connected(peer(26), "192.0.2.1")
    scores.connected(peer(27), None)
    assert scores.score(peer(26), 0.0) == -1
    assert scores.is_negative(peer(10), 2.0)
    assert scores.score(peer(27), 0.0) == 0, "an address that says nothing is none"
    many(scores, 16)  # connected anew: nobody is counted twice
    assert scores.score(peer(10), 4.0) == -1
    for number in range(100):
        scores.connected(peer(40 + number), "192.0.2.1")
    assert scores.score(peer(10), 6.0) == -9 > CONFIG.gossip_threshold
    for number in range(100):
        scores.gone(peer(40 + number), 6.0)
    assert scores.score(peer(10), 8.0) == -1


def test_a_bad_score_outlives_the_connection_and_a_good_one_does_not() -> None:
    scores = scores_of(retain_s=100.0, max_retained=2)
    for number in range(1, 5):
        scores.connected(peer(number), None)
        scores.invalid(peer(number), T, 0.0) if number != 2 else accept(scores, 1, 0.0, 2)
        scores.gone(peer(number), float(number))
    assert [scores.score(peer(n), 5.0) < 0 for n in range(1, 5)] == [False, False, True, True], "two at most"
    assert scores.score(peer(2), 5.0) == 0
    scores.connected(peer(3), None)
    scores.expire(104.0)
    assert scores.score(peer(3), 104.0) < 0, "it is back, and what it did counts on"
    assert scores.score(peer(4), 104.0) == 0


def test_thresholds_are_in_the_order_that_the_specification_wants() -> None:
    assert CONFIG.graylist_threshold < CONFIG.publish_threshold <= CONFIG.gossip_threshold < 0
    assert CONFIG.opportunistic_threshold > 0
    assert CONFIG.colocation_most < -CONFIG.gossip_threshold
    most_by_sitting = CONFIG.mesh_time_weight * CONFIG.mesh_time_cap_s
    assert most_by_sitting + CONFIG.duty_weight < 0, "who only sits in the mesh and does nothing is put out"
