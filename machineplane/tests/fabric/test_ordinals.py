"""What follows for a StatefulSet from its wish and the pods that are there."""

import random
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from machineplane.fabric.ordinals import OrdinalWish, ordinal_wish_of, plan_ordinals
from machineplane.fabric.plan import Plan, PodFact


def wish(replicas: int = 3, **more: Any) -> OrdinalWish:
    return OrdinalWish(replicas, "new", **more)


def pods(text: str) -> list[PodFact]:
    """Each word a pod: its ordinal, then ``-`` not ready, ``o`` of the old template, ``x`` failed, ``e`` ending, ``'`` made
    later than the others. Its uid is the word."""
    return [
        PodFact(
            word,
            "old" if "o" in word else "new",
            created=int("'" in word),
            ready=not set("-x") & set(word),
            failed="x" in word,
            terminating="e" in word,
            ordinal=int(word[0]) if word[0].isdigit() else None,
        )
        for word in text.split()
    ]


ORDERED = [
    ("the lowest first", "", (0,), ""),
    ("then the next", "0", (1,), ""),
    ("which waits for Ready", "0-", (), ""),
    ("all there", "0 1 2", (), ""),
    ("a lost one comes back", "0 2", (1,), ""),
    ("not while one below is not ready", "0- 2", (), ""),
    ("not while its pod is ending", "0 1e 2", (), ""),
    ("a failed one goes first", "0 1x 2", (), "1x"),
    ("down from the highest, one at a time", "0 1 2 3 4", (), "4"),
    ("when the one above is gone", "0 1 2 3 4e", (), ""),
    ("and those below are ready", "0 1- 2 3", (), ""),
    ("a duplicate goes, the older stays", "0 1 1' 2", (), "1'"),
    ("of duplicates the ready one stays", "0 1- 1' 2", (), "1-"),
    ("duplicates before surplus", "0 1 1' 2 3", (), "1' 3"),
    ("a pod without a number is none of ours", "0 1 2 ?", (), "?"),
    ("a roll begins at the highest", "0o 1o 2o", (), "2o"),
    ("one at a time", "0o 1o 2oe", (), ""),
    ("the same number comes back", "0o 1o", (2,), ""),
    ("and has to be ready", "0o 1o 2-", (), ""),
    ("then the next below", "0o 1o 2", (), "1o"),
    ("not while another is not ready", "0- 1o 2", (), ""),
    ("an outdated one that is not ready goes first", "0o-", (), "0o-"),
    ("also below ready ones", "0o- 1o 2o", (), "0o-"),
]


@pytest.mark.parametrize(("case", "there", "tender", "retire"), ORDERED, ids=[c[0] for c in ORDERED])
def test_ordered(case: str, there: str, tender: tuple[int, ...], retire: str) -> None:
    assert plan_ordinals(wish(), pods(there)) == Plan(len(tender), tuple(retire.split()), tender)


PARALLEL = [
    ("all at once", "", (0, 1, 2), ""),
    ("what is missing", "1-", (0, 2), ""),
    ("not what is ending", "1e", (0, 2), ""),
    ("down at once", "0 1 2 3 4-", (), "4- 3"),
    ("a roll goes one by one all the same", "0o 1o 2o", (), "2o"),
    ("waiting for Ready", "0o 1o 2-", (), ""),
]


@pytest.mark.parametrize(("case", "there", "tender", "retire"), PARALLEL, ids=[c[0] for c in PARALLEL])
def test_parallel(case: str, there: str, tender: tuple[int, ...], retire: str) -> None:
    assert plan_ordinals(wish(parallel=True), pods(there)) == Plan(len(tender), tuple(retire.split()), tender)


def test_the_partition_keeps_those_below_as_they_are() -> None:
    assert plan_ordinals(wish(partition=2), pods("0o 1o 2o")).retire == ("2o",)
    assert plan_ordinals(wish(partition=2), pods("0o 1o 2")).idle
    assert plan_ordinals(wish(on_delete=True), pods("0o 1o 2o")).idle


