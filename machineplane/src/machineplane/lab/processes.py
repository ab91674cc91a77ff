"""The processes of a lab, as ``/proc`` of the computer shows them. A machine's first process carries its
name.
"""

import os
import select
import signal
import time
from pathlib import Path

from attrs import frozen

# The last three arguments of a machine's first process: this, the lab's directory, the name.
INIT_MARK = "magik-lab-init"

PROC = Path("/proc")

_PAUSE = 0.005  # seconds


@frozen
class Process:
    """One process: ``namespace`` is that of its process ids (0 where unreadable), ``started`` in ticks since
    boot.
    """

    pid: int
    parent: int
    state: str
    started: int
    namespace: int


def look(pid: int) -> Process | None:
    """What is known of ``pid``; None where there is no such process."""
    try:
        stat = (PROC / str(pid) / "stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return Process(pid, int(fields[1]), fields[0], int(fields[19]), _namespace(pid))
    except (FileNotFoundError, ProcessLookupError):
        return None


def _namespace(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:  # another user's, or ending
        return 0


def pids() -> list[int]:
    """All process ids, ascending."""
    return sorted(int(entry) for entry in os.listdir(PROC) if entry.isdigit())


def arguments(pid: int) -> list[str]:
    """The command line of ``pid``; empty where it is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def marked(lab: Path) -> dict[str, list[int]]:
    """The processes that hold or prepare machines of the lab in ``lab``: machine name to process ids."""
    found: dict[str, list[int]] = {}
    for pid in pids():
        words = arguments(pid)
        if words[-3:-1] == [INIT_MARK, str(lab)]:
            found.setdefault(words[-1], []).append(pid)
    return found


def inits(lab: Path) -> dict[str, int]:
    """The machines of the lab that are on: machine name to the first process of its namespaces."""
    return {
        name: pid
        for name, candidates in marked(lab).items()
        for pid in candidates
        if namespace_ids(pid)[1:] == [1]
    }


def namespace_ids(pid: int) -> list[int]:
    """The ids of a process from the outermost namespace to its own; empty where it is gone."""
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return next(([int(word) for word in line.split()[1:]] for line in lines if line.startswith("NSpid:")), [])


def below(init: int) -> list[Process]:
    """The living processes of a machine other than ``init``: those in its namespace, and all that descend
    from them.
    """
    namespace = _namespace(init)
    seen = [process for process in map(look, pids()) if process is not None]
    children: dict[int, list[Process]] = {}
    for process in seen:
        children.setdefault(process.parent, []).append(process)
    roots = [process for process in seen if namespace and process.namespace == namespace]
    found: dict[int, Process] = {}
    while roots:
        process = roots.pop()
        if process.pid not in found:
            found[process.pid] = process
            roots += children.get(process.pid, [])
    return [process for pid, process in sorted(found.items()) if pid != init and process.state not in "ZX"]


def find_inside(init: int, inside: int) -> Process | None:
    """The process that the machine of ``init`` knows as ``inside``."""
    namespace = _namespace(init)
    for pid in pids():
        if _namespace(pid) == namespace and namespace_ids(pid)[-1:] == [inside]:
            return look(pid)
    return None


def stop_all(init: int) -> int:
    """SIGSTOP to all below ``init`` until a look finds none that runs; returns how many are stopped."""
    while running := [process for process in below(init) if process.state not in "Tt"]:
        for process in running:
            _signal(process.pid, signal.SIGSTOP)
        time.sleep(_PAUSE)  # one that waits for a disk stops when it comes back
    return len(below(init))


def continue_all(init: int) -> int:
    """SIGCONT to all below ``init``; returns how many that were."""
    stopped = below(init)
    for process in stopped:
        _signal(process.pid, signal.SIGCONT)
    return len(stopped)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def kill(pid: int, patience: float = 10.0) -> bool:
    """SIGKILL, and wait up to ``patience`` seconds for the end; False where it is still there then.

    The first process of a namespace ends only after all others in it.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return _ended(handle, patience)
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)


def _ended(handle: int, patience: float) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(patience * 1000))
