"""What a supervisor decides, by a model: any history of ends, signals and time."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workplane.supervision import Exit, Output, Restart, Send, Start, Supervisor

GRACE = 5.0
TERM, KILL = signal.SIGTERM, signal.SIGKILL


def test_programs_start_in_order_and_end_in_reverse() -> None:
    made = Supervisor([Restart.ALWAYS] * 3, GRACE)
    assert made.start(0) == [Start(0), Start(1), Start(2)]
    assert made.signalled(TERM, 1) == [Send(2, TERM)]
    assert made.signalled(signal.SIGINT, 1) == []
    assert made.ended(0, 1, 2) == []  # by itself, while another is asked: it is not run again
    assert made.ended(2, 9, 2) == [Send(1, TERM)]
    assert made.ended(1, 0, 3) == [Exit(9)]
    assert made.poll(100) == []


def test_what_is_left_after_the_grace_is_killed() -> None:
    made = Supervisor([Restart.NEVER] * 2, GRACE)
    made.start(0)
    made.signalled(TERM, 1)
    assert made.next_timeout() == 6 and made.poll(5.9) == []
    assert made.poll(6) == [Send(0, KILL), Send(1, KILL)]
    assert made.next_timeout() is None
    assert made.ended(1, 137, 6) == [] and made.ended(0, 137, 6) == [Exit(137)]


def test_the_end_of_the_app_ends_all_and_that_of_another_nothing() -> None:
    made = Supervisor([Restart.NEVER, Restart.NEVER, Restart.NEVER], GRACE)
    made.start(0)
    assert made.ended(0, 3, 1) == []
    assert made.ended(2, 4, 1) == [Send(1, TERM)]
    assert made.ended(1, 0, 1) == [Exit(4)]


@pytest.mark.parametrize(
    ("restart", "code", "again"),
    [
        (Restart.NEVER, 1, False),
        (Restart.ON_FAILURE, 0, False),
        (Restart.ON_FAILURE, 1, True),
        (Restart.ALWAYS, 0, True),
    ],
)
def test_who_is_run_again(restart: Restart, code: int, *, again: bool) -> None:
    made = Supervisor([restart], GRACE)
    made.start(0)
    assert made.ended(0, code, 1) == ([Start(0)] if again else [Exit(code)])


def test_restarts_back_off_as_kubernetes_has_it() -> None:
    made, now, waits = Supervisor([Restart.ALWAYS], GRACE), 0.0, []
    made.start(now)
    for _ in range(8):
        if not made.ended(0, 1, now):
            due = made.next_timeout()
            assert due is not None and made.poll(due - 0.1) == []
            waits.append(due - now)
            now = due
            assert made.poll(now) == [Start(0)]
    assert waits == [10, 20, 40, 80, 160, 300, 300]
    assert made.ended(0, 1, now + 600) == [Start(0)]


def test_told_to_end_while_the_app_waits_to_be_run_again() -> None:
    made = Supervisor([Restart.ALWAYS], GRACE)
    made.start(0)
    made.ended(0, 7, 1)
    made.ended(0, 8, 2)
    assert made.signalled(TERM, 3) == [Exit(8)]


def test_other_signals_are_the_apps() -> None:
    made = Supervisor([Restart.NEVER] * 2, GRACE)
    made.start(0)
    assert made.signalled(signal.SIGUSR1, 1) == [Send(1, signal.SIGUSR1)]


def test_an_end_out_of_turn_is_an_error_and_none_is_no_supervisor() -> None:
    made = Supervisor([Restart.NEVER], GRACE)
    with pytest.raises(ValueError, match="does not run"):
        made.ended(0, 0, 0)
    assert made.start(0) == [Start(0)]
    with pytest.raises(ValueError, match="needs a program"):
        Supervisor([], GRACE)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("end"), st.integers(0, 3), st.integers(0, 2)),
        st.tuples(st.just("signal"), st.sampled_from([TERM, signal.SIGINT, signal.SIGHUP]), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, 400), st.just(0)),
    ),
    max_size=60,
)


@given(st.lists(st.sampled_from(list(Restart)), min_size=1, max_size=4), steps)
def test_in_any_history(restarts: list[Restart], history: list[tuple[str, int, int]]) -> None:
    made, now = Supervisor(restarts, GRACE), 0.0
    running: set[int] = set()
    asked: dict[int, float] = {}
    exits: list[int] = []

    def see(outputs: list[Output]) -> None:
        for output in outputs:
            assert not exits
            match output:
                case Start(program):
                    assert program not in running and not asked
                    running.add(program)
                case Exit(code):
                    assert not running
                    exits.append(code)
                case Send(program, number):
                    assert program in running
                    if number == TERM:
                        assert program == max(running) and program not in asked
                        asked[program] = now
                    elif number == KILL:
                        assert now >= min(asked.values()) + GRACE

    see(made.start(now))
    for kind, first, second in history:
        if kind == "end" and first in running:
            running.discard(first)
            see(made.ended(first, second, now))
        elif kind == "signal":
            see(made.signalled(first, now))
        elif kind == "wait":
            now += first / 10
            see(made.poll(now))
    see(made.signalled(TERM, now))
    now += GRACE
    see(made.poll(now))
    for program in sorted(running):
        running.discard(program)
        see(made.ended(program, 137, now))
    assert len(exits) == 1
