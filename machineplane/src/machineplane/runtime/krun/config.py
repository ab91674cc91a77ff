"""From the configuration of a container to one in which a virtual machine runs: one machine for each container of a pod.

The container holds the machine's monitor: this machine's Python with libkrun, which gives the guest one folder by virtio-fs:
Python, read-only, for the guest's init, and in `ROOT` the image with the pod's volumes in it, into which the init puts the
program. So what the monitor may, and what it can be made to do by its guest, is bounded by namespaces, control groups and
capabilities like any container's; and what pods are promised of containers (logs, exit codes, limits, adoption by a
restarted daemon) holds for machines without more. The guest's sockets are the monitor's (TSI): they are in the pod's
network.
"""

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import evolve

from machineplane.runtime.bundle import Bundle
from machineplane.runtime.bundle.quantity import byte_count, quantity
from machineplane.runtime.bundle.users import DEFAULT_CAPABILITIES
from machineplane.runtime.errors import PodSpecError
from machineplane.runtime.hosted import bind, hosted_config, is_own, library_paths, python_paths
from machineplane.runtime.krun.binding import GUEST_CONFIG, MAX_VCPUS
from machineplane.runtime.krun.guest.init import PORT, ROOT
from machineplane.runtime.krun.locate import KVM_DEVICE
from machineplane.runtime.krun.machine import PROCESS, SOCKET
from machineplane.runtime.shim.calls import EXEC_PREFIX

KRUN: Final = "krun"
"""The engine's name, in ``magik.io/runtime`` as well."""
RUNNER: Final = Path(__file__).with_name("machine.py")
INIT: Final = Path(__file__).with_name("guest")
GUEST: Final = "/guest"
"""The folder of the monitor's container that is the guest's root."""
_INIT_HOME: Final = "/magik"
DEFAULT_MEMORY: Final = 512 << 20
"""Bytes of a guest without a limit of memory, a guess: a machine's memory has to be some number."""
MONITOR_MEMORY: Final = 96 << 20
"""Bytes that the monitor may use beside its guest's memory, a guess: Python, libkrun, and buffers of its devices."""
_MIN_MEMORY: Final = 32 << 20  # a guess: with less the guest's kernel has no room for a program
_GUEST_FILE, _PROCESS_FILE = "guest.json", "process.json"
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_MIB = 1 << 20
_CAPABILITIES: Final = tuple(f"CAP_{name}" for name in DEFAULT_CAPABILITIES if name != "MKNOD")
"""virtio-fs acts on files for the guest's users, and TSI takes its ports; nothing that an ordinary container has not."""


def check_machine(container: Mapping[str, Any]) -> None:
    """Raises PodSpecError where a container asks for what a guest cannot have: it would be quietly left out."""
    name = container["name"]
    if (container.get("securityContext") or {}).get("privileged"):
        raise PodSpecError(f"{name}: a microVM cannot be privileged")
    for mount in container.get("volumeMounts") or ():
        if is_own(mount["mountPath"]):
            raise PodSpecError(f"{name}: {mount['mountPath']}: a microVM has /proc, /dev and /sys of its own")


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
    config: Mapping[str, Any], container: Mapping[str, Any], library: str, private: Path
) -> dict[str, Any]:
    """The configuration that runs a guest; files in the folder ``private`` say what runs in it (:func:`guest_files`).

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
        "library": library,
        "root": GUEST,
        "vcpus": vcpus(limits, where),
        "memory_mib": memory // _MIB,
        "port": PORT,
    }
    folders = {os.path.dirname(path) for path in (library, os.path.realpath(library))}
    paths = python_paths("attrs", str(RUNNER.parent), *folders)
    user = {"process": {**config["process"], "user": {"uid": 0, "gid": 0}}}
    words = [str(RUNNER), json.dumps(options)]
    made = hosted_config({**config, **user}, words, paths, _CAPABILITIES, image=GUEST + ROOT)
    made["mounts"] += _guest_mounts(private)
    return made | {"linux": _linux(config["linux"], memory)}


def _guest_mounts(private: Path) -> list[dict[str, Any]]:
    """What the guest's init is made of, what it is told, and the way to it, which the guest does not see.

    The guest's own devices hide these few; they are for what stands in for a guest on a kernel that is not its own.
    """
    mounts = [bind(path, GUEST + path, "ro") for path in library_paths()]
    mounts.append(bind(str(INIT), f"{GUEST}{_INIT_HOME}/guest", "ro"))
    mounts.append(bind(str(private / _GUEST_FILE), GUEST + GUEST_CONFIG, "ro"))
    mounts.append(bind(str(private / _PROCESS_FILE), PROCESS, "ro"))
    small = ["nosuid", "nodev", "noexec", "mode=700", "size=64k"]
    mounts.append(
        {"destination": os.path.dirname(SOCKET), "type": "tmpfs", "source": "tmpfs", "options": small}
    )
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    for folder in (f"{GUEST}/dev", f"{GUEST}{ROOT}/dev"):
        for name in _DEVICES:
            options = ["bind", "rprivate", "nosuid", "noexec"]
            found = {"type": "bind", "source": f"/dev/{name}", "options": options}
            mounts.append({"destination": f"{folder}/{name}", **found})
    mounts.append({"destination": f"{GUEST}/dev/pts", "type": "devpts", "source": "devpts", "options": pts})
    return mounts


def guest_files(process: Mapping[str, Any]) -> dict[str, str]:
    """By name: what libkrun's init starts in the guest, what that runs there, and how more is run later."""
    python = [os.path.realpath(sys.executable), "-ISB", "-c"]
    init = f"import sys; sys.path.insert(0, {_INIT_HOME!r}); from guest.init import main; main()"
    first = {"args": [*python, init], "env": ["PATH=/usr/bin:/bin"], "cwd": "/"}
    more = (
        f"import sys, json; sys.path.insert(0, {str(RUNNER.parent)!r}); from guest.client import execute; "
        f"execute({SOCKET!r}, {{**json.load(open({PROCESS!r})), 'args': sys.argv[1:]}})"
    )
    return {
        _GUEST_FILE: json.dumps({"process": first}),
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


def as_machine(made: Bundle, container: Mapping[str, Any], library: str, private: Path) -> Bundle:
    """A container's bundle as one that runs a machine; makes its root. Raises PodSpecError as :func:`machine_config`.

    ``private`` is the container's folder in the pod's file system in memory.
    """
    config = machine_config(made.config, container, library, private)
    root = Path(config["root"]["path"] + GUEST)
    for name in ("dev", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (root / "dev/ptmx").symlink_to("pts/ptmx")
    return evolve(made, config=config, files=guest_files(made.config["process"]))
