"""Random choices from a given source."""

from collections import Counter

from magik_proto.machine import Machine, below, shuffled
from magik_proto.testing.seeded import SeededRandom


def test_every_number_below_a_bound_is_as_likely_as_another() -> None:
    rng = SeededRandom(1)
    counts = Counter(below(rng, 5) for _ in range(5000))
    assert set(counts) == {0, 1, 2, 3, 4}
    assert all(800 < count < 1200 for count in counts.values())
    assert below(rng, 1) == 0


def test_a_shuffle_keeps_all_and_depends_on_the_seed_only() -> None:
    items = list(range(50))
    orders = [shuffled(SeededRandom(seed), iter(items)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == items for order in orders)
    assert shuffled(SeededRandom(1), []) == []


def test_the_shape_of_a_machine() -> None:
    assert {"receive", "poll", "next_timeout"} <= set(dir(Machine))
