"""Moves what containers write into their log files, without ever waiting for them."""

import contextlib
import os
import selectors
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from machineplane.runtime.shim import terminal
from machineplane.runtime.shim.calls import Stdio
from machineplane.runtime.shim.logs import LineSplitter, LogFile

CHUNK = 64 * 1024
"""Bytes read from one stream before others have their turn: what a pipe holds."""

MAX_DRAIN = 1024 * 1024
"""Bytes still read from a stream after its container has ended. A pipe holds less, so this only stops one that another
process goes on writing into."""


MAX_TAPS = 16
"""Attached readers of a pod at a time, a guess; one more is refused."""


class TooManyTaps(Exception):
    """No further reader can be attached to this pod; the text goes back to the daemon."""


class _Tap(NamedTuple):
    """Somebody who reads along: a pipe for each stream, which never makes the container wait."""

    owner: object
    container_id: str
    pipes: dict[str, int]

    def write(self, name: str, chunk: bytes) -> None:
        """Pass output on. Who is a whole pipe behind is cut off: its reader sees the end."""
        fd = self.pipes.get(name)
        if fd is None:
            return
        try:
            written = os.write(fd, chunk)
        except OSError:
            written = 0
        if written < len(chunk):
            self.close()

    def close(self) -> None:
        """Its reader sees the end."""
        while self.pipes:
            os.close(self.pipes.popitem()[1])


class _Stream:
    def __init__(self, fd: int, name: str, log: LogFile, tell: Callable[[str, bytes], None]) -> None:
        self.fd = fd
        self._name = name
        self._tell = tell
        self._splitter = LineSplitter(name)
        self._log = log

    def pump(self) -> int:
        """Read once; the number of bytes read, 0 at the end, −1 if there is nothing now."""
        try:
            chunk = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return -1
        except OSError:
            return 0
        if chunk:
            self._log.write(self._splitter.feed(chunk, time.time_ns()))
            self._tell(self._name, chunk)
        return len(chunk)

    def finish(self) -> None:
        """Read what is left, write the unfinished line, close."""
        left = MAX_DRAIN
        while left > 0 and (count := self.pump()) > 0:
            left -= count
        rest = self._splitter.finish(time.time_ns())
        if rest:
            self._log.write(rest)
        os.close(self.fd)


class Pumps:
    """The output streams of all containers of a pod."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._open: dict[str, tuple[LogFile, list[_Stream]]] = {}
        self._taps: dict[int, _Tap] = {}
        self._inputs: dict[str, int] = {}
        self._terminals: dict[str, tuple[int, terminal.TerminalInput]] = {}

    def open(self, container_id: str, path: str, fifo: str) -> Stdio:
        """Begin a log; answers the descriptors for the container, which the caller closes after it has forked.

        Its stdin is a named pipe at ``fifo``, if that is given, which stays open until :meth:`end_input`.
        """
        log = LogFile(path)
        streams = []
        ends = [self._input(container_id, fifo)]
        for name in ("stdout", "stderr"):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            stream = _Stream(reader, name, log, partial(self._tell, container_id))
            self._selector.register(reader, selectors.EVENT_READ, lambda s=stream: self._ready(s))
            streams.append(stream)
            ends.append(writer)
        self._open[container_id] = (log, streams)
        return Stdio(*ends)

    def open_terminal(self, container_id: str, path: str, fifo: str) -> int:
        """Begin the log of a container with a terminal; answers the reading end of its stdin, -1 without one."""
        self._open[container_id] = (LogFile(path), [])
        if not fifo:
            return -1
        reader = self._input(container_id, fifo)
        os.set_blocking(reader, False)
        return reader

    def take_terminal(self, container_id: str, master: int, stdin: int) -> None:
        """The terminal's other end has come: read it, and write to it what comes by ``stdin``."""
        log, streams = self._open[container_id]
        stream = _Stream(master, "stdout", log, partial(self._tell, container_id))
        streams.append(stream)
        self._selector.register(master, selectors.EVENT_READ, lambda: self._ready(stream))
        entry = terminal.TerminalInput(self._selector, stdin, master, lambda: self._ready(stream))
        self._terminals[container_id] = (master, entry)

    def resize(self, container_id: str, width: int, height: int) -> None:
        """Set the size of a container's terminal, if it has one."""
        if container_id in self._terminals:
            terminal.resize(self._terminals[container_id][0], width, height)

    def _input(self, container_id: str, fifo: str) -> int:
        if not fifo:
            return os.open(os.devnull, os.O_RDONLY)
        os.mkfifo(fifo, 0o600)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # else it would wait for a writer
        self._inputs[container_id] = os.open(fifo, os.O_WRONLY)
        os.set_blocking(reader, True)
        return reader

    def end_input(self, container_id: str) -> None:
        """The container reads the end of its stdin as soon as no one else writes to it."""
        fd = self._inputs.pop(container_id, None)
        if fd is not None:
            os.close(fd)

    # -- readers

    def attach(self, number: int, owner: object, container_id: str, stdout: int, stderr: int) -> None:
        """Pass a container's output on, from now on, to copies of these pipes.

        Raises:
            TooManyTaps: there are :data:`MAX_TAPS`.
        """
        if number in self._taps or len(self._taps) >= MAX_TAPS:
            raise TooManyTaps(f"{MAX_TAPS} clients are attached to this pod already; end one of them first")
        pipes = {"stdout": os.dup(stdout), "stderr": os.dup(stderr)}
        for fd in pipes.values():
            os.set_blocking(fd, False)
        self._taps[number] = _Tap(owner, container_id, pipes)

    def detach(self, number: int) -> None:
        """Take a reader away, if it is there."""
        if number in self._taps:
            self._taps.pop(number).close()

    def forget(self, owner: object) -> None:
        """Take away all readers of a connection that is gone."""
        for number in [number for number, tap in self._taps.items() if tap.owner is owner]:
            self.detach(number)

    def _tell(self, container_id: str, name: str, chunk: bytes) -> None:
        for tap in self._taps.values():
            if tap.container_id == container_id:
                tap.write(name, chunk)

    # -- ends

    def _ready(self, stream: _Stream) -> None:
        if stream.pump() == 0:
            with contextlib.suppress(KeyError):
                self._selector.unregister(stream.fd)

    def close(self, container_id: str) -> None:
        """The container has ended: write what is left and close its log."""
        if container_id not in self._open:
            return
        log, streams = self._open.pop(container_id)
        if container_id in self._terminals:
            self._terminals.pop(container_id)[1].close()
        for stream in streams:
            with contextlib.suppress(KeyError):
                self._selector.unregister(stream.fd)
            stream.finish()
        log.close()
        self.end_input(container_id)
        for tap in self._taps.values():
            if tap.container_id == container_id:
                tap.close()
