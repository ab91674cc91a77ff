"""From the configuration of a container to one in which a virtual machine runs: one machine for each container of a pod.

The container holds the machine's monitor: this machine's Python with libkrun, which gives the guest one folder by virtio-fs:
the agents' image, read-only, whose Python runs the guest's init, and in its folder `APP` the container's image with the
pod's volumes in it, into which the init puts the program. So what the monitor may, and what it can be made to do by its
guest, is bounded by namespaces, control groups and capabilities like any container's; and what pods are promised of
containers (logs, exit codes, limits, adoption by a restarted daemon) holds for machines without more. The guest's sockets
are the monitor's (TSI): they are in the pod's network.
"""

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from attrs import evolve, frozen

from machineplane.runtime.bundle import Bundle
from machineplane.runtime.bundle.config import MASKED_PATHS, READONLY_PATHS, TERMINATION_LOG
from machineplane.runtime.bundle.quantity import byte_count, quantity
from machineplane.runtime.bundle.seccomp import profile_of
from machineplane.runtime.bundle.users import DEFAULT_CAPABILITIES
from machineplane.runtime.errors import PodSpecError
from machineplane.runtime.hosted import bind, home_of, hosted_config, python_paths
from machineplane.runtime.krun.binding import MAX_VCPUS
from machineplane.runtime.krun.locate import KVM_DEVICE
from machineplane.runtime.krun.machine import PROCESS, SOCKET
from machineplane.runtime.shim.calls import EXEC_PREFIX
from magik_proto.capabilities import CAPABILITIES
from magik_proto.guest import APP

KRUN: Final = "krun"
"""The engine's name, in ``magik.io/runtime`` as well."""
RUNNER: Final = Path(__file__).with_name("machine.py")
GUEST: Final = "/guest"
"""The folder of the monitor's container that is the guest's root."""
INIT: Final = "/usr/bin/workplane-init"
"""In the agents' image."""
DEFAULT_MEMORY: Final = 512 << 20
"""Bytes of a guest without a limit of memory, a guess: a machine's memory has to be some number."""
MONITOR_MEMORY: Final = 96 << 20
"""Bytes that the monitor may use beside its guest's memory, a guess: Python, libkrun, and buffers of its devices."""
_MIN_MEMORY: Final = 32 << 20  # a guess: with less the guest's kernel has no room for a program
_PROCESS_FILE: Final = "process.json"
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_MIB = 1 << 20
_KERNELS: Final = ("/proc", "/sys")
"""Of the guest's kernel; what would be mounted there is hidden by them."""
_CAPABILITIES: Final = tuple(f"CAP_{name}" for name in DEFAULT_CAPABILITIES if name != "MKNOD")
"""virtio-fs acts on files for the guest's users, and TSI takes its ports; nothing that an ordinary container has not."""


@frozen(kw_only=True)
class Surroundings:
    """What a machine is made of beside its container's configuration.

    ``init`` is the agents' image, unpacked; ``private`` the container's folder in the pod's file system in memory; ``grace``
    the pod's, in seconds; ``devices`` a folder to be made (:func:`make_devices`), in the container's own.
    """

    library: str
    init: Path
    private: Path
    devices: Path
    grace: float


def check_machine(container: Mapping[str, Any]) -> None:
    """Raises PodSpecError where a container asks for what a guest cannot have: it would be quietly left out."""
    for mount in container.get("volumeMounts") or ():
        if any(_inside(mount["mountPath"], own) for own in _KERNELS):
            raise PodSpecError(
                f"{container['name']}: {mount['mountPath']}: a microVM has /proc and /sys of its own"
            )


def _inside(path: str, folder: str) -> bool:
    """Whether an absolute path is this folder or below it, not merely spelled like it."""
    return PurePosixPath("/" + path.lstrip("/")).is_relative_to(folder)


def is_privileged(container: Mapping[str, Any]) -> bool:
    """Whether the container may do anything: in its guest."""
    return bool((container.get("securityContext") or {}).get("privileged"))


def vcpus(limits: Mapping[str, Any], where: str) -> int:
    """As many as the limit of CPU needs, one without it. Raises PodSpecError beyond what libkrun takes."""
    count = max(math.ceil(quantity(limits.get("cpu", 1), f"{where}.cpu")), 1)
    if count > MAX_VCPUS:
        raise PodSpecError(f"{where}.cpu: a microVM has up to {MAX_VCPUS} vCPUs")
    return count


def guest_memory(limits: Mapping[str, Any], where: str) -> int:
    """Bytes: the limit of memory, `DEFAULT_MEMORY` without one. Raises PodSpecError for less than a guest needs."""
    size = byte_count(limits.get("memory", DEFAULT_MEMORY), f"{where}.memory")
    if size < _MIN_MEMORY:
        raise PodSpecError(f"{where}.memory: a microVM needs {_MIN_MEMORY // _MIB}Mi at least")
    return size


def machine_config(
    config: Mapping[str, Any], container: Mapping[str, Any], around: Surroundings
) -> dict[str, Any]:
    """The configuration that runs a guest; files in the private folder say what runs in it (:func:`guest_files`).

    ``config`` is the container's as for any other engine, ``container`` its spec.

    Raises:
        PodSpecError: as :func:`check_machine`, :func:`vcpus` and :func:`guest_memory`.
    """
    check_machine(container)
    limits, where = (
        (container.get("resources") or {}).get("limits") or {},
        f"{container['name']}.resources.limits",
    )
    memory = guest_memory(limits, where)
    options = {
        "library": around.library,
        "root": GUEST,
        "vcpus": vcpus(limits, where),
        "memory_mib": memory // _MIB,
        "init": INIT,
        "path": _modules(),
        "first": _of_the_app(container, around.grace),
    }
    folders = {os.path.dirname(path) for path in (around.library, os.path.realpath(around.library))}
    paths = python_paths(home_of("attrs"), *_modules(), *folders)
    user = {"process": {**config["process"], "user": {"uid": 0, "gid": 0}}}
    words = [str(RUNNER), json.dumps(options)]
    plain = _confined(config) if is_privileged(container) else config
    made = hosted_config({**plain, **user}, words, paths, _CAPABILITIES, image=GUEST + APP)
    made["mounts"] = _guest_mounts(made["mounts"], around)
    return made | {"linux": _linux(made["linux"], memory)}


