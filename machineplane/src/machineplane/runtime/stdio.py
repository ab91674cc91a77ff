"""What a process in a container reads and writes: pipes or a terminal, with the daemon at the other end.

Bytes go through the kernel alone: the shim only passes descriptors on. A pipe that the daemon does not empty stops the
process that writes, and a process that does not read stops the daemon's task, which stops whoever sends.
"""

import array
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from attrs import define, field

from machineplane.channels import STDERR, STDIN, STDOUT
from machineplane.runtime.errors import SessionUnavailable

CONSOLE_TIMEOUT_S = 10.0
"""How long libcrun may take to hand over the terminal of a process that runs already."""


@define
class Stdio:
    """The daemon's ends. ``given`` are the process's 0, 1 and 2 until they have been passed on."""

    given: list[int] = field(factory=list)
    input: trio.lowlevel.FdStream | None = None
    outputs: dict[int, trio.lowlevel.FdStream] = field(factory=dict)
    terminal: int | None = None
    input_ended: Callable[[], Awaitable[None]] | None = None
    """Called once after stdin has been ended."""
    resized: Callable[[int, int], Awaitable[None]] | None = None
    """Called instead of setting the terminal's size, where the terminal is not here."""

    def let_go(self) -> None:
        """The process has its ends: close ours, or the end of its output would never be seen."""
        while self.given:
            os.close(self.given.pop())

    async def resize(self, width: int, height: int) -> None:
        """Tell the terminal's size, in characters; the kernel tells the process (SIGWINCH)."""
        if self.resized is not None:
            await self.resized(width, height)
        elif self.terminal is not None:
            fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    async def close_input(self) -> None:
        """The process reads the end of its input. A terminal has no end but the process's own."""
        if self.input is not None and self.terminal is None:
            await self.input.aclose()
            self.input = None
            if self.input_ended is not None:
                await self.input_ended()

    def take_terminal(self, fd: int) -> None:
        """Use a terminal's other end, which carries both ways."""
        self.terminal = fd
        self.input = trio.lowlevel.FdStream(os.dup(fd))
        self.outputs[STDOUT] = trio.lowlevel.FdStream(os.dup(fd))

    async def aclose(self) -> None:
        """Close everything."""
        self.let_go()
        with trio.CancelScope(shield=True):
            for stream in [*self.outputs.values(), *([self.input] if self.input else [])]:
                await trio.aclose_forcefully(stream)
        if self.terminal is not None:
            os.close(self.terminal)
            self.terminal = None


def make_stdio(wanted: frozenset[int]) -> Stdio:
    """Pipes for the channels in ``wanted``, /dev/null for the others."""
    stdio = Stdio()
    for channel in (STDIN, STDOUT, STDERR):
        if channel not in wanted:
            stdio.given.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            continue
        reader, writer = os.pipe()
        if channel == STDIN:
            stdio.given.append(reader)
            stdio.input = trio.lowlevel.FdStream(writer)
        else:
            stdio.given.append(writer)
            stdio.outputs[channel] = trio.lowlevel.FdStream(reader)
    return stdio


@contextmanager
def console_socket(path: Path) -> Iterator[trio.socket.SocketType]:
    """A listener for :func:`receive_console`; its file goes with the context."""
    path.unlink(missing_ok=True)
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        with socket.socket(fileno=os.dup(sock.fileno())) as plain:
            plain.bind(str(path))
        sock.listen(1)
        yield sock
    finally:
        sock.close()
        path.unlink(missing_ok=True)


async def receive_console(listener: trio.socket.SocketType) -> int:
    """The descriptor of a terminal, as libcrun sends it.

    Raises:
        SessionUnavailable: none came.
    """
    with trio.move_on_after(CONSOLE_TIMEOUT_S):
        sock, _ = await listener.accept()
        with sock:
            room = socket.CMSG_LEN(array.array("i").itemsize)
            _, controls, _, _ = await sock.recvmsg(4096, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in controls:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                return int(array.array("i", data[:4])[0])
    raise SessionUnavailable("libcrun did not hand over a terminal")
