"""Container output to files in the format of Kubernetes' container runtime interface, bounded in line, file and number.

A line of a log file is ``<RFC 3339 time in UTC with nanoseconds> <stdout|stderr> <F|P> <text>``; P marks a piece of a
line that goes on in the next one.
"""

import contextlib
import os
import time

MAX_PIECE = 16 * 1024
"""Bytes of one line or piece of one, as other runtimes have it. At the limit the piece is written as ``P``."""

MAX_FILE = 10 * 1024 * 1024
"""Bytes of a log file, at which it becomes ``<name>.1`` (replacing the one before) and a new one begins."""


def timestamp(ns: int) -> bytes:
    """RFC 3339 with nanoseconds, UTC."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % rest


class LogFile:
    """Appends to a file, and turns it over at its cap. A full disk loses output, never the writer."""

    def __init__(self, path: str, cap: int = MAX_FILE) -> None:
        self._path = path
        self._cap = cap
        self._fd = -1
        self._size = 0
        self._closed = False
        self._open()

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def write(self, raw: bytes) -> None:
        """Append whole lines."""
        if self._closed:
            return
        with contextlib.suppress(OSError):
            if self._fd < 0:
                self._open()
            if self._size + len(raw) > self._cap and self._size:
                self._turn()
            self._size += os.write(self._fd, raw)

    def _turn(self) -> None:
        os.replace(self._path, f"{self._path}.1")
        fd, self._fd = self._fd, -1
        os.close(fd)
        self._open()

    def close(self) -> None:
        """Close the file; later writes are lost."""
        fd, self._fd = self._fd, -1
        self._closed = True
        if fd >= 0:
            os.close(fd)


class LineSplitter:
    """Turns the chunks of one stream into log lines. Holds at most :data:`MAX_PIECE` bytes of an unfinished line."""

    def __init__(self, stream: str) -> None:
        self._stream = stream.encode()
        self._rest = b""

    def feed(self, chunk: bytes, ns: int) -> bytes:
        """The log lines that ``chunk``, read at time ``ns``, completes."""
        prefix = timestamp(ns) + b" " + self._stream
        *lines, rest = (self._rest + chunk).split(b"\n")
        out: list[bytes] = []
        for line in lines:
            out.append(b"%b F %b\n" % (prefix, _cut(line, prefix, out)))
        self._rest = _cut(rest, prefix, out)
        return b"".join(out)

    def finish(self, ns: int) -> bytes:
        """The unfinished last line of a stream that has ended, if there is one."""
        rest, self._rest = self._rest, b""
        return b"%b %b F %b\n" % (timestamp(ns), self._stream, rest) if rest else b""


def _cut(line: bytes, prefix: bytes, out: list[bytes]) -> bytes:
    """Put all full pieces of a long line into ``out`` as partial; returns the last piece."""
    while len(line) > MAX_PIECE:
        out.append(b"%b P %b\n" % (prefix, line[:MAX_PIECE]))
        line = line[MAX_PIECE:]
    return line
