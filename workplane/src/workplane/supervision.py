"""The decisions of a supervisor, without I/O: which program starts when, who is told to end, and with what it all ends.

Programs start in their order. The last is the *app*: when it has ended and is not to run again, so do the others, in the
reverse of their order; likewise when the supervisor itself is told to end. Each is asked (SIGTERM) once those after it
have ended; what is left at the end of the grace is killed.
"""

from __future__ import annotations

import enum
import signal
from collections.abc import Sequence
from typing import Final

from attrs import define, field, frozen

FIRST_BACKOFF_S: Final = 10.0
"""Seconds before the second restart; the first is at once. These three are Kubernetes', machineplane-spec, "Pods"."""
MAX_BACKOFF_S: Final = 300.0
STEADY_S: Final = 600.0
"""Who ran that long is restarted as for the first time."""
_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT})


class Restart(enum.Enum):
    """When a program that has ended is run again."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


@frozen
class Start:
    """Run this program now."""

    program: int


@frozen
class Send:
    """Give a running program a signal."""

    program: int
    number: int


@frozen
class Exit:
    """All is over: end with this code."""

    code: int


Output = Start | Send | Exit


@define
class _State:
    restart: Restart
    running: bool = False
    since: float = 0.0
    again_at: float | None = None
    backoff: float | None = None
    asked: bool = False


@define
class Supervisor:
    """See the module. Times are monotonic seconds; ``grace`` is for all programs together.

    Events out of turn (the end of what does not run) raise ValueError and change nothing.
    """

    restarts: Sequence[Restart]
    grace: float
    _states: list[_State] = field(init=False)
    _code: int | None = None  # what the app ended with
    _told: int = 0  # the signal by which this supervisor was told to end
    _deadline: float | None = None  # since when all is to end
    _killed: bool = False
    _over: bool = False

    def __attrs_post_init__(self) -> None:
        if not self.restarts:
            raise ValueError("a supervisor needs a program")
        self._states = [_State(restart) for restart in self.restarts]

    @property
    def app(self) -> int:
        """The program by which all ends."""
        return len(self._states) - 1

    def start(self, now: float) -> list[Output]:
        """Begin."""
        return [self._start(program, now) for program in range(len(self._states))]

    def ended(self, program: int, code: int, now: float) -> list[Output]:
        """A program has ended with a code (128 + n by signal n; 126 or 127 where it could not be run)."""
        state = self._states[program]
        if not state.running:
            raise ValueError(f"program {program} does not run")
        state.running = False
        if program == self.app:
            self._code = code
        if self._deadline is not None:
            return self._go_on(now)
        if state.restart is Restart.ALWAYS or (state.restart is Restart.ON_FAILURE and code):
            return self._restart(program, now)
        return self._end(now) if program == self.app else []

    def signalled(self, number: int, now: float) -> list[Output]:
        """This process got a signal: to end, or one for the app."""
        if number in _ENDING:
            self._told = self._told or number
            return self._end(now) if self._deadline is None else []
        return [Send(self.app, number)] if self._states[self.app].running else []

    def poll(self, now: float) -> list[Output]:
        """What has become due."""
        if self._deadline is not None:
            return self._go_on(now)
        due = [p for p, s in enumerate(self._states) if s.again_at is not None and s.again_at <= now]
        return [self._start(program, now) for program in due]

    def next_timeout(self) -> float | None:
        """When :meth:`poll` has something to do; None: not before an event."""
        if self._deadline is not None:
            return None if self._killed else self._deadline
        return min((s.again_at for s in self._states if s.again_at is not None), default=None)

    def _start(self, program: int, now: float) -> Start:
        state = self._states[program]
        state.running, state.since, state.again_at = True, now, None
        return Start(program)

    def _restart(self, program: int, now: float) -> list[Output]:
        state = self._states[program]
        if state.backoff is None or now - state.since >= STEADY_S:
            state.backoff = 0.0
            return [self._start(program, now)]
        state.backoff = min(2 * state.backoff or FIRST_BACKOFF_S, MAX_BACKOFF_S)
        state.again_at = now + state.backoff
        return []

    def _end(self, now: float) -> list[Output]:
        self._deadline = now + self.grace
        return self._go_on(now)

    def _go_on(self, now: float) -> list[Output]:
        """Ask the last that runs; past the deadline kill all that do; exit when none does."""
        running = [program for program, state in enumerate(self._states) if state.running]
        if not running:
            if self._over:
                return []
            self._over = True
            return [Exit(128 + self._told if self._code is None else self._code)]
        if self._deadline is not None and now >= self._deadline and not self._killed:
            self._killed = True
            return [Send(program, signal.SIGKILL) for program in running]
        last = self._states[running[-1]]
        if last.asked or self._killed:
            return []
        last.asked = True
        return [Send(running[-1], signal.SIGTERM)]
