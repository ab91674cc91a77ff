"""What a guest's supervisor decides, by examples and by a model: any history of starts, ends, signals and time."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workplane.guest.supervision import END_S, Exit, Output, Send, Supervisor

GRACE = 5.0
TERM, KILL, HUP = signal.SIGTERM, signal.SIGKILL, signal.SIGHUP
APP, OTHER, THIRD = 10, 20, 30


def running(*others: int) -> Supervisor:
    made = Supervisor()
    made.started(APP, GRACE)
    for other in others:
        made.started(other)
    return made


def test_the_end_of_the_app_ends_all_at_once_and_that_of_another_nothing() -> None:
    made = running(OTHER, THIRD)
    assert made.ended(OTHER, 3, 1) == []
    assert made.ended(APP, 4, 1) == [Send(THIRD, KILL, True)]
    assert made.ended(THIRD, 137, 1) == [Exit(4)]
    assert made.next_timeout() is None and made.poll(100) == []


def test_told_to_end_the_app_is_asked_and_after_the_grace_killed() -> None:
    made = running(OTHER)
    assert made.next_timeout() is None
    assert made.signalled(APP, TERM, 1) == [Send(APP, TERM, False)]
    assert made.signalled(APP, TERM, 3) == [
        Send(APP, TERM, False)
    ]  # passed on again; the grace is that of the first
    assert made.next_timeout() == 6 and made.poll(5.9) == []
    assert made.poll(6) == [Send(APP, KILL, False)] and made.poll(7) == []
    assert made.next_timeout() is None
    assert made.ended(APP, 137, 7) == [Send(OTHER, KILL, True)]


def test_what_does_not_end_though_killed_holds_nothing_up_for_long() -> None:
    made = running(OTHER)
    made.ended(APP, 0, 1)
    assert made.next_timeout() == 1 + END_S and made.poll(1) == []
    assert made.poll(1 + END_S) == [Exit(0)]
    assert made.ended(OTHER, 137, 9) == []


def test_other_signals_are_passed_on_and_begin_no_grace() -> None:
    made = running(OTHER)
    assert made.signalled(OTHER, TERM, 1) == [Send(OTHER, TERM, True)]
    assert made.signalled(APP, HUP, 1) == [Send(APP, HUP, False)]
    assert made.signalled(THIRD, HUP, 1) == []
    assert made.next_timeout() is None


def test_signals_of_its_own_are_the_apps_and_without_one_an_end() -> None:
    assert running().told(HUP, 1) == [Send(APP, HUP, False)]
    assert running().told(TERM, 1) == [Send(APP, TERM, False)]
    early = Supervisor()
    assert early.told(HUP, 1) == []
    assert early.told(TERM, 1) == [Exit(128 + TERM)]


def test_whom_nobody_waits_for_is_killed() -> None:
    made = running(OTHER)
    assert made.lost(OTHER) == [Send(OTHER, KILL, True)]
    assert made.lost(APP) == [Send(APP, KILL, False)]
    assert made.ended(OTHER, 137, 1) == [] and made.lost(OTHER) == []


def test_an_end_or_a_start_out_of_turn_is_an_error() -> None:
    made = running()
    with pytest.raises(ValueError, match="does not run"):
        made.ended(OTHER, 0, 0)
    for process, grace in ((APP, None), (OTHER, GRACE)):
        with pytest.raises(ValueError, match="runs already"):
            made.started(process, grace)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(2, 6), st.just(0)),
        st.tuples(st.just("end"), st.integers(1, 6), st.integers(0, 2)),
        st.tuples(st.just("signal"), st.integers(1, 6), st.sampled_from([TERM, signal.SIGINT, HUP])),
        st.tuples(st.just("lost"), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 100), st.just(0)),
    ),
    max_size=60,
)


@given(steps)
def test_in_any_history(history: list[tuple[str, int, int]]) -> None:
    """Only what runs is signalled, the app is killed no sooner than its grace, and all ends once, with the app's code."""
    made, now, app = Supervisor(), 0.0, 1
    made.started(app, GRACE)
    alive, exits, asked, code, lost = {app}, list[int](), float("inf"), -1, set[int]()

    def see(outputs: list[Output]) -> None:
        for output in outputs:
            assert not exits
            if isinstance(output, Exit):
                assert app not in alive and output.code == code
                exits.append(output.code)
                continue
            assert output.process in alive and output.group is (output.process != app)
            if output.number == KILL and output.process == app:
                assert now >= asked + GRACE or app in lost
            elif output.number == KILL:
                assert app not in alive or output.process in lost

    for kind, which, value in history:
        if kind == "start" and which not in alive and app in alive:
            made.started(which)
            alive.add(which)
            lost.discard(which)
        elif kind == "end" and which in alive:
            alive.discard(which)
            code = value if which == app else code
            see(made.ended(which, value, now))
        elif kind == "signal":
            if which == app and value != HUP:
                asked = min(asked, now)
            see(made.signalled(which, value, now))
        elif kind == "lost":
            lost.add(which)
            see(made.lost(which))
        elif kind == "wait":
            now += which / 10
            see(made.poll(now))
    if app in alive:
        alive.discard(app)
        code = 9
        see(made.ended(app, code, now))
    for which in sorted(alive):
        alive.discard(which)
        see(made.ended(which, 137, now))
    assert len(exits) == 1
