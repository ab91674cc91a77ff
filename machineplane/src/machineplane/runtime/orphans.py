"""What pods have left that nobody knows of any more: helpers, processes, control groups. Runs in the zygote.

Ours are known by their marks alone: a helper by its name and by the log it writes below the pods' folder, a control group by
lying below the machine's own. Everything else on the machine is left alone.
"""

import contextlib
import os
import signal
import time

from machineplane.runtime import cgroups, slices
from machineplane.runtime.shim.state import read_small

SHIM_NAME = b"magik-shim"
TIMEOUT_S = 5.0
_DELETED = " (deleted)"


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def helpers(pods_dir: str) -> dict[int, str]:
    """Process ids of helpers whose log is below ``pods_dir``, with the uids of their pods."""
    found = {}
    for pid in _processes():
        with contextlib.suppress(OSError):
            if read_small(f"/proc/{pid}/comm").strip() != SHIM_NAME:
                continue
            log = os.readlink(f"/proc/{pid}/fd/1").removesuffix(_DELETED)
            if log.startswith(f"{pods_dir}/"):
                found[pid] = log[len(pods_dir) + 1 :].partition("/")[0]
    return found


def children(parents: set[int]) -> set[int]:
    """The processes below ``parents``, however deep, and themselves."""
    above = {}
    for pid in _processes():
        with contextlib.suppress(OSError, ValueError, IndexError):
            above[pid] = int(read_small(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])
    found = set(parents)
    while more := {pid for pid, parent in above.items() if parent in found and pid not in found}:
        found |= more
    return found


def remove(
    groups: cgroups.Cgroups, parent: str, pods_dir: str, known: set[str]
) -> tuple[list[str], list[str]]:
    """End and remove what belongs to no pod of ``known``; what that was, and what would not go within 5 s."""
    targets = children({pid for pid, uid in helpers(pods_dir).items() if uid not in known})
    below = {name: slices.uid_of(name) for name in cgroups.below(groups, parent)}
    strays = [f"{parent}/{name}" for name, uid in below.items() if uid and uid not in known]
    for path in strays:
        targets |= cgroups.members(groups, path)
    what = [*(f"process {pid}" for pid in sorted(targets)), *(f"cgroup {path}" for path in strays)]
    deadline = time.monotonic() + TIMEOUT_S
    alive = targets
    while alive and time.monotonic() < deadline:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
        alive = {pid for pid in alive if running(pid)}
    left = [f"process {pid}" for pid in sorted(alive)]
    return what, left + [f"cgroup {path}" for path in strays if not cgroups.remove(groups, path)]


def running(pid: int) -> bool:
    """Whether a process is there and has not ended (one that nobody has reaped yet has)."""
    try:
        return read_small(f"/proc/{pid}/stat").rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (OSError, IndexError):
        return False
