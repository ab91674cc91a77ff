"""From the monitor's side: run a process in the guest, and be it for whoever started this one.

What comes in by stdin goes to the process, its outputs come out here, signals are passed on, and its exit code is returned.
Where stdin is a terminal the process gets one in the guest, of the same size; the one here is then only a wire.
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
import time
import tty
from collections.abc import Callable, Mapping
from typing import Any

from magik_proto import guest as wire

PASSED_ON = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "ALRM", "CONT", "TSTP", "TTIN", "TTOU", "WINCH")
"""Signals that go to the process; another one would end, or stop, only the one who passes them."""
LOST = 255
"""What it ends with where the guest went away without a word; as ssh does."""
BOOT_S = 300.0
"""How long the guest's init may take to answer, a guess: a minute where virtualisation is emulated, thrice that where the
machine is busy as well. A machine that ends is noticed at once."""
_RETRY_S = 0.02  # a guess: short beside a boot
_CHUNK = 32 * 1024


class Lost(Exception):
    """The guest has gone, or never spoke."""


class Client:
    """One process in the guest. ``look`` is called when a child of this process has ended.

    ``signals`` are numbers that came before, for the process to have as soon as it is there.
    """

    def __init__(
        self,
        connection: socket.socket,
        process: Mapping[str, Any],
        look: Callable[[], None] = lambda: None,
        signals: bytes = b"",
    ) -> None:
        self.started = False
        """Whether the process is, or was, there: before, nothing is lost if another connection is tried."""
        self.signals = signals
        self._connection = connection
        self._look = look
        self._frames = wire.Frames()
        self._outgoing = bytearray()
        self._pending: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self._room = wire.WINDOW
        self._input = True
        self._code: int | None = None
        self._terminal = os.isatty(0)
        wanted = {**process, "terminal": self._terminal}
        if self._terminal:
            tty.setraw(0)
            wanted["size"] = _size()
            if not any(item.startswith("TERM=") for item in wanted["env"]):
                wanted["env"] = [*wanted["env"], "TERM=xterm"]
        self._outgoing += wire.spawn(wanted) + b"".join(map(_signal, signals))
        connection.setblocking(False)
        for fd in (0, 1, 2):
            with contextlib.suppress(OSError):
                os.set_blocking(fd, False)

    def run(self, wake: int) -> int:
        """Until the process has ended and its output is out; its exit code. ``wake`` gives a byte for each signal.

        Raises:
            Lost: the connection ended before.
        """
        while self._code is None or any(self._pending.values()):
            poll = select.poll()
            for fd, events in self._interests(wake).items():
                poll.register(fd, events)
            for fd, events in poll.poll():
                self._handle(fd, events, wake)
        return self._code

    def _interests(self, wake: int) -> dict[int, int]:
        found = {wake: select.POLLIN}
        if self._code is None:
            clear = not any(self._pending.values())  # who does not read its output makes the process wait
            found[self._connection.fileno()] = (select.POLLIN if clear else 0) | (
                select.POLLOUT if self._outgoing else 0
            )
            if self.started and self._input and self._room:
                found[0] = select.POLLIN
        found |= {fd: select.POLLOUT for fd, pending in self._pending.items() if pending}
        return found

    def _handle(self, fd: int, events: int, wake: int) -> None:
        if fd == wake:
            self._signals(os.read(wake, 64))
        elif fd == 0:
            self._read_input()
        elif fd in self._pending:
            self._write(fd)
        else:
            self._exchange(events)

    def _signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGCHLD:
                self._look()
            elif number == signal.SIGWINCH:
                if self._terminal:
                    self._outgoing += wire.resize(*_size())
            else:
                self.signals += bytes([number])
                self._outgoing += _signal(number)

    def _read_input(self) -> None:
        try:
            data = os.read(0, min(_CHUNK, self._room))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._room -= len(data)
        self._input = bool(data)
        self._outgoing += wire.frame(wire.STDIN, data)

    def _write(self, fd: int) -> None:
        pending = self._pending[fd]
        try:
            del pending[: os.write(fd, pending)]
        except BlockingIOError:
            return
        except OSError:  # nobody reads it any more
            pending.clear()

    def _exchange(self, events: int) -> None:
        try:
            if self._outgoing and events & select.POLLOUT:
                self._send()
            if events & ~select.POLLOUT:
                data = self._connection.recv(_CHUNK)
                if not data:
                    raise Lost("the guest has gone")
                for kind, payload in self._frames.feed(data):
                    self._take(kind, payload)
        except BlockingIOError:
            return
        except (OSError, wire.BrokenProtocol) as error:
            raise Lost(str(error)) from error

    def _send(self) -> None:
        try:
            del self._outgoing[: self._connection.send(self._outgoing)]
        except (BrokenPipeError, ConnectionResetError):
            # The process has ended before it took this. What it said before is still to be read, its exit code too.
            self._outgoing.clear()
            self._input = False

    def _take(self, kind: bytes, payload: bytes) -> None:
        if kind == wire.STDOUT:
            self._put(1, payload)
        elif kind == wire.STDERR:
            self._put(2, payload)
        elif kind == wire.TAKEN:
            self._room += wire.count_of(payload)
        elif kind == wire.STARTED:
            self.started = True
        elif kind == wire.EXIT:
            self._code = wire.ending(payload)
        elif kind == wire.REFUSED:
            self._code = wire.ending(payload)
            self._put(2, payload[1:] + (b"\r\n" if self._terminal else b"\n"))
        else:
            raise wire.BrokenProtocol(f"a frame {kind!r} out of turn")

    def _put(self, fd: int, data: bytes) -> None:
        self._pending[fd] += data
        self._write(fd)


def _signal(number: int) -> bytes:
    return wire.frame(wire.SIGNAL, bytes([number]))


def _size() -> tuple[int, int]:
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
    return rows, columns


def signal_pipe(*others: int) -> int:
    """From now on each signal of `PASSED_ON` and ``others`` is a byte by this descriptor, and nothing else."""
    reader, writer = os.pipe()
    for fd in (reader, writer):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (*(signal.Signals[f"SIG{name}"] for name in PASSED_ON), *others):
        signal.signal(number, lambda *_: None)
    return reader


def run(
    path: str, process: Mapping[str, Any], wake: int, seconds: float, look: Callable[[], None] = lambda: None
) -> int:
    """Run a process in the guest whose init is at ``path``, as soon as that answers, for up to ``seconds``; its exit code.

    ``wake`` is what :func:`signal_pipe` returned; ``look`` as `Client` has it, and may raise.

    Raises:
        Lost: the init did not answer in time, or went away while the process ran.
    """
    deadline, signals = time.monotonic() + seconds, b""
    while True:
        try:
            client = Client(_connect(path), process, look, signals)
            try:
                return client.run(wake)
            finally:
                started, signals = client.started, client.signals
        except Lost:
            if started or time.monotonic() > deadline:
                raise
        except OSError as error:
            if time.monotonic() > deadline:
                raise Lost(f"the guest's init cannot be reached: {error.strerror}") from error
        look()
        select.select([], [], [], _RETRY_S)


def _connect(path: str) -> socket.socket:
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found.connect(path)
    except OSError:
        found.close()
        raise
    return found


def execute(path: str, process: Mapping[str, Any]) -> None:
    """Run one more process in a guest; ends as it does. When memory is short, this goes before the machine."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    try:
        code = run(path, process, signal_pipe(), BOOT_S)
    except Lost as error:
        print(error, file=sys.stderr)
        code = LOST
    sys.exit(code)
