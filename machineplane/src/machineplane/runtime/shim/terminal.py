"""The terminal of a container that has one (``tty: true``): the shim holds its other end while the container lives."""

import contextlib
import fcntl
import os
import selectors
import socket
import struct
import termios
from collections.abc import Callable

CHUNK = 4096  # what a terminal's line discipline takes at once
_FD = struct.calcsize("i")


class TerminalError(Exception):
    """libcrun did not hand over a terminal."""


def listen(path: str) -> socket.socket:
    """A socket at ``path`` to which libcrun will send the terminal."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1)
    listener.setblocking(False)
    return listener


def take(listener: socket.socket) -> int:
    """The terminal's other end, which has been sent when libcrun's call is over. Closes the listener.

    Raises:
        TerminalError: none was sent.
    """
    with listener:
        try:
            path = listener.getsockname()
            connection, _ = listener.accept()
            with connection:
                connection.setblocking(False)
                _, fds, _, _ = socket.recv_fds(connection, CHUNK, 1, socket.MSG_CMSG_CLOEXEC)
            os.unlink(path)
        except OSError as error:
            raise TerminalError(f"libcrun sent no terminal: {error}") from error
    if not fds:
        raise TerminalError("libcrun sent no terminal")
    os.set_blocking(fds[0], False)
    return fds[0]


class TerminalInput:
    """Moves what is written into a named pipe to a terminal, as fast as the terminal takes it."""

    def __init__(
        self, selector: selectors.BaseSelector, fifo: int, terminal: int, ready: Callable[[], None]
    ) -> None:
        self._selector = selector
        self._fifo = fifo
        self._terminal = terminal
        self._ready = ready
        self._pending = b""
        if fifo >= 0:
            selector.register(fifo, selectors.EVENT_READ, self._read)

    def _read(self) -> None:
        try:
            self._pending = os.read(self._fifo, CHUNK)
        except OSError:
            return
        if not self._pending:
            self.close()
        else:
            self._write()

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            self._pending = self._pending[os.write(self._terminal, self._pending) :]
        if self._pending:  # it is full: nothing more is read until it takes this
            self._pause()
        else:
            self._resume()

    def _pause(self) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._fifo)
        with contextlib.suppress(KeyError):
            self._selector.modify(self._terminal, selectors.EVENT_READ | selectors.EVENT_WRITE, self._either)

    def _resume(self) -> None:
        with contextlib.suppress(KeyError):
            self._selector.register(self._fifo, selectors.EVENT_READ, self._read)
            self._selector.modify(self._terminal, selectors.EVENT_READ, self._ready)

    def _either(self) -> None:
        self._write()
        self._ready()

    def close(self) -> None:
        """No more input."""
        if self._fifo >= 0:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._fifo)
            os.close(self._fifo)
            self._fifo = -1


def resize(terminal: int, width: int, height: int) -> None:
    """Tell the terminal's size, in characters; the kernel tells the container (SIGWINCH)."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
