"""The folder that a pod's agent shares with the machine: the socket, and the token that is read once.

It is a file system in memory that the pod's helper mounted in its own mount namespace. It belongs to the agent, which may do
there what it likes: links, folders in place of files. So nothing is followed, nothing is read, and what cannot be put there
is this pod's trouble alone.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from machineplane.runtime.bundle.config import NOBODY
from machineplane.runtime.errors import HelperLost

SOCKET, CREDENTIALS, STATE = "machine.sock", "credentials", "state"
_BACKLOG = 64


class AgentFolder:
    """The folder. Use :func:`open_agent_folder`. Blocking, but for memory only; its methods raise OSError."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def make_state(self, *, founder: bool) -> None:
        """The folder for what must outlive the agent and not the pod, unless it is there; marked for a ``founder``."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(STATE, 0o700, dir_fd=self._fd)
            if founder:
                self._create(f"{STATE}/founder", b"")
            os.chown(STATE, NOBODY, NOBODY, dir_fd=self._fd, follow_symlinks=False)

    def hand_over(self, token: str) -> None:
        """Leave the token for the next agent."""
        self._remove(CREDENTIALS)
        self._create(CREDENTIALS, json.dumps({"token": token}).encode())

    def _create(self, name: str, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o400, dir_fd=self._fd)
        with open(fd, "wb") as file:
            file.write(content)
            os.fchown(fd, NOBODY, NOBODY)

    def listen(self) -> trio.SocketListener:
        """A new socket in the place of an earlier daemon's."""
        self._remove(SOCKET)
        path = f"/proc/self/fd/{self._fd}/{SOCKET}"
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            os.fchmod(sock.fileno(), 0o600)  # the mode that the file gets
            sock.bind(path)
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
            sock.listen(_BACKLOG)
            stack.pop_all()
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)


@contextmanager
def open_agent_folder(pod_dir: Path, helper_pid: int) -> Iterator[AgentFolder]:
    """The agent's folder of a pod whose helper is the process ``helper_pid``.

    Raises:
        HelperLost: that process is gone, or has no such file system: no token is ever written to disk.
    """
    path = Path(f"/proc/{helper_pid}/root{pod_dir}") / "agent"
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise HelperLost(f"the agent's folder cannot be entered ({error.strerror})") from error
    try:
        if os.fstat(fd).st_dev == pod_dir.stat().st_dev:
            raise HelperLost("the agent's folder is no file system in memory")
        yield AgentFolder(fd)
    finally:
        os.close(fd)
