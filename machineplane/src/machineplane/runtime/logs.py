"""Reading containers' log files, also while the shim writes and turns them over."""

import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import trio
from attrs import frozen

from machineplane.runtime.book import PodBook, now_ms
from machineplane.runtime.container_task import log_path
from machineplane.runtime.errors import LogsUnavailable
from machineplane.runtime.logtail import CHUNK, Line, parse_line, tail_offset
from machineplane.runtime.shim.logs import MAX_FILE

POLL_S = 0.2
"""How often a followed log is looked at. Files cannot be awaited; 5 looks a second cost nothing and feel live."""


@frozen(kw_only=True)
class LogOptions:
    """As kubectl's: ``tail`` lines (none: all), ``since_s`` seconds back, the previous run, at most ``limit_bytes``."""

    follow: bool = False
    tail: int | None = None
    since_s: float | None = None
    timestamps: bool = False
    previous: bool = False
    limit_bytes: int | None = None


class LogReader:
    """Reads one run's log from its older half through the newer, and on as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._rest = b""

    def open(self, tail: int | None) -> None:
        """Begin at the last ``tail`` lines, or at the oldest there is.

        Raises:
            FileNotFoundError: there is no log.
        """
        older = self._path.with_name(self._path.name + ".1")
        newer = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        if tail is None and older.exists():
            os.close(newer)
            self._file = os.open(older, os.O_RDONLY | os.O_CLOEXEC)
            return
        self._file = newer
        if tail is not None:
            os.lseek(newer, tail_offset(self._path, tail), os.SEEK_SET)

    def read(self) -> list[Line]:
        """The whole lines that there are now, at most about 64 KiB of them; empty if there is nothing new."""
        if self._file is None:
            return []
        chunk = os.read(self._file, CHUNK)
        if not chunk and self._turned():
            chunk = os.read(self._file, CHUNK)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [line for raw in lines if (line := parse_line(raw)) is not None]

    def _turned(self) -> bool:
        """If the file in hand is no longer the newest, read its last bytes later and go on with the newest."""
        assert self._file is not None
        try:
            newest = os.stat(self._path)
        except FileNotFoundError:
            return False
        here = os.fstat(self._file)
        if newest.st_ino == here.st_ino or os.lseek(self._file, 0, os.SEEK_CUR) < here.st_size:
            return False
        os.close(self._file)
        self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def render(lines: Iterable[Line], options: LogOptions, since_ms: int) -> bytes:
    """What the user sees of these lines."""
    kept = [line for line in lines if line.ms >= since_ms]
    return b"".join(line.stamp + b" " + line.text if options.timestamps else line.text for line in kept)


def _attempt(book: PodBook, container: str, options: LogOptions) -> int:
    found = [status for status in book.status.containers if status.name == container]
    if not found:
        names = ", ".join(status.name for status in book.status.containers)
        raise LogsUnavailable(f"pod {book.status.name} has no container {container!r}; it has {names}")
    between = found[0].state == "waiting" and found[0].last is not None
    # While it waits for its next run, the last run is both the newest and the previous one.
    attempt = found[0].restarts - (1 if options.previous and not between else 0)
    if attempt < 0:
        raise LogsUnavailable(f"container {container} of pod {book.status.name} has no previous run")
    if between and attempt > 0 and not log_path(book.folder, container, attempt).exists():
        attempt -= 1
    return attempt


def _over(book: PodBook, container: str, attempt: int) -> bool:
    status = next(status for status in book.status.containers if status.name == container)
    return status.restarts != attempt or status.state != "running"


def read_logs(book: PodBook, container: str, options: LogOptions) -> AsyncIterator[bytes]:
    """The output of one run of a container as chunks of lines; with ``follow`` until that run has ended.

    Raises:
        LogsUnavailable: at once: no such container, or no log.
    """
    attempt = _attempt(book, container, options)
    reader = LogReader(log_path(book.folder, container, attempt))
    try:
        reader.open(options.tail)
    except FileNotFoundError as error:
        reason = f"container {container} of pod {book.status.name} has no log yet"
        raise LogsUnavailable(reason) from error
    return _read(book, container, options, attempt, reader)


async def _read(
    book: PodBook, container: str, options: LogOptions, attempt: int, reader: LogReader
) -> AsyncIterator[bytes]:
    since = now_ms() - int(options.since_s * 1000) if options.since_s is not None else 0
    left = options.limit_bytes if options.limit_bytes is not None else 2 * MAX_FILE * 1024
    try:
        while left > 0:
            ended = _over(book, container, attempt)
            lines = reader.read()
            if chunk := render(lines, options, since)[:left]:
                left -= len(chunk)
                yield chunk
            elif not lines and (ended or not options.follow):
                return
            await trio.sleep(0 if lines else POLL_S)
    finally:
        reader.close()
