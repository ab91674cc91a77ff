"""One process in the guest and the connection of who asked for it: what each may wait for, and for how much of it."""

import contextlib
import fcntl
import os
import selectors
import socket
import struct
import termios
from collections.abc import Mapping
from typing import Any, Protocol

from magik_proto import guest as wire
from workplane.guest import child

_CHUNK = 32 * 1024
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Owner(Protocol):
    """Who has the sessions: see `workplane.guest.init.Init`."""

    def admit(self, process: Mapping[str, Any]) -> bool:
        """Whether a process may be started now."""
        ...

    def started(self, session: "Session", process: Mapping[str, Any]) -> None:
        """It runs."""
        ...

    def signal(self, session: "Session", number: int) -> None:
        """The peer has a signal for it."""
        ...

    def over(self, session: "Session") -> None:
        """All is sent, or the peer has gone."""
        ...


class Session:
    """See the module."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        connection: socket.socket,
        root: str,
        owner: Owner,
    ) -> None:
        self.pid = 0
        self.code: int | None = None
        """The exit code, once it has ended."""
        self.first = False
        """Whether it is the app."""
        self._selector = selector
        self._connection = connection
        self._root = root
        self._owner = owner
        self._frames = wire.Frames()
        self._outgoing = bytearray()
        self._input = -1
        self._pending = bytearray()
        self._end_of_input = False
        self._outputs: dict[int, bytes] = {}
        self._master = -1
        self._last = False
        connection.setblocking(False)
        selector.register(connection, _READ, self._on_connection)

    # -- the connection

    def _on_connection(self, events: int) -> None:
        try:
            if events & _WRITE:
                self._flush()
            if events & _READ:
                data = self._connection.recv(_CHUNK)
                if not data:
                    raise ConnectionResetError
                for kind, payload in self._frames.feed(data):
                    self._take(kind, payload)
        except BlockingIOError:
            return
        except (OSError, wire.BrokenProtocol):
            self.close()

    def _take(self, kind: bytes, payload: bytes) -> None:
        asked = self.pid or self._last
        if (kind == wire.SPAWN) is bool(asked):
            raise wire.BrokenProtocol(f"a frame {kind!r} out of turn")
        if kind == wire.SPAWN:
            self._spawn(wire.wanted(payload))
        elif kind == wire.STDIN:
            self._feed(payload)
        elif kind == wire.SIGNAL and payload:
            self._owner.signal(self, payload[0])
        elif kind == wire.RESIZE:
            self._resize(*wire.size_of(payload))
        else:
            raise wire.BrokenProtocol(f"a frame {kind!r} that none knows")

    def _send(self, data: bytes) -> None:
        self._outgoing += data
        self._flush()

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._outgoing:
                del self._outgoing[: self._connection.send(self._outgoing)]
        self._mind()
        if self._last and not self._outgoing:
            self.close()

    def _mind(self) -> None:
        """Read the process's output only while its reader keeps up; write when there is something."""
        if self._connection.fileno() < 0:
            return
        self._selector.modify(
            self._connection, _READ | (_WRITE if self._outgoing else 0), self._on_connection
        )
        for fd in self._outputs:
            self._watch(fd, _READ if len(self._outgoing) < wire.WINDOW else 0)
        if self._input >= 0 and self._input != self._master:
            self._watch(self._input, _WRITE if self._pending else 0)
        elif self._master >= 0 and self._master in self._outputs:
            reading = _READ if len(self._outgoing) < wire.WINDOW else 0
            self._watch(self._master, reading | (_WRITE if self._pending else 0))

    def _watch(self, fd: int, events: int) -> None:
        known = fd in self._selector.get_map()
        if not events:
            if known:
                self._selector.unregister(fd)
        elif known:
            self._selector.modify(fd, events, lambda now: self._on_process(fd, now))
        else:
            self._selector.register(fd, events, lambda now: self._on_process(fd, now))

    # -- the process

    def _spawn(self, process: dict[str, Any]) -> None:
        if not self._owner.admit(process):
            raise wire.BrokenProtocol("not now")
        terminal = bool(process.get("terminal"))
        self.first = bool(process.get("first"))
        theirs = self._terminal(process) if terminal else self._pipes()
        code, problem = child.start(process, self._root, theirs, terminal=terminal)
        for fd in set(theirs):
            os.close(fd)
        if problem:
            self._last, self.code = True, code
            self._send(wire.frame(wire.REFUSED, bytes([code]) + problem.encode()[:1000]))
            return
        self.pid = code
        self._owner.started(self, process)
        self._send(wire.frame(wire.STARTED))

    def _pipes(self) -> tuple[int, int, int]:
        (stdin, self._input), (out, stdout), (err, stderr) = (os.pipe() for _ in range(3))
        self._outputs = {out: wire.STDOUT, err: wire.STDERR}
        for fd in (self._input, out, err):
            os.set_blocking(fd, False)
        return stdin, stdout, stderr

    def _terminal(self, process: dict[str, Any]) -> tuple[int, int, int]:
        self._master, slave = os.openpty()
        os.set_blocking(self._master, False)
        self._input, self._outputs = self._master, {self._master: wire.STDOUT}
        self._resize(*process.get("size") or (0, 0))
        uid = int((process.get("user") or {}).get("uid", 0))
        with contextlib.suppress(OSError):
            os.fchown(slave, uid, -1)
        return slave, slave, slave

    def _resize(self, rows: int, columns: int) -> None:
        if self._master >= 0 and rows and columns:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _feed(self, payload: bytes) -> None:
        self._pending += payload
        self._end_of_input = self._end_of_input or not payload
        if len(self._pending) > wire.WINDOW:
            raise wire.BrokenProtocol("more stdin than there is room for")
        self._give()

    def _give(self) -> None:
        count = 0
        with contextlib.suppress(BlockingIOError):
            while self._pending and self._input >= 0:
                try:
                    written = os.write(self._input, self._pending)
                except OSError as error:
                    if isinstance(error, BlockingIOError):
                        raise
                    written = len(self._pending)  # it has closed its stdin: what is sent to it goes nowhere
                count += written
                del self._pending[:written]
        if self._input < 0:
            count += len(self._pending)
            self._pending.clear()
        if count:
            self._outgoing += wire.taken(count)
        if self._end_of_input and not self._pending and self._input >= 0 and self._input != self._master:
            self._forget(self._input)
            self._input = -1
        self._flush()

    def _on_process(self, fd: int, events: int) -> None:
        try:
            if events & _WRITE:
                self._give()
            elif fd in self._outputs:
                self._pump(fd)
                self._flush()
        except OSError:
            self.close()

    def _pump(self, fd: int) -> int:
        """Read once; bytes read, 0 at the end, -1 if there is nothing now."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return -1
        except OSError:  # a terminal's end is an error (EIO)
            data = b""
        if data:
            self._outgoing += wire.frame(self._outputs[fd], data)
        else:
            del self._outputs[fd]
            self._forget(fd)
        return len(data)

    def ended(self, code: int) -> None:
        """The process has ended: send what it left in its pipes, not what others go on writing. The app's code is kept."""
        self.code = code
        for fd in list(self._outputs):
            left = 1024 * 1024  # as elsewhere: pipes hold less
            while left > 0 and (count := self._pump(fd)) > 0:
                left -= count
        for fd in list(self._outputs):
            del self._outputs[fd]
            self._forget(fd)
        if not self.first:
            self.tell_end()

    def tell_end(self) -> None:
        """Send the exit code; the last that is said."""
        assert self.code is not None
        self._last = True
        if self._connection.fileno() < 0:
            return
        try:
            self._send(wire.frame(wire.EXIT, bytes([self.code])))
        except OSError:
            self.close()

    # -- the end

    def _forget(self, fd: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)
        os.close(fd)
        if fd == self._master:
            self._master = self._input = -1

    def close(self) -> None:
        """The peer has gone, or has been told all."""
        if self._connection.fileno() < 0:
            return
        self._selector.unregister(self._connection)
        self._connection.close()
        for fd in {*self._outputs, self._input} - {-1}:
            self._forget(fd)
        self._outputs, self._input = {}, -1
        self._owner.over(self)
