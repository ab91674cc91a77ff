"""When a replica is taken for dead: properties of the machine, without I/O and with times that are made up."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from workplane.vigil import BETTER_S, LAG_S, MAX_SCORE, PING_S, PINGS, WORSE_S, Inquiry, LocalHealth, Verdict

ROUNDS = st.lists(
    st.fixed_dictionaries(
        {
            "lag": st.floats(0.0, 3.0),
            "others_silent": st.booleans(),
            "witnesses": st.integers(0, 3),
            "asked": st.integers(0, 3),
        }
    ),
    max_size=40,
)


def run(inquiry: Inquiry, rounds: list[dict[str, Any]], now: float = 0.0) -> float:
    for said in rounds:
        if inquiry.verdict is not Verdict.UNSURE:
            break
        now = inquiry.ask(now) + said["lag"]
        inquiry.silent(now, **{name: value for name, value in said.items() if name != "lag"})
    return now


def quiet(number: int) -> list[dict[str, Any]]:
    return [{"lag": 0.0, "others_silent": False, "witnesses": 0, "asked": 0}] * number


def test_where_all_else_is_well_the_dead_are_known_after_three_rounds() -> None:
    inquiry = Inquiry(LocalHealth())
    assert run(inquiry, quiet(10)) == PINGS * PING_S
    assert inquiry.verdict is Verdict.DEAD


def test_witnesses_are_sought_from_the_second_round_on() -> None:
    inquiry = Inquiry(LocalHealth())
    inquiry.ask(0.0)
    assert not inquiry.seeks_witnesses
    inquiry.silent(0.5, others_silent=False, witnesses=0, asked=0)
    inquiry.ask(0.5)
    assert inquiry.seeks_witnesses


@given(ROUNDS)
def test_no_round_that_our_own_lag_spoilt_counts(rounds: list[dict[str, Any]]) -> None:
    inquiry = Inquiry(LocalHealth())
    run(inquiry, [{**said, "lag": LAG_S + 0.01 + said["lag"]} for said in rounds])
    assert inquiry.verdict is Verdict.UNSURE


@given(ROUNDS, st.integers(0, MAX_SCORE))
def test_the_dead_are_known_in_bounded_time_however_slow_we_are(
    rounds: list[dict[str, Any]], score: int
) -> None:
    inquiry = Inquiry(LocalHealth(score))
    now = run(inquiry, [{**said, "lag": 0.0} for said in rounds] + quiet(PINGS))
    assert inquiry.verdict is Verdict.DEAD
    assert PINGS * PING_S <= now <= PINGS * PING_S * (1 + MAX_SCORE)


@given(ROUNDS)
def test_a_sign_of_life_ends_it_whatever_was_before(rounds: list[dict[str, Any]]) -> None:
    inquiry = Inquiry(LocalHealth())
    now = run(inquiry, rounds)
    if inquiry.verdict is Verdict.UNSURE:
        inquiry.ask(now)
        inquiry.alive(now + 0.1)
        assert inquiry.verdict is Verdict.ALIVE


def test_where_several_are_silent_and_nobody_confirms_it_they_get_more_time() -> None:
    several = [{"lag": 0.0, "others_silent": True, "witnesses": 0, "asked": 0}] * 3
    assert run(Inquiry(LocalHealth()), several) > PINGS * PING_S
    confirmed = [{**said, "witnesses": 1, "asked": 1} for said in several]
    assert run(Inquiry(LocalHealth()), confirmed) == PINGS * PING_S
    unanswered = [{**said, "others_silent": False, "asked": 2} for said in several]
    assert run(Inquiry(LocalHealth()), unanswered) > PINGS * PING_S


@given(st.lists(st.tuples(st.floats(0.0, 5.0), st.booleans()), max_size=60))
def test_the_score_stays_in_its_bounds_and_changes_slowly(steps: list[tuple[float, bool]]) -> None:
    health, now, changed = LocalHealth(), 0.0, float("-inf")
    for wait, late in steps:
        now += wait
        before = health.score
        (health.late if late else health.timely)(now)
        assert 0 <= health.score <= MAX_SCORE and abs(health.score - before) <= 1
        if health.score != before:
            assert now - changed >= min(WORSE_S, BETTER_S) or not late or health.score > before
            changed = now


def test_many_who_notice_one_hiccup_count_once_and_it_is_forgotten() -> None:
    health = LocalHealth()
    for _ in range(100):
        health.late(1.0)
    assert health.score == 1
    health.timely(1.1)
    assert health.score == 1
    health.timely(1.0 + BETTER_S)
    assert health.score == 0
