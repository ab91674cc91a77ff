"""The decisions of a guest's init, without I/O: who gets which signal, who is ended when, and with what it all ends.

One process is the *app*; others are put beside it. It ends all: when it has ended, so do they, at once, as in a container
whose first process has ended. Told to end (SIGTERM or SIGINT), the app is asked, and has the grace; the others go on as long
as it does. What has ended is not run again: that is the machine's to do, in a new guest.
"""

from __future__ import annotations

import signal
from typing import Final, NamedTuple

END_S: Final = 2.0
"""Seconds that killed processes may take to end before the guest ends without that, a guess."""
_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT})


class Send(NamedTuple):
    """Give a running process a signal: alone, or with its group."""

    process: int
    number: int
    group: bool


class Exit(NamedTuple):
    """All is over: end with this code."""

    code: int


Output = Send | Exit


class Supervisor:
    """See the module. Times are monotonic seconds; processes are known by numbers of their own while they run.

    Events out of turn (a second app, the end of what does not run) raise ValueError and change nothing.
    """

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._app: int | None = None
        self._code: int | None = None  # what the app ended with
        self._grace = 0.0
        self._kill_at: float | None = None  # when the app's grace is over
        self._over_at: float | None = None  # when it ends, whatever still runs
        self._over = False

    def started(self, process: int, grace: float | None = None) -> None:
        """A process runs; with a ``grace`` it is the app."""
        if process in self._running or (grace is not None and self._app is not None):
            raise ValueError(f"process {process} runs already, or there is an app")
        self._running.add(process)
        if grace is not None:
            self._app, self._grace = process, grace

    def ended(self, process: int, code: int, now: float) -> list[Output]:
        """A process has ended with a code (128 + n by signal n)."""
        if process not in self._running:
            raise ValueError(f"process {process} does not run")
        self._running.discard(process)
        if process == self._app:
            self._code = code
            self._over_at = now + END_S
            return self._kill(self._running) or self._exit()
        return self._exit() if self._code is not None and not self._running else []

    def signalled(self, process: int, number: int, now: float) -> list[Output]:
        """The machine has a signal for a process."""
        if process not in self._running:
            return []
        if process == self._app and number in _ENDING and self._kill_at is None:
            self._kill_at = now + self._grace
        return [Send(process, number, process != self._app)]

    def told(self, number: int, now: float) -> list[Output]:
        """The init itself has got a signal: one to end, or one for the app."""
        if self._app is None:
            return self._exit(128 + number) if number in _ENDING else []
        return self.signalled(self._app, number, now)

    def lost(self, process: int) -> list[Output]:
        """Nobody waits for a process any more: it is killed. Without the app all ends."""
        return self._kill({process} & self._running)

    def poll(self, now: float) -> list[Output]:
        """What has become due."""
        if self._over_at is not None:
            return self._exit() if now >= self._over_at else []
        if self._kill_at is not None and now >= self._kill_at and self._app in self._running:
            self._kill_at = float("inf")
            return [Send(self._app, signal.SIGKILL, False)]
        return []

    def next_timeout(self) -> float | None:
        """When :meth:`poll` has something to do; None: not before an event."""
        due = self._kill_at if self._over_at is None else self._over_at
        return None if self._over or due == float("inf") else due

    def _kill(self, processes: set[int]) -> list[Output]:
        return [Send(process, signal.SIGKILL, process != self._app) for process in sorted(processes)]

    def _exit(self, code: int = 0) -> list[Output]:
        if self._over:
            return []
        self._over = True
        return [Exit(code if self._code is None else self._code)]
