"""Moves what containers write into their log files, without ever waiting for them."""

import contextlib
import os
import selectors
import time

from machineplane.runtime.shim.calls import Stdio
from machineplane.runtime.shim.logs import LineSplitter, LogFile

CHUNK = 64 * 1024
"""Bytes read from one stream before others have their turn: what a pipe holds."""

MAX_DRAIN = 1024 * 1024
"""Bytes still read from a stream after its container has ended. A pipe holds less, so this only stops one that another
process goes on writing into."""


class _Stream:
    def __init__(self, fd: int, name: str, log: LogFile) -> None:
        self.fd = fd
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

    def open(self, container_id: str, path: str) -> Stdio:
        """Begin a log; answers the descriptors for the container, which the caller closes after it has forked."""
        log = LogFile(path)
        streams = []
        ends = [os.open(os.devnull, os.O_RDONLY)]
        for name in ("stdout", "stderr"):
            reader, writer = os.pipe()
            os.set_blocking(reader, False)
            stream = _Stream(reader, name, log)
            self._selector.register(reader, selectors.EVENT_READ, lambda s=stream: self._ready(s))
            streams.append(stream)
            ends.append(writer)
        self._open[container_id] = (log, streams)
        return Stdio(*ends)

    def _ready(self, stream: _Stream) -> None:
        if stream.pump() == 0:
            with contextlib.suppress(KeyError):
                self._selector.unregister(stream.fd)

    def close(self, container_id: str) -> None:
        """The container has ended: write what is left and close its log."""
        if container_id not in self._open:
            return
        log, streams = self._open.pop(container_id)
        for stream in streams:
            with contextlib.suppress(KeyError):
                self._selector.unregister(stream.fd)
            stream.finish()
        log.close()
