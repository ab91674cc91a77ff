"""What follows from a wish and the pods that are there."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machineplane.fabric.plan import Plan, PodFact, Wish, plan, wish_of


def wish(replicas: int = 3, **more: object) -> Wish:
    return Wish(replicas, "new", surge=1, unavailable=0, **more)  # type: ignore[arg-type]


def pod(uid: str, template: str = "new", **more: object) -> PodFact:
    return PodFact(
        uid=uid, template_hash=template, created=int(uid[1:] or 0), ready=more.pop("ready", True), **more
    )  # type: ignore[arg-type]


def test_missing_replicas_are_tendered() -> None:
    assert plan(wish(), []) == Plan(3, ())
    assert plan(wish(), [pod("p1")]) == Plan(2, ())


def test_as_many_as_wanted_is_nothing_to_do() -> None:
    assert plan(wish(), [pod("p1"), pod("p2"), pod("p3")]).idle


def test_surplus_goes_not_ready_first_then_newest() -> None:
    pods = [pod("p1"), pod("p2", ready=False), pod("p3"), pod("p4"), pod("p5")]
    assert plan(wish(), pods) == Plan(0, ("p5", "p2"))


def test_scaling_to_nothing_retires_all() -> None:
    assert set(plan(wish(0), [pod("p1"), pod("p2")]).retire) == {"p1", "p2"}


def test_a_failed_pod_is_retired_and_replaced() -> None:
    assert plan(wish(), [pod("p1"), pod("p2"), pod("p3", failed=True, ready=False)]) == Plan(1, ("p3",))


def test_pods_that_are_ending_do_not_count() -> None:
    assert plan(wish(1), [pod("p1", terminating=True)]) == Plan(1, ())


def test_a_finished_pod_that_is_a_result_is_kept() -> None:
    done = pod("p1", finished=True, ready=False)
    failed = pod("p1", failed=True, ready=False)
    assert plan(wish(1, keep_finished=True), [done]).idle
    assert plan(wish(1, keep_finished=True), [failed]).idle


def test_a_new_template_rolls_within_surge() -> None:
    old = [pod(f"p{i}", "old") for i in (1, 2, 3)]
    assert plan(wish(), old) == Plan(1, ())
    assert plan(wish(), [*old, pod("p4", ready=False)]) == Plan(0, ())
    assert plan(wish(), [*old, pod("p4")]) == Plan(0, ("p3",))


def test_old_pods_that_are_not_ready_go_at_once() -> None:
    old = [pod("p1", "old"), pod("p2", "old", ready=False), pod("p3", "old")]
    assert plan(wish(), old).retire == ("p2",)


def test_recreate_waits_until_the_old_ones_are_gone() -> None:
    old = [pod("p1", "old"), pod("p2", "old")]
    assert plan(wish(recreate=True), old) == Plan(0, ("p1", "p2"))
    assert plan(wish(recreate=True), []) == Plan(3, ())


@pytest.mark.parametrize(
    ("spec", "surge", "unavailable"),
    [
        ({}, 2, 1),
        ({"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}}, 0, 1),
        ({"strategy": {"rollingUpdate": {"maxSurge": "50%", "maxUnavailable": 2}}}, 3, 2),
    ],
)
def test_percentages_are_rounded_as_kubernetes_does(
    spec: dict[str, object], surge: int, unavailable: int
) -> None:
    found = wish_of("Deployment", 5, spec, "h")
    assert (found.surge, found.unavailable) == (surge, unavailable)


facts = st.lists(
    st.builds(
        PodFact,
        uid=st.uuids().map(str),
        template_hash=st.sampled_from(["new", "old", "older"]),
        created=st.integers(0, 5),
        ready=st.booleans(),
        failed=st.booleans(),
        terminating=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda p: p.uid,
)


@given(facts, st.randoms(use_true_random=False))
def test_order_does_not_matter(pods: list[PodFact], rng: random.Random) -> None:
    mixed = list(pods)
    rng.shuffle(mixed)
    assert plan(wish(), pods) == plan(wish(), mixed)


@given(facts, st.integers(0, 6), st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_carried_out_over_and_over_it_ends_at_the_wish(
    pods: list[PodFact], replicas: int, surge: int, unavailable: int, recreate: bool
) -> None:
    if not surge and not unavailable:
        unavailable = 1
    goal = Wish(replicas, "new", surge, unavailable, recreate)
    pods = [p for p in pods if not p.terminating]
    for turn in range(100):
        step = plan(goal, pods)
        if step.idle:
            break
        pods = [p for p in pods if p.uid not in step.retire]
        pods = [PodFact(p.uid, p.template_hash, p.created, ready=True, failed=p.failed) for p in pods]
        pods += [PodFact(f"n{turn}-{i}", "new", 10 + turn, ready=True) for i in range(step.tender)]
        assert recreate or len(pods) <= replicas + surge + 12
    assert len(pods) == replicas
    assert all(p.template_hash == "new" and not p.failed for p in pods)


@given(st.integers(1, 6), st.integers(0, 3))
def test_a_rollout_never_goes_below_what_must_be_available(replicas: int, unavailable: int) -> None:
    goal = Wish(replicas, "new", 1, unavailable)
    pods = [PodFact(f"o{i}", "old", i, ready=True) for i in range(replicas)]
    for turn in range(60):
        step = plan(goal, pods)
        if step.idle:
            break
        pods = [p for p in pods if p.uid not in step.retire]
        assert sum(p.ready for p in pods) >= replicas - unavailable
        pods += [PodFact(f"n{turn}-{i}", "new", turn, ready=True) for i in range(step.tender)]
        assert len(pods) <= replicas + 1
    assert {p.template_hash for p in pods} == {"new"}
