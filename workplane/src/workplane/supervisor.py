"""Runs programs as a first process must: reaps orphans, passes signals on, restarts, and ends all in order.

``python -m workplane.supervisor [--grace SECONDS] [--restart never|on-failure|always] -- PROGRAM… [-- PROGRAM…]``. What is
decided is in `workplane.supervision`. It needs no package but attrs, and runs as the first process of a machine or
container, or, as a subreaper, anywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from typing import Final

from workplane.supervision import Exit, Output, Restart, Start, Supervisor

GRACE_S: Final = 30.0
"""Kubernetes' default ``terminationGracePeriodSeconds``."""
NOT_RUN, NOT_FOUND = 126, 127  # as shells have it

_PASSED_ON = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT)
_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, *_PASSED_ON)
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


class Runner:
    """Carries a supervisor's decisions out, in one thread."""

    def __init__(self, programs: Sequence[Sequence[str]], supervisor: Supervisor) -> None:
        self._programs = programs
        self._supervisor = supervisor
        self._running: dict[int, int] = {}
        self._code: int | None = None

    def run(self) -> int:
        """Until all is over; the exit code. Takes this process's signals."""
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        reader, writer = os.pipe()
        for fd in (reader, writer):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in _HEARD:
            signal.signal(number, lambda *_: None)
        self._carry_out(self._supervisor.start(time.monotonic()))
        while self._code is None:
            until = self._supervisor.next_timeout()
            wait = None if until is None else max(until - time.monotonic(), 0)
            if select.select([reader], [], [], wait)[0]:
                self._hear(os.read(reader, 4096))
            self._carry_out(self._supervisor.poll(time.monotonic()))
        return self._code

    def _hear(self, numbers: bytes) -> None:
        for number in numbers:
            if number != signal.SIGCHLD:
                self._carry_out(self._supervisor.signalled(number, time.monotonic()))
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                program = self._running.pop(found[0], None)
                if program is not None:  # else an orphan
                    code = os.waitstatus_to_exitcode(found[1])
                    self._ended(program, code if code >= 0 else 128 - code)

    def _ended(self, program: int, code: int) -> None:
        self._carry_out(self._supervisor.ended(program, code, time.monotonic()))

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Start(program):
                    self._start(program)
                case Exit(code):
                    self._code = code
                case _:
                    for pid in [pid for pid, program in self._running.items() if program == output.program]:
                        os.kill(pid, output.number)  # ours, and not reaped: the number is its own

    def _start(self, program: int) -> None:
        words = list(self._programs[program])
        try:
            pid = os.posix_spawnp(words[0], words, os.environ, setsigmask=(), setsigdef=_HEARD)
        except OSError as error:
            print(f"{words[0]} cannot be run: {error.strerror}", file=sys.stderr)
            self._ended(program, NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUN)
            return
        self._running[pid] = program


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="workplane.supervisor",
        description="Options, then `--` before each program; the last is the app.",
    )
    parser.add_argument("--grace", type=float, default=GRACE_S, metavar="SECONDS")
    parser.add_argument("--restart", type=Restart, choices=list(Restart), default=Restart.NEVER)
    options = parser.parse_args(words[:at])
    programs: list[list[str]] = []
    for word in words[at:]:
        if word == "--":
            programs.append([])
        else:
            programs[-1].append(word)
    if not programs or not all(programs):
        parser.error("give `--` and a program, one or more")
    if not options.grace >= 0:
        parser.error("--grace is seconds, from 0 on")
    return Runner(programs, Supervisor([options.restart] * len(programs), options.grace)).run()


if __name__ == "__main__":
    sys.exit(main())
