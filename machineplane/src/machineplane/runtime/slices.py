"""Control groups that systemd makes: their names (systemd.slice(5), systemd.scope(5)), and the end of those that are empty.

A pod is a slice below the machine's own, a container a scope in it: `magik.slice/magik-UID.slice/magik-ID.scope`. Dashes in
a slice's name say where it lies, so those of a uid become underscores, as Kubernetes' agent has it.
"""

import contextlib
import os
import re
from pathlib import Path

CGROUPFS, SYSTEMD = DRIVERS = ("cgroupfs", "systemd")
"""Who makes control groups: libcrun itself, or systemd for it. The names are those of Kubernetes' agent."""

_PREFIX = "magik"
_RUNS = Path("/run/systemd/system")  # sd_booted(3)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NAME = re.compile(r"[A-Za-z0-9_.:-]+")


def slice_of(parent: str) -> str:
    """The slice below which pods are, for a parent as the cgroupfs driver has it: `/a/b` is `a-b.slice`.

    Raises:
        ValueError: systemd could not name it so.
    """
    name = parent.strip("/").replace("/", "-")
    if not _NAME.fullmatch(name) or "" in name.split("-"):
        raise ValueError(f"the cgroup parent {parent!r} is no name for a slice of systemd")
    return f"{name}.slice"


def path_of(name: str) -> str:
    """Where a slice lies in the hierarchy: `a-b.slice` is `/a.slice/a-b.slice`."""
    parts = name.removesuffix(".slice").split("-")
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


def pod_path(parent: str, uid: str) -> str:
    """The pod's slice, as a path in the hierarchy."""
    return path_of(f"{slice_of(parent).removesuffix('.slice')}-{uid.replace('-', '_')}.slice")


def container_path(pod: str, container: str) -> str:
    """A container's scope in its pod's slice, both as paths."""
    return f"{pod}/{_PREFIX}-{container}.scope"


def uid_of(group: str) -> str:
    """The pod of a group right below the machine's own, by its name; empty for a slice that may be another machine's."""
    if not group.endswith(".slice"):
        return group
    uid = group.removesuffix(".slice").rpartition("-")[2].replace("_", "-")
    return uid if _UUID.fullmatch(uid) else ""


def oci_path(path: str) -> str:
    """What ``linux.cgroupsPath`` is for a group: `slice:prefix:name` for a scope, else the path itself."""
    folder, name = os.path.split(path)
    if not name.endswith(".scope"):
        return path
    prefix, _, container = name.removesuffix(".scope").partition("-")
    return f"{os.path.basename(folder)}:{prefix}:{container}"


def runs() -> bool:
    """Whether systemd is this machine's first process."""
    return _RUNS.is_dir()


def unusable(unified: bool, library: str, *, booted: bool | None = None) -> str:
    """Why systemd cannot make control groups here; empty if it can. ``library`` is libcrun's path, empty for none."""
    if not (runs() if booted is None else booted):
        return "systemd does not run here"
    if not unified:
        return "cgroup v2 (the unified hierarchy) is needed"
    with contextlib.suppress(OSError):
        if (
            library and b"libsystemd.so" not in Path(library).read_bytes()
        ):  # a name among those it is linked with
            return (
                f"{library} was built without systemd: python3 -m machineplane.runtime.libcrun_build --force"
            )
    return ""


def stop(path: str) -> None:
    """Have systemd end the unit of a group, and wait for it. No answer: what matters is whether the group is gone."""
    quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    with contextlib.suppress(OSError):
        command = ["systemctl", "stop", "--", os.path.basename(path)]
        os.waitpid(os.posix_spawnp(command[0], command, os.environ, file_actions=quiet), 0)
