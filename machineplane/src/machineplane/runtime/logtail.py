"""Lines of containers' log files, in the format of the container runtime interface."""

import os
from datetime import datetime
from pathlib import Path

from attrs import frozen

CHUNK = 64 * 1024


@frozen
class Line:
    """One line of a log file: when (ms since the epoch), the raw time stamp, and the text with its end of line."""

    ms: int
    stamp: bytes
    text: bytes


def parse_line(raw: bytes) -> Line | None:
    """A line in the format of the container runtime interface; none if it is damaged."""
    parts = raw.rstrip(b"\n").split(b" ", 3)
    if len(parts) != 4:
        return None
    try:
        when = datetime.fromisoformat(parts[0][:26].decode() + "+00:00")
    except ValueError:
        return None
    return Line(int(when.timestamp() * 1000), parts[0], parts[3] + (b"" if parts[2] == b"P" else b"\n"))


def tail_offset(path: Path, lines: int) -> int:
    """Where the last ``lines`` lines of a file begin. Reads backwards, at most the whole file once."""
    with open(path, "rb") as file:
        position = file.seek(0, os.SEEK_END)
        wanted = lines + 1
        while position > 0 and wanted > 0:
            size = min(CHUNK, position)
            position -= size
            file.seek(position)
            chunk = file.read(size)
            for index in range(len(chunk) - 1, -1, -1):
                if chunk[index] == 0x0A:
                    wanted -= 1
                    if wanted == 0:
                        return position + index + 1
    return 0


def log_tail(path: Path, lines: int) -> bytes:
    """The text of the last ``lines`` lines of a log file, without stamps; nothing if there is none. Blocks."""
    try:
        with open(path, "rb") as file:
            file.seek(tail_offset(path, lines))
            raw = file.read(lines * CHUNK)
    except OSError:
        return b""
    found = (parse_line(line) for line in raw.splitlines(keepends=True))
    return b"".join(line.text for line in found if line is not None)
