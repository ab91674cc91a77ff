"""How the agent ends, and what a first process owes its orphans."""

from __future__ import annotations

import os
import signal
from typing import Final

import structlog
import trio
from attrs import define, field

from magik_proto.passes import Pass
from magik_proto.wire import decode_as
from workplane.clock import wall_ms

DISPOSED: Final = 143
"""The exit status of a replica whose workload is disposed of: as if SIGTERM had killed it."""

LOOK_S: Final = 3600.0
"""Between two looks at the wall clock, which may be set meanwhile. A guess."""


@define
class Ending:
    """Whether the agent was told to end, and with which exit status; the first word counts."""

    code: int = 0
    told: trio.Event = field(factory=trio.Event)

    def tell(self, code: int, why: str) -> None:
        """End in order."""
        if not self.told.is_set():
            self.code = code
            structlog.get_logger().info("ending", why=why, code=code)
            self.told.set()


async def end_with_pass(ending: Ending, shown: bytes | None) -> None:
    """End in order when nine tenths of the pass are over: the machine starts the agent anew, and it gets a new pass."""
    if shown is None:
        return
    passport = decode_as(Pass, shown)
    until = passport.expires - (passport.expires - passport.issued) // 10
    while (left := (until - wall_ms()) / 1000) > 0:  # noqa: ASYNC110 - the wall clock tells nobody
        await trio.sleep(min(left, LOOK_S))
    ending.tell(0, "the pass is about to end")


async def watch_signals(
    ending: Ending, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """SIGTERM and SIGINT end the agent; as the first process of a PID namespace it also reaps orphans."""
    first = os.getpid() == 1
    heard = [signal.SIGTERM, signal.SIGINT, *([signal.SIGCHLD] if first else [])]
    with trio.open_signal_receiver(*heard) as arriving:
        task_status.started()
        async for number in arriving:
            if number == signal.SIGCHLD:
                reap()
            else:
                ending.tell(0, signal.Signals(number).name)


def reap() -> int:
    """Take the exit of every orphan that has ended; how many. The agent starts no process of its own."""
    count = 0
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            count += 1
    except ChildProcessError:
        pass
    return count
