"""Control groups as libcrun can use them, whatever mode the machine is in. Runs in the helper processes.

* ``v2``: the machine has the unified hierarchy at /sys/fs/cgroup; nothing to prepare.
* ``v1``: the machine mixes both (or has v1 only). In the helper's private mount namespace /sys/fs/cgroup becomes a tmpfs
  with the controllers that are *already* on v1. Mounting any other would take it from the whole machine's cgroup2.
* ``none``: neither can be had; containers run without limits.
"""

import contextlib
import os
import time
from typing import NamedTuple

from machineplane.linux import libc
from machineplane.runtime import slices

ROOT = "/sys/fs/cgroup"
# What libcrun knows to set; a v1 controller outside this list is left alone.
_USEFUL = frozenset({"memory", "cpu", "cpuacct", "pids", "devices", "cpuset", "blkio", "freezer"})
_MOUNT_FLAGS = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
_REMOVE_TRIES = 50
_REMOVE_PAUSE_S = 0.02


class Cgroups(NamedTuple):
    """How control groups are had: ``mode`` as above, why it is not better, and who makes them (`slices.DRIVERS`)."""

    mode: str
    reason: str
    driver: str = slices.CGROUPFS

    def hierarchies(self) -> list[str]:
        """The mounted hierarchies, as directories."""
        if self.mode == "v2":
            return [ROOT]
        if self.mode == "none":
            return []
        paths = (os.path.join(ROOT, name) for name in sorted(os.listdir(ROOT)))
        return [path for path in paths if not os.path.islink(path)]


def v1_hierarchies(proc_cgroup: str) -> list[str]:
    """Option strings (``memory``, ``cpu,cpuacct``) of the v1 hierarchies in the text of /proc/<pid>/cgroup."""
    names = [line.split(":", 2)[1] for line in proc_cgroup.splitlines() if line.count(":") >= 2]
    return sorted(name for name in names if name and _USEFUL & set(name.split(",")))


def unified(mountinfo: str) -> bool:
    """Whether /sys/fs/cgroup is the unified hierarchy, by the text of /proc/<pid>/mountinfo (the last mount counts)."""
    kinds = [
        line.partition(" - ")[2].split(" ", 1)[0]
        for line in mountinfo.splitlines()
        if line.split(" ")[4:5] == [ROOT]
    ]
    return bool(kinds) and kinds[-1] == "cgroup2"


def _mount_v1(options: str) -> None:
    path = os.path.join(ROOT, options)
    os.mkdir(path)
    libc.mount("cgroup", path, "cgroup", _MOUNT_FLAGS, options)
    parts = options.split(",")
    for name in parts if len(parts) > 1 else ():
        os.symlink(options, os.path.join(ROOT, name))


def prepare() -> Cgroups:
    """Make control groups usable in this (private) mount namespace, as well as the machine allows."""
    with open("/proc/self/mountinfo") as mounts, open("/proc/self/cgroup") as groups:
        if unified(mounts.read()):
            return Cgroups("v2", "")
        wanted = v1_hierarchies(groups.read())
    if not wanted:
        return _without("this machine has neither cgroup2 at /sys/fs/cgroup nor v1 controllers")
    try:
        libc.mount("magik-cgroup", ROOT, "tmpfs", _MOUNT_FLAGS, "mode=755")
        for options in wanted:
            _mount_v1(options)
    except OSError as error:
        return _without(f"the v1 controllers cannot be mounted ({error})")
    return Cgroups("v1", "")


def _without(reason: str) -> Cgroups:
    with contextlib.suppress(OSError):
        libc.umount(ROOT, libc.MNT_DETACH)
    with contextlib.suppress(
        OSError
    ):  # libcrun only starts where /sys/fs/cgroup is one of the forms it knows
        libc.mount("cgroup2", ROOT, "cgroup2", _MOUNT_FLAGS)
    return Cgroups("none", f"{reason}; containers run without resource limits")


def oom_kills(groups: Cgroups, path: str) -> int:
    """How many processes the kernel killed for memory in the group at ``path``; 0 where that cannot be known."""
    names = {"v1": "memory/{}/memory.oom_control", "v2": "{}/memory.events"}
    if groups.mode not in names:
        return 0
    with contextlib.suppress(OSError, ValueError):
        with open(os.path.join(ROOT, names[groups.mode].format(path.strip("/")))) as file:
            counts = dict(line.split() for line in file)
        return int(counts.get("oom_kill", 0))
    return 0


def out_of_memory(groups: Cgroups, path: str, *, killed: bool, before: int) -> tuple[bool, int]:
    """Whether memory was why the container of the group at ``path`` ended, and what ``before`` is for the pod's next one.

    systemd removes a scope with its last process, and with it the count: then the pod's counts, and a container that was
    ``killed`` (SIGKILL) ended for memory if the pod's count is beyond the one ``before``.
    """
    if groups.driver != slices.SYSTEMD:
        return oom_kills(groups, path) > 0, before
    now = oom_kills(groups, os.path.dirname(path))
    return killed and now > before, now


def below(groups: Cgroups, path: str) -> list[str]:
    """Names of the groups right below ``path``, in any hierarchy."""
    found: set[str] = set()
    for root in groups.hierarchies():
        with contextlib.suppress(OSError):
            folder = os.path.join(root, path.strip("/"))
            found.update(name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name)))
    return sorted(found)


def members(groups: Cgroups, path: str) -> set[int]:
    """Process ids in the groups at ``path`` and below it."""
    found: set[int] = set()
    for root in groups.hierarchies():
        for folder, _, _ in os.walk(os.path.join(root, path.strip("/"))):
            with contextlib.suppress(OSError), open(os.path.join(folder, "cgroup.procs")) as file:
                found.update(int(line) for line in file)
    return found


def _remove_once(groups: Cgroups, path: str) -> bool:
    gone = True
    for root in groups.hierarchies():
        for folder, _, _ in os.walk(os.path.join(root, path.strip("/")), topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
    return gone


def remove(groups: Cgroups, path: str) -> bool:
    """Remove the groups at ``path`` and below, waiting up to a second for exiting processes; then empty parents.

    Returns whether ``path`` is gone.
    """
    by_systemd = groups.driver == slices.SYSTEMD
    if by_systemd and os.path.isdir(ROOT + path):
        slices.stop(path)
    for _ in range(_REMOVE_TRIES):
        if _remove_once(groups, path):
            break
        time.sleep(_REMOVE_PAUSE_S)
    else:
        return False
    parent = os.path.dirname("/" + path.strip("/"))
    if by_systemd:  # which must not find its slices' folders gone
        if path.endswith(".scope") and os.path.isdir(ROOT + parent) and not below(groups, parent):
            slices.stop(parent)
        return True
    while parent != "/":
        for root in groups.hierarchies():
            with contextlib.suppress(OSError):  # other pods are in it
                os.rmdir(root + parent)
        parent = os.path.dirname(parent)
    return True
