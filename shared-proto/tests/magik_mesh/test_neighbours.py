"""Whom a node wants to be connected with, whom it dials then, and whom it tries again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from magik_mesh import Timings
from magik_mesh.dialing import DialPlan
from magik_mesh.neighbours import Attic, Neighbours
from magik_proto.testing.builders import peer
from magik_proto.testing.seeded import SeededRandom

PLACE = (("10.0.0.1", 4001),)


def neighbours(maximum: int = 64, seed: int = 1) -> Neighbours:
    rng = SeededRandom(seed)
    return Neighbours(maximum, lambda n: rng.getrandbits(32) % n)


class TestNeighbours:
    def test_a_fabric_as_large_as_the_connections_is_small_and_one_more_makes_it_large(self) -> None:
        found = neighbours(64)
        told = [(found.observe(known), found.large) for known in (64, 65, 60, 49, 48, 64)]
        assert told == [
            (False, False),
            (True, True),
            (False, True),
            (False, True),
            (True, False),
            (False, False),
        ]

    def test_in_a_small_one_with_everybody(self) -> None:
        assert neighbours().choose([peer(1)], [peer(2)], []) is None

    def test_in_a_large_one_with_the_nearest_and_as_many_random_ones(self) -> None:
        found = neighbours(64)
        found.observe(1000)
        near, others = [peer(n) for n in range(40)], [peer(n) for n in range(100, 400)]
        chosen = found.choose(near, [*near, *others], [])
        assert chosen is not None
        assert chosen >= set(near[:16])
        assert len(chosen) == 32

    def test_a_random_one_is_kept_while_connected_and_else_given_up_for_another(self) -> None:
        found = neighbours(64)
        found.observe(1000)
        others = [peer(n) for n in range(100, 400)]
        first = found.choose([], others, []) or frozenset()
        kept = sorted(first)[:5]
        second = found.choose([], others, kept) or frozenset()
        assert second & first >= set(kept)
        assert len(second & first) < 10
        assert len(second) == 16

    def test_nobody_is_the_first_choice_of_all(self) -> None:
        pool = [peer(n) for n in range(100)]
        counts: dict[object, int] = {}
        for seed in range(300):
            found = neighbours(8, seed)
            found.observe(1000)
            for chosen in found.choose([], pool, []) or ():
                counts[chosen] = counts.get(chosen, 0) + 1
        assert len(counts) > 95
        assert max(counts.values()) < 25

    @given(
        st.integers(2, 200),
        st.lists(st.integers(0, 60)),
        st.lists(st.integers(0, 60)),
        st.sets(st.integers(0, 60)),
    )
    def test_never_more_than_it_dials_of_its_own_accord(
        self, maximum: int, near: list[int], sample: list[int], connected: set[int]
    ) -> None:
        found = neighbours(maximum)
        found.observe(maximum + 1)
        for _ in range(3):
            chosen = found.choose(list(map(peer, near)), list(map(peer, sample)), set(map(peer, connected)))
            assert chosen is not None
            assert len(chosen) <= max(3, maximum // 2)
            assert chosen <= {*map(peer, near), *map(peer, sample)}


class TestNarrowPlan:
    def plan(self) -> DialPlan:
        return DialPlan(Timings(), lambda: 0.0)

    def test_only_the_chosen_are_dialled_and_nobody_else_is_remembered(self) -> None:
        plan = self.plan()
        for number in (1, 2, 3):
            plan.want(peer(number), 0.0)
        plan.narrow(frozenset((peer(2), peer(4))), 0.0)
        plan.want(peer(5), 0.0)
        assert plan.take_due(0.0, 9) == [peer(2), peer(4)]
        assert set(plan.wanted()) == {peer(2), peer(4)}

    def test_who_is_lost_is_dialled_once_and_then_forgotten(self) -> None:
        plan = self.plan()
        plan.narrow(frozenset(), 0.0)
        plan.linked(peer(1), 0.0)
        assert plan.take_due(1.0, 9) == []
        plan.lost(peer(1), 100.0, lasted=100.0)
        assert plan.take_due(100.0, 9) == [peer(1)]
        plan.finished(peer(1))
        assert plan.put_off(peer(1), 102.0).retry_in is None
        assert plan.wanted() == ()

    def test_who_was_let_go_is_not_dialled(self) -> None:
        plan = self.plan()
        plan.narrow(frozenset(), 0.0)
        plan.linked(peer(1), 0.0)
        plan.lost(peer(1), 100.0, lasted=0.0)
        assert plan.take_due(1000.0, 9) == []
        assert plan.next_due() is None

    def test_a_bootstrap_peer_waits_until_it_is_chosen_or_the_fabric_is_small_again(self) -> None:
        plan = self.plan()
        plan.want(peer(1), 0.0, permanent=True)
        plan.narrow(frozenset((peer(2),)), 0.0)
        assert plan.take_due(0.0, 9) == [peer(2)]
        plan.narrow(None, 1.0)
        assert plan.take_due(1.0, 9) == [peer(1)]


class TestAttic:
    def test_the_lost_are_tried_in_turn_and_slowly(self) -> None:
        attic = Attic(30.0)
        attic.put(peer(1), PLACE, 0.0)
        attic.put(peer(2), PLACE, 0.0)
        assert [attic.take_due(now) for now in (0.0, 29.0, 30.0, 60.0)] == [
            (peer(1), PLACE),
            None,
            (peer(2), PLACE),
            (peer(1), PLACE),
        ]

    def test_who_is_back_or_away_for_too_long_is_tried_no_more(self) -> None:
        attic = Attic(30.0, life=100.0)
        attic.put(peer(1), PLACE, 0.0)
        attic.put(peer(2), PLACE, 50.0)
        attic.put(peer(1), PLACE, 90.0)
        attic.remove(peer(2))
        assert attic.take_due(99.0) == (peer(1), PLACE)
        assert attic.take_due(140.0) is None, "it was lost at 0"
        assert len(attic) == 0

    def test_of_too_many_the_longest_lost_goes(self) -> None:
        attic = Attic(30.0, limit=3)
        for number in range(5):
            attic.put(peer(number), PLACE, float(number))
        assert [peer(n) in attic for n in range(5)] == [False, False, True, True, True]
