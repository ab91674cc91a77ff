"""From the configuration of a container to one in which a virtual machine runs: one machine for each container of a pod.

The container holds the machine's monitor: this machine's Python with libkrun, which sees the image and the pod's volumes
in it and gives them to the guest by virtio-fs. So what the monitor may, and what it can be made to do by its guest, is
bounded by namespaces, control groups and capabilities like any container's; and what pods are promised of containers
(logs, exit codes, limits, adoption by a restarted daemon) holds for machines without more. The guest's sockets are the
monitor's (TSI), so they are in the pod's network.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import evolve

from machineplane.runtime.bundle import Bundle
from machineplane.runtime.bundle.quantity import byte_count, quantity
from machineplane.runtime.bundle.users import DEFAULT_CAPABILITIES
from machineplane.runtime.errors import PodSpecError
from machineplane.runtime.hosted import IMAGE, bind, hosted_config, is_own, python_paths
from machineplane.runtime.krun.binding import GUEST_CONFIG, MAX_VCPUS
from machineplane.runtime.krun.locate import KVM_DEVICE

KRUN: Final = "krun"
"""The engine's name, in ``magik.io/runtime`` as well."""
RUNNER: Final = Path(__file__).with_name("machine.py")
DEFAULT_MEMORY: Final = 512 << 20
"""Bytes of a guest without a limit of memory, a guess: a machine's memory has to be some number."""
MONITOR_MEMORY: Final = 96 << 20
"""Bytes that the monitor may use beside its guest's memory, a guess: Python, libkrun, and buffers of its devices."""
_MIN_MEMORY: Final = 32 << 20  # a guess: with less the guest's kernel has no room for a program
_GUEST_FILE: Final = "guest.json"
_MIB = 1 << 20
_CAPABILITIES: Final = tuple(f"CAP_{name}" for name in DEFAULT_CAPABILITIES if name != "MKNOD")
"""virtio-fs acts on files for the guest's users, and TSI takes its ports; nothing that an ordinary container has not."""


def check_machine(container: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raises PodSpecError where a container asks for what a guest cannot have: it would be quietly left out."""
    name, security = container["name"], container.get("securityContext") or {}
    if container.get("tty"):
        raise PodSpecError(f"{name}: a microVM has no terminal in this version; leave `tty` out")
    if any("exec" in hook for hook in (container.get("lifecycle") or {}).values()):
        raise PodSpecError(f"{name}: no commands run in a microVM in this version; leave exec hooks out")
    if security.get("privileged"):
        raise PodSpecError(f"{name}: a microVM cannot be privileged")
    user = config["process"]["user"]
    if user["uid"] or user["gid"]:
        raise PodSpecError(
            f"{name}: a microVM runs its program as root in this version, not as {user['uid']}:{user['gid']}"
        )
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
    config: Mapping[str, Any], container: Mapping[str, Any], library: str, guest: Path
) -> dict[str, Any]:
    """The configuration that runs a guest; the file ``guest`` will say what runs in it.

    ``config`` is the container's as for any other engine, ``container`` its spec.

    Raises:
        PodSpecError: as :func:`check_machine`, :func:`vcpus` and :func:`guest_memory`.
    """
    check_machine(container, config)
    limits, where = (
        (container.get("resources") or {}).get("limits") or {},
        f"{container['name']}.resources.limits",
    )
    memory = guest_memory(limits, where)
    options = {
        "library": library,
        "root": IMAGE,
        "vcpus": vcpus(limits, where),
        "memory_mib": memory // _MIB,
    }
    folders = {os.path.dirname(path) for path in (library, os.path.realpath(library))}
    paths = python_paths("attrs", str(RUNNER.parent), *folders)
    made = hosted_config(config, [str(RUNNER), json.dumps(options)], paths, _CAPABILITIES)
    made["mounts"].append(bind(str(guest), IMAGE + GUEST_CONFIG, "ro"))
    return made | {"linux": _linux(config["linux"], memory)}


def guest_text(process: Mapping[str, Any]) -> str:
    """What libkrun's init reads in the guest: the program with its arguments, variables and folder."""
    wanted = {"args": process["args"], "env": process["env"], "cwd": process["cwd"]}
    return json.dumps({"process": wanted}, ensure_ascii=False)


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
    config = machine_config(made.config, container, library, private / _GUEST_FILE)
    Path(config["root"]["path"]).mkdir(exist_ok=True)
    return evolve(made, config=config, files={_GUEST_FILE: guest_text(made.config["process"])})
