"""Requirements against machines, scores, samples, winners."""

from uuid import UUID

import attrs
import pytest

from magik_proto.messages import Expression, Requirements, SelectorTerm, Toleration
from magik_proto.placement import (
    PPM,
    Capacity,
    Readings,
    Taint,
    choose_winners,
    eligible,
    in_sample,
    matches_expression,
    score,
    slots,
    tolerates,
)
from magik_proto.testing.builders import GIB, bid, machine, peer, requirements


def needing(**changes: object) -> Requirements:
    return attrs.evolve(requirements(), **changes)


def test_capacity_is_counted_resource_by_resource() -> None:
    whole, part = Capacity(4000, 8, 10, 3), Capacity(1000, 2, 0, 1)
    assert whole - part + part == whole
    assert part * 2 == Capacity(2000, 4, 0, 2)
    assert whole.covers(part * 3)
    assert not whole.covers(part * 4)
    assert whole.times(part) == 3
    assert (part - whole).times(part) == 0
    assert whole.times(Capacity()) is None


def test_a_plain_pod_is_eligible() -> None:
    assert eligible(requirements(), machine(1)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"avoid": (peer(1),)}, "avoid"),
        ({"architecture": "arm64"}, "arm64"),
        ({"runtime": "krun"}, "needs runtime krun, this machine has crun, wasm"),
        ({"cpu_millis": 4001}, "needs 4001 cpu"),
        ({"memory_bytes": 9 * GIB}, "memory"),
        ({"storage_bytes": 101 * GIB}, "storage"),
        ({"node_selector": {"disk": "ssd"}}, "node selector disk=ssd"),
        ({"affinity": (SelectorTerm((Expression("zone", "In", ("b",)),)),)}, "affinity"),
        ({"affinity": (SelectorTerm(()),)}, "affinity"),
    ],
)
def test_each_requirement_is_a_reason(changes: dict[str, object], said: str) -> None:
    reasons = eligible(needing(**changes), attrs.evolve(machine(1), labels={"zone": "a"}))
    assert len(reasons) == 1
    assert said in reasons[0]


def test_affinity_terms_are_alternatives_and_their_expressions_all_hold() -> None:
    miss = Expression("zone", "In", ("b",))
    hit = Expression("zone", "In", ("a",))
    facts = attrs.evolve(machine(1), labels={"zone": "a"})
    either = (SelectorTerm((miss,)), SelectorTerm((hit,)))
    assert eligible(needing(affinity=either), facts) == []
    assert eligible(needing(affinity=(SelectorTerm((hit, miss)),)), facts) != []


@pytest.mark.parametrize(
    ("operator", "values", "label", "met"),
    [
        ("In", ("a", "b"), "b", True),
        ("In", ("a",), None, False),
        ("NotIn", ("a",), "b", True),
        ("NotIn", ("a",), "a", False),
        ("NotIn", ("a",), None, True),
        ("Exists", (), "", True),
        ("Exists", (), None, False),
        ("DoesNotExist", (), None, True),
        ("DoesNotExist", (), "a", False),
        ("Gt", ("3",), "4", True),
        ("Gt", ("3",), "3", False),
        ("Gt", ("3",), "many", False),
        ("Gt", ("3",), None, False),
        ("Gt", ("3", "2"), "4", False),
        ("Lt", ("3",), "-1", True),
        ("Lt", ("3",), "3", False),
    ],
)
def test_operators(operator: str, values: tuple[str, ...], label: str | None, met: bool) -> None:
    labels = {} if label is None else {"k": label}
    assert matches_expression(Expression("k", operator, values), labels) is met


@pytest.mark.parametrize(
    ("toleration", "met"),
    [
        (Toleration("k", "Equal", "v", "NoSchedule"), True),
        (Toleration("k", "Equal", "w", "NoSchedule"), False),
        (Toleration("k", "Equal", "v", "NoExecute"), False),
        (Toleration("k", "Equal", "v", ""), True),
        (Toleration("k", "Exists"), True),
        (Toleration("other", "Exists"), False),
        (Toleration("", "Exists"), True),
    ],
)
def test_tolerations(toleration: Toleration, met: bool) -> None:
    assert tolerates(toleration, Taint("k", "v", "NoSchedule")) is met