def test_numbers_may_begin_elsewhere() -> None:
    assert plan_ordinals(wish(2, start=5), []).ordinals == (5,)
    assert plan_ordinals(wish(2, start=5), pods("4 5 6")) == Plan(0, ("4",), ())
    assert plan_ordinals(wish(2, start=5, partition=1), pods("5o 6o")).retire == ("6o",)


def test_the_spec_is_read() -> None:
    spec = {
        "podManagementPolicy": "Parallel",
        "ordinals": {"start": 2},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}},
    }
    assert ordinal_wish_of(3, spec, "new") == wish(start=2, parallel=True, partition=1)
    assert ordinal_wish_of(3, {}, "new") == wish()
    assert ordinal_wish_of(3, {"updateStrategy": {"type": "OnDelete"}}, "new") == wish(on_delete=True)


@pytest.mark.parametrize(
    "spec",
    [
        {"podManagementPolicy": "Random"},
        {"ordinals": {"start": -1}},
        {"ordinals": {"start": 2**31 - 2}},
        {"ordinals": 3},
        {"updateStrategy": {"type": "Sudden"}},
        {"updateStrategy": {"rollingUpdate": {"partition": "x"}}},
    ],
)
def test_a_spec_that_cannot_be_read(spec: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        ordinal_wish_of(3, spec, "new")


facts = st.lists(
    st.builds(
        PodFact,
        uid=st.uuids().map(str),
        template_hash=st.sampled_from(["new", "old"]),
        created=st.integers(0, 5),
        ready=st.booleans(),
        failed=st.booleans(),
        terminating=st.booleans(),
        ordinal=st.none() | st.integers(0, 6),
    ),
    max_size=10,
    unique_by=lambda p: p.uid,
)
wishes = st.builds(OrdinalWish, st.integers(0, 5), st.just("new"), st.integers(0, 2), parallel=st.booleans())


@given(wishes, facts, st.randoms(use_true_random=False))
def test_order_does_not_matter(goal: OrdinalWish, there: list[PodFact], rng: random.Random) -> None:
    mixed = list(there)
    rng.shuffle(mixed)
    assert plan_ordinals(goal, there) == plan_ordinals(goal, mixed)


@given(wishes, facts)
def test_it_ends_at_the_wish_and_no_ordinal_is_ever_given_twice(
    goal: OrdinalWish, there: list[PodFact]
) -> None:
    for turn in range(100):
        step = plan_ordinals(goal, there)
        assert not {p.ordinal for p in there} & set(step.ordinals)
        if step.idle and all(p.ready and not p.terminating for p in there):
            break
        there = [p for p in there if not p.terminating]  # what was ending has ended
        there = [evolve(p, ready=not p.failed, terminating=p.uid in step.retire) for p in there]
        there += [PodFact(f"n{turn}-{n}", "new", turn, ready=False, ordinal=n) for n in step.ordinals]
    there = [p for p in there if not p.terminating]
    assert sorted(p.ordinal for p in there if p.ordinal is not None) == list(goal.ordinals)
    assert {p.template_hash for p in there} <= {"new"} and len(there) == goal.replicas


@given(st.integers(1, 5), st.booleans())
def test_a_roll_takes_down_one_ready_pod_at_a_time(replicas: int, parallel: bool) -> None:
    goal = wish(replicas, parallel=parallel)
    there = [PodFact(f"o{n}", "old", 0, ready=True, ordinal=n) for n in range(replicas)]
    went = []
    for turn in range(60):
        step = plan_ordinals(goal, there)
        went += [int(uid[1:]) for uid in step.retire]
        there = [evolve(p, ready=True) for p in there if p.uid not in step.retire]
        assert len(there) >= replicas - 1
        there += [PodFact(f"n{turn}-{n}", "new", turn, ready=False, ordinal=n) for n in step.ordinals]
    assert went == list(reversed(range(replicas)))
    assert {p.template_hash for p in there} == {"new"}
