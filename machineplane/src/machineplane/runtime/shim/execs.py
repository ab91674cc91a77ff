"""Processes that were put into running containers: who asked for them, and what became of them.

Such a process lives no longer than the connection that asked for it. It is a child of the shim (libcrun's intermediate
processes have ended, and the shim is the subreaper), so its id is its own until it is reaped.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from typing import NamedTuple

from machineplane.runtime.shim import calls
from machineplane.runtime.shim.state import Container
from machineplane.runtime.shim.wire import Message

MAX_EXECS = 32
"""Such processes of a pod at a time, a guess; one more is refused."""

Tell = Callable[[Message], None]
Finish = Callable[[Message], None]
CallOut = Callable[[Callable[[], Message], Finish, calls.Stdio | None], None]


class Refused(Exception):
    """This process cannot be started; the text goes back to the daemon."""


class _Exec(NamedTuple):
    owner: object
    tell: Tell
    pid: int
    """0 while libcrun is still at it."""
    doomed: bool
    """Its asker has gone, so it is to be killed as soon as it is there."""


class Execs:
    """All of one pod."""

    def __init__(self, tools: calls.Tools, call: CallOut, unclaimed: dict[int, int]) -> None:
        self._tools = tools
        self._call = call
        self._unclaimed = unclaimed
        self._found: dict[int, _Exec] = {}

    def start(
        self,
        container: Container,
        message: Message,
        stdio: calls.Stdio,
        owner: object,
        tell: Tell,
        reply: Finish,
    ) -> None:
        """Begin; ``tell`` gets the event of its end, always after the reply."""
        number, args = int(message["exec"]), [str(word) for word in message["args"]]
        console = str(message["console"])
        if container.status != "running":
            raise Refused(f"the container is {container.status}, not running")
        if number in self._found or not args:
            raise Refused("no command, or a number that is in use")
        if len(self._found) >= MAX_EXECS:
            raise Refused(f"{MAX_EXECS} processes were put into this pod already; end one of them first")
        self._found[number] = _Exec(owner, tell, 0, False)

        def finish(answer: Message) -> None:
            reply(answer)
            if answer.get("ok"):
                self._started(number, int(answer["pid"]))
            else:
                del self._found[number]

        tools = self._tools
        self._call(lambda: calls.execute(tools, container.id, number, args, console), finish, stdio)

    def _started(self, number: int, pid: int) -> None:
        fresh = self._found[number] = self._found[number]._replace(pid=pid)
        if pid in self._unclaimed:  # a short program ends before libcrun's call has answered
            self.claim(pid, self._unclaimed.pop(pid))
        elif fresh.doomed:
            _kill(pid, signal.SIGKILL)

    def signal(self, number: int, which: int) -> None:
        """Signal a process and its group; one that has ended, or was never there, is fine."""
        found = self._found.get(number)
        if found is None:
            return
        if found.pid:
            _kill(found.pid, which)
        else:
            self._found[number] = found._replace(doomed=True)

    def forget(self, owner: object) -> None:
        """The connection is gone: end all that it asked for."""
        for number, found in list(self._found.items()):
            if found.owner is owner:
                self.signal(number, signal.SIGKILL)

    def claim(self, pid: int, status: int) -> bool:
        """Whether the process that ended with this wait status was one of ours; tells of its end if so."""
        number = next((number for number, found in self._found.items() if found.pid == pid), None)
        if number is None:
            return False
        code = os.waitstatus_to_exitcode(status)
        self._found.pop(number).tell(
            {"event": "exec-exit", "exec": number, "exit_code": code if code >= 0 else 128 - code}
        )
        return True


def _kill(pid: int, which: int) -> None:
    """A process and its group, which libcrun begins with each exec: it is led by an intermediate process that has ended.

    The process is not reaped, so neither number can be another's; only where it is in our own group it dies alone.
    """
    with contextlib.suppress(ProcessLookupError):
        group = os.getpgid(pid)
        if group == os.getpgid(0):
            os.kill(pid, which)
        else:
            os.killpg(group, which)