def test_only_taints_that_refuse_keep_pods_away() -> None:
    for effect, refused in (("NoSchedule", True), ("NoExecute", True), ("PreferNoSchedule", False)):
        facts = attrs.evolve(machine(1), taints=(Taint("k", "v", effect),))
        assert bool(eligible(requirements(), facts)) is refused
        assert eligible(needing(tolerations=(Toleration("k", "Exists"),)), facts) == []


def test_slots_are_bounded_by_each_resource_and_by_what_is_wanted() -> None:
    free = Capacity(2000, 8 * GIB, 0, 110)
    assert slots(requirements(500), free, 100) == 4
    assert slots(requirements(500), free, 3) == 3
    assert slots(requirements(0, 0), free, 1000) == 110
    assert slots(requirements(500), Capacity() - free, 5) == 0
    assert slots(requirements(500), free, -1) == 0


def test_a_score_weighs_its_four_parts() -> None:
    total = Capacity(1000, 0, 0, 0)
    needs = requirements(500, 0)
    best = score(needs, total, total, Readings(PPM, PPM, PPM))
    assert best.resource_fit == PPM // 2
    assert best.total == 250_000 + 300_000 + 100_000 + 100_000
    assert score(needs, total, total, Readings(0, PPM, 0)).total == 250_000 + 100_000
    assert score(needs, total, total, Readings(2 * PPM, 0, -5)).total == 250_000 + 300_000
    assert score(needs, Capacity(), Capacity()).resource_fit == 0


def test_the_less_loaded_machine_scores_higher() -> None:
    total = machine(1).capacity
    loaded = total - Capacity(2000, 4 * GIB, 0, 5)
    assert score(requirements(), total, total).total > score(requirements(), loaded, total).total


def test_a_sample_is_about_as_large_as_asked_and_widens_by_rounds() -> None:
    tender_id = UUID(int=7)
    nodes = [peer(n) for n in range(4000)]
    samples = [{n for n in nodes if in_sample(tender_id, n, 40, 4000, r)} for r in (1, 2, 3, 5)]
    assert 20 <= len(samples[0]) <= 65
    assert 110 <= len(samples[1]) <= 215
    assert samples[0] < samples[1] < samples[2]
    assert len(samples[3]) == 4000


def test_a_small_fabric_answers_whole_and_other_tenders_ask_others() -> None:
    assert all(in_sample(UUID(int=1), peer(n), 16, 16, 1) for n in range(16))
    asked = [tuple(in_sample(UUID(int=i), peer(n), 5, 50, 1) for n in range(50)) for i in (1, 2)]
    assert asked[0] != asked[1]


def test_winners_are_the_best_by_score_then_by_node() -> None:
    bids = [bid(3, 10), bid(2, 20), bid(1, 10), bid(4, 5)]
    assert choose_winners(bids, 3) == [(bids[1], 1), (bids[2], 1), (bids[0], 1)]


def test_replicas_spread_before_they_double_up() -> None:
    bids = [bid(1, 100, slots=9), bid(2, 50, slots=9), bid(3, 10, slots=1)]
    assert choose_winners(bids, 3) == [(bids[0], 1), (bids[1], 1), (bids[2], 1)]
    assert choose_winners(bids, 6) == [(bids[0], 3), (bids[1], 2), (bids[2], 1)]


def test_what_runs_already_counts_for_spreading() -> None:
    bids = [bid(1, 100, slots=9), bid(2, 50, slots=9)]
    assert choose_winners(bids, 2, {peer(1): 2}) == [(bids[1], 2)]
    assert choose_winners(bids, 3, {peer(1): 2}) == [(bids[0], 1), (bids[1], 2)]


def test_slots_bound_what_is_given() -> None:
    assert choose_winners([bid(1, slots=2)], 5) == [(bid(1, slots=2), 2)]
    assert choose_winners([], 5) == []


def test_of_two_bids_of_one_node_the_better_counts() -> None:
    assert choose_winners([bid(1, 10, 9), bid(1, 20, 1)], 3) == [(bid(1, 20, 1), 1)]