def _modules() -> list[str]:
    """Where the monitor's program, and what is put into its container, find what they import."""
    return [str(RUNNER.parent), home_of("magik_proto")]


def _of_the_app(container: Mapping[str, Any], grace: float) -> dict[str, Any]:
    """What the guest's init is told of the app; ``dev``: what it is to see below its /dev."""
    mounts = [mount["mountPath"] for mount in container.get("volumeMounts") or ()]
    mounts.append(str(container.get("terminationMessagePath") or TERMINATION_LOG))
    below = sorted({os.path.normpath("/" + path.lstrip("/")) for path in mounts if _inside(path, "/dev")})
    return {"grace": grace, "dev": below, "privileged": is_privileged(container)}


def _confined(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a privileged container as an ordinary one's: of the monitor. Privileged is its guest alone."""
    linux = {**config["linux"], "maskedPaths": MASKED_PATHS, "readonlyPaths": READONLY_PATHS}
    linux["seccomp"] = profile_of({}, {}, (), None)
    if "resources" in linux:
        linux["resources"] = {**linux["resources"], "devices": [{"allow": False, "access": "rwm"}]}
    mounts = [
        {**mount, "options": sorted({*mount["options"], "ro"})} if mount["type"] == "sysfs" else mount
        for mount in config["mounts"]
    ]
    return {**config, "linux": linux, "mounts": mounts}


def _guest_mounts(mounts: list[dict[str, Any]], around: Surroundings) -> list[dict[str, Any]]:
    """The agents' image below all that is the guest's; what the monitor is told, and the way to the init, beside it.

    The guest's own devices hide these few; they are for what stands in for a guest on a kernel that is not its own.
    """
    small = ["nosuid", "nodev", "noexec", "mode=700", "size=64k"]
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    folders = (f"{GUEST}/dev", f"{GUEST}{APP}/dev")
    return [
        bind(str(around.init), GUEST, "ro"),
        *mounts,
        bind(str(around.devices), folders[0], "rw"),
        *(_device(folder, name) for folder in folders for name in _DEVICES),
        {"destination": f"{folders[0]}/pts", "type": "devpts", "source": "devpts", "options": pts},
        bind(str(around.private / _PROCESS_FILE), PROCESS, "ro"),
        {"destination": os.path.dirname(SOCKET), "type": "tmpfs", "source": "tmpfs", "options": small},
    ]


def _device(folder: str, name: str) -> dict[str, Any]:
    options = ["bind", "rprivate", "nosuid", "noexec"]
    return {"destination": f"{folder}/{name}", "type": "bind", "source": f"/dev/{name}", "options": options}


def make_devices(folder: Path) -> None:
    """The folder in which devices are put for what stands in for a guest."""
    (folder / "pts").mkdir(parents=True, exist_ok=True)
    for name in _DEVICES:
        (folder / name).touch()
    with contextlib.suppress(FileExistsError):
        (folder / "ptmx").symlink_to("pts/ptmx")


def guest_files(process: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, str]:
    """By name: what runs in the guest, and how more is run later. A privileged app has what its guest's kernel has."""
    if is_privileged(container):
        every = [f"CAP_{name}" for name in CAPABILITIES]
        process = {**process, "capabilities": {**process["capabilities"], "bounding": every}}
    more = (
        f"import sys, json; sys.path[:0] = {_modules()!r}; from client import execute; "
        f"execute({SOCKET!r}, {{**json.load(open({PROCESS!r})), 'args': sys.argv[1:]}})"
    )
    return {
        _PROCESS_FILE: json.dumps(process),
        EXEC_PREFIX: json.dumps([sys.executable, "-ISB", "-c", more]),
    }


def _linux(linux: Mapping[str, Any], memory: int) -> dict[str, Any]:
    """The limit of memory is the guest's, the monitor has its own beside it; and KVM's device, where there is one."""
    made = dict(linux)
    resources = dict(made.get("resources") or {})
    if "memory" in resources:
        resources["memory"] = {**resources["memory"], "limit": memory + MONITOR_MEMORY}
    try:
        number = os.stat(KVM_DEVICE).st_rdev
    except OSError:
        number = 0
    if number:
        numbers = {"type": "c", "major": os.major(number), "minor": os.minor(number)}
        made["devices"] = [{"path": KVM_DEVICE, **numbers, "fileMode": 0o600, "uid": 0, "gid": 0}]
        if "devices" in resources:
            resources["devices"] = [*resources["devices"], {"allow": True, **numbers, "access": "rw"}]
    return made | ({"resources": resources} if resources else {})


def as_machine(made: Bundle, container: Mapping[str, Any], around: Surroundings) -> Bundle:
    """A container's bundle as one that runs a machine; makes its root. Raises PodSpecError as :func:`machine_config`."""
    config = machine_config(made.config, container, around)
    Path(config["root"]["path"]).mkdir(parents=True, exist_ok=True)
    make_devices(around.devices)
    return evolve(made, config=config, files=guest_files(made.config["process"], container))
