"""A microVM's init: starts what it is asked to over a vsock port, passes signals on, reaps, and ends all with the app.

Where `LISTENER` is in the environment the kernel is not the guest's own: connections come by that descriptor, a listening
Unix socket, and nothing is mounted. That is how it runs as an ordinary process. What it decides is in `supervision`.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from magik_proto import guest as wire
from workplane.guest.furnish import furnish
from workplane.guest.session import Session
from workplane.guest.supervision import Exit, Output, Supervisor

LISTENER: Final = "MAGIK_GUEST_LISTENER"
MAX_SESSIONS: Final = 64
"""Processes at a time; one more is closed at once. The machine's side stops earlier (32 of a pod)."""
UNUSED: Final = 125
"""What it ends with where the app never came, or its peer went away."""
DEFAULT_GRACE_S: Final = 30.0
"""Kubernetes' default ``terminationGracePeriodSeconds``."""

_PASSED_ON = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, *_PASSED_ON)
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


class Init:
    """All processes of one guest, in one thread. ``prepare`` is called with what the app's frame says, before it starts."""

    def __init__(
        self,
        listener: socket.socket,
        root: str = wire.APP,
        prepare: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._root = root
        self._prepare = prepare
        self._supervisor = Supervisor()
        self._sessions: set[Session] = set()
        self._app: Session | None = None
        self._code: int | None = None

    def run(self) -> int:
        """Serve until the app has ended, and its peer has been told; its exit code."""
        # The first process may be libkrun's own init.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        reader = _wake_pipe()
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, lambda _: self._accept())
        self._selector.register(reader, selectors.EVENT_READ, lambda _: self._hear(reader))
        while self._code is None:
            until = self._supervisor.next_timeout()
            for key, events in self._selector.select(
                None if until is None else max(until - time.monotonic(), 0)
            ):
                # An earlier event of this round may have closed the descriptor, and even given its number away.
                if self._selector.get_map().get(key.fd) is key:
                    key.data(events)
            self._carry_out(self._supervisor.poll(time.monotonic()))
        return self._code

    # -- what sessions ask for

    def admit(self, process: Mapping[str, Any]) -> bool:
        """Whether this process may be started now: the app first and once, others after it."""
        if not process.get("first"):
            return self._app is not None and self._app.code is None
        if self._app is None:
            self._prepare(process)
            return True
        return False

    def started(self, session: Session, process: Mapping[str, Any]) -> None:
        """Its process runs."""
        if process.get("first"):
            self._app = session
            self._supervisor.started(session.pid, float(process.get("grace", DEFAULT_GRACE_S)))
        else:
            self._supervisor.started(session.pid)

    def signal(self, session: Session, number: int) -> None:
        """The peer has a signal for it."""
        self._carry_out(self._supervisor.signalled(session.pid, number, time.monotonic()))

    def over(self, session: Session) -> None:
        """Its connection is closed: all is said, or the peer has gone."""
        self._sessions.discard(session)
        if session.pid and session.code is None:
            self._carry_out(self._supervisor.lost(session.pid))
        elif session.first:
            self._code = UNUSED if session.code is None else session.code

    # -- events

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if len(self._sessions) >= MAX_SESSIONS:
                connection.close()
                return
            self._sessions.add(Session(self._selector, connection, self._root, self))

    def _hear(self, reader: int) -> None:
        for number in os.read(reader, 4096):
            if number != signal.SIGCHLD:
                self._carry_out(self._supervisor.told(number, time.monotonic()))
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._reaped(pid, status)

    def _reaped(self, pid: int, status: int) -> None:
        sessions = (*self._sessions, *((self._app,) if self._app else ()))  # the app's may be closed
        found = next((one for one in sessions if one.pid == pid and one.code is None), None)
        code = os.waitstatus_to_exitcode(status)
        code = code if code >= 0 else 128 - code
        if found is not None:
            found.ended(code)
        with contextlib.suppress(ValueError):  # an orphan
            self._carry_out(self._supervisor.ended(pid, code, time.monotonic()))

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, Exit):
                self._end(output.code)
                continue
            with contextlib.suppress(OSError):  # ours, and not reaped: the number is its own
                (os.killpg if output.group else os.kill)(output.process, output.number)

    def _end(self, code: int) -> None:
        """All have ended. What the app wrote is with the host before anybody hears of its end."""
        os.sync()
        if self._app is None:
            self._code = code
        elif self._app in self._sessions:
            self._app.tell_end()
        else:
            self._code = UNUSED


def _wake_pipe() -> int:
    """From now on each signal of `_HEARD` is a byte by this descriptor, and nothing else. It never blocks."""
    reader, writer = os.pipe()
    for fd in (reader, writer):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _HEARD:
        signal.signal(number, lambda *_: None)
    return reader


def own_kernel(process: Mapping[str, Any]) -> None:
    """What is done once for the app, where the kernel is the guest's own."""
    kept = [path for path in process.get("dev") or () if isinstance(path, str)]
    furnish(wire.APP, kept, privileged=bool(process.get("privileged")))


def main() -> None:
    """Until the app has ended; ends with its code."""
    given = os.environ.pop(LISTENER, "")
    if given:
        init = Init(socket.socket(fileno=int(given)))
    else:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((socket.VMADDR_CID_ANY, wire.PORT))
        listener.listen(MAX_SESSIONS)
        init = Init(listener, prepare=own_kernel)
    sys.exit(init.run())


if __name__ == "__main__":
    main()
