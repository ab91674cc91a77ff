"""What a shim knows of its containers, and the file in which it keeps it."""

import errno
import json
import os
import time
from typing import Any, NamedTuple

PRIVATE = "private"
"""A pod's file system in memory, below its folder: configurations and libcrun's state hold values of Secrets."""


def now_ms() -> int:
    """Wall clock, milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def read_small(path: str) -> bytes:
    """A file of less than 64 KiB. Without Python's file objects: each shim would have its own copy of what they touch."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def write_small(path: str, raw: bytes) -> None:
    """Make a file what ``raw`` says, as :func:`read_small`. Raises OSError also where the disk takes only a part."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, raw) < len(raw):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    finally:
        os.close(fd)


def process_start(pid: int) -> int:
    """When a process started, in clock ticks since boot (field 22 of /proc/<pid>/stat); 0 if there is none.

    With the process id it names one process for as long as the machine is up.
    """
    try:
        return int(read_small(f"/proc/{pid}/stat").rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


class Container(NamedTuple):
    """One container. Times are ms since the epoch, 0 for not yet; ``status`` is created, running or exited."""

    id: str
    name: str
    attempt: int
    status: str
    pid: int
    pid_start: int
    bundle: str
    log: str
    cgroup: str
    created_at: int
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    oom: bool = False

    def as_json(self) -> dict[str, Any]:
        """For messages and the state file."""
        return self._asdict()


def save(path: str, containers: list[Container]) -> None:
    """Replace the state file atomically."""
    state = {
        "version": 1,
        "pid": os.getpid(),
        "pid_start": process_start(os.getpid()),
        "containers": [container.as_json() for container in containers],
    }
    write_small(f"{path}.new", json.dumps(state).encode())
    os.replace(f"{path}.new", path)
