"""The downward API: what a pod may learn of itself, as text."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from machineplane.runtime.bundle.quantity import quantity
from machineplane.runtime.errors import PodSpecError

_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")
_RESOURCE = re.compile(r"(limits|requests)\.(cpu|memory|ephemeral-storage)")
FIELDS = (
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)


@frozen(kw_only=True)
class Place:
    """Where a pod runs: its own address and its machine's name, address, CPUs and bytes of memory and disk."""

    node_name: str = ""
    host_ip: str = ""
    pod_ip: str = ""
    cpus: int = 1
    memory: int = 0
    storage: int = 0


def this_machine(*, node_name: str, host_ip: str, pod_ip: str, disk: str) -> Place:
    """The place of a pod on this machine; ``disk`` is a path on the file system that pods use."""
    found = os.statvfs(disk)
    return Place(
        node_name=node_name,
        host_ip=host_ip,
        pod_ip=pod_ip,
        cpus=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        storage=found.f_blocks * found.f_frsize,
    )


def check_field(path: object, where: str, *, maps: bool = False) -> None:
    """Refuse a ``fieldPath`` that is not served; ``maps``: labels and annotations as a whole may be asked for.

    Raises:
        PodSpecError: names the field.
    """
    known = path in FIELDS or (isinstance(path, str) and _SUBSCRIPT.fullmatch(path))
    if not known and not (maps and path in ("metadata.labels", "metadata.annotations")):
        raise PodSpecError(f"{where}.fieldRef.fieldPath {path!r} is not supported by this version")


def field_value(pod: Mapping[str, Any], path: str, place: Place) -> str:
    """What a ``fieldRef`` stands for.

    Raises:
        PodSpecError: a field that cannot be had.
    """
    metadata = pod["metadata"]
    subscript = _SUBSCRIPT.fullmatch(path)
    if subscript:
        return str((metadata.get(subscript[1]) or {}).get(subscript[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        return _lines(metadata.get(path.partition(".")[2]) or {})
    check_field(path, "fieldRef")
    known = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": place.node_name,
        "spec.serviceAccountName": (pod.get("spec") or {}).get("serviceAccountName") or "default",
        "status.hostIP": place.host_ip,
        "status.hostIPs": place.host_ip,
        "status.podIP": place.pod_ip,
        "status.podIPs": place.pod_ip,
    }
    return str(known[path])


def _lines(values: Mapping[str, str]) -> str:
    """As Kubernetes writes maps into files: ``key="value"`` with escapes, sorted."""
    quoted = {key: str(value).replace("\\", "\\\\").replace('"', '\\"') for key, value in values.items()}
    return "\n".join(f'{key}="{quoted[key]}"'.replace("\n", "\\n") for key in sorted(quoted))


def check_resource(reference: Mapping[str, Any], where: str) -> None:
    """Refuse a ``resourceFieldRef`` that is not served.

    Raises:
        PodSpecError: names the field.
    """
    name = reference.get("resource")
    if not isinstance(name, str) or not _RESOURCE.fullmatch(name):
        raise PodSpecError(f"{where}.resourceFieldRef.resource {name!r} is not supported by this version")
    if reference.get("divisor") is not None:
        quantity(reference["divisor"], f"{where}.resourceFieldRef.divisor")


def resource_value(
    containers: Mapping[str, Mapping[str, Any]], reference: Mapping[str, Any], own: str, place: Place
) -> str:
    """What a ``resourceFieldRef`` stands for: the amount by the divisor (default 1), rounded up.

    Where the container has no such limit it is what the machine has, as Kubernetes has it.
    """
    check_resource(reference, "valueFrom")
    which, _, name = str(reference["resource"]).partition(".")
    resources = containers.get(reference.get("containerName") or own, {}).get("resources") or {}
    machine = {"cpu": place.cpus, "memory": place.memory, "ephemeral-storage": place.storage}
    amount = (resources.get(which) or {}).get(name)
    if amount is None and which == "requests":
        amount = (resources.get("limits") or {}).get(name, 0)
    elif amount is None:
        amount = machine[name]
    divisor = quantity(reference.get("divisor") or 1, "divisor") or 1
    return str(math.ceil(quantity(amount, f"resources.{which}.{name}") / divisor))
