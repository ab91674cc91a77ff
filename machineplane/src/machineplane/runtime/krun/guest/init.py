"""A guest's first program: starts what it is asked to over a vsock port, reaps, and ends with the machine's own program.

Where `LISTENER` is in the environment the kernel is not the guest's own: connections come by that descriptor, a listening
Unix socket, and nothing is mounted. That is how it runs as an ordinary process.
"""

import contextlib
import ctypes
import os
import selectors
import signal
import socket
import sys
from typing import Final

from .session import Session
from .wakeups import wake_pipe

PORT: Final = 4750
"""The vsock port that it listens on, a guess: any that nothing else in the guest has."""
LISTENER: Final = "MAGIK_GUEST_LISTENER"
ROOT: Final = "/image"
MAX_SESSIONS: Final = 64
"""Processes at a time; one more is closed at once. The machine's side stops earlier (32 of a pod)."""
UNUSED: Final = 125
"""What it ends with where the machine's own program never came."""

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC = (
    1,
    2,
    4,
    8,
    0x1000,
    0x4000,
)  # <linux/mount.h>


class Init:
    """All processes of one guest, in one thread."""

    def __init__(self, listener: socket.socket, root: str = ROOT) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._root = root
        self._sessions: set[Session] = set()
        self._code: int | None = None

    def run(self) -> int:
        """Serve until the machine's own program has ended; its exit code."""
        # The first process may be libkrun's own init.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        reader = wake_pipe([signal.SIGCHLD])
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, lambda _: self._accept())
        self._selector.register(reader, selectors.EVENT_READ, lambda _: self._reap(reader))
        while self._code is None:
            for key, events in self._selector.select():
                # An earlier event of this round may have closed the descriptor, and even given its number away.
                if self._selector.get_map().get(key.fd) is key:
                    key.data(events)
        return self._code

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if len(self._sessions) >= MAX_SESSIONS:
                connection.close()
                return
            self._sessions.add(Session(self._selector, connection, self._root, self._over))

    def _reap(self, reader: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 4096)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                found = next((one for one in self._sessions if one.pid == pid and one.code is None), None)
                if found is not None:
                    if found.first:
                        os.sync()  # what it wrote is with the host before anybody hears of its end
                    found.ended(status)

    def _over(self, session: Session) -> None:
        self._sessions.discard(session)
        if session.first:
            self._code = UNUSED if session.code is None else session.code


def furnish(root: str = ROOT) -> None:
    """Give the program's root what a container's has: /proc, /sys and the devices. For a kernel of one's own.

    Files that are there below /dev, such as the one for last words, stay in sight.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, name: str, kind: str, flags: int) -> None:
        target = root + name
        with contextlib.suppress(OSError):
            os.makedirs(target, exist_ok=True)
        if libc.mount(source.encode(), target.encode(), kind.encode(), flags, None):
            print(f"init: {name}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)

    kept = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(root + "/dev"):
            if entry.is_file(follow_symlinks=False):
                kept.append((entry.name, os.open(entry.path, os.O_RDWR | os.O_CLOEXEC)))
    hidden = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    mount("proc", "/proc", "proc", hidden)
    mount("sysfs", "/sys", "sysfs", hidden | _MS_RDONLY)
    mount("/dev", "/dev", "", _MS_BIND | _MS_REC)
    for name, fd in kept:
        with contextlib.suppress(OSError):
            os.close(os.open(f"{root}/dev/{name}", os.O_WRONLY | os.O_CREAT, 0o666))
        if libc.mount(f"/proc/self/fd/{fd}".encode(), f"{root}/dev/{name}".encode(), b"", _MS_BIND, None):
            print(f"init: /dev/{name}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        os.close(fd)
    with contextlib.suppress(OSError), open(root + "/etc/hostname") as file:
        socket.sethostname(file.read().strip())


def main() -> None:
    """Until the machine's own program has ended; ends with its code."""
    given = os.environ.pop(LISTENER, "")
    if given:
        listener = socket.socket(fileno=int(given))
    else:
        furnish()
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind((socket.VMADDR_CID_ANY, PORT))
        listener.listen(MAX_SESSIONS)
    os.set_inheritable(listener.fileno(), False)
    sys.exit(Init(listener).run())
