"""Fields of a pod's spec that Kubernetes has and this version does not do, where doing without would mislead."""

from collections.abc import Iterator, Mapping
from typing import Any

from machineplane.runtime.errors import PodSpecError

Json = Mapping[str, Any]

RESOURCES = ("cpu", "memory", "ephemeral-storage")
SCHEDULER = "default-scheduler"
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc")
_POD = (
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "shareProcessNamespace",
    "ephemeralContainers",
    "resourceClaims",
    "readinessGates",
    "schedulingGates",
    "schedulingGroup",
    "evictionResponders",
    "runtimeClassName",
    "overhead",
    "resources",
    "hostnameOverride",
)
_CONTAINER = ("volumeDevices", "resizePolicy", "restartPolicyRules")


def refuse(fields: Json, names: tuple[str, ...], where: str) -> None:
    """Raises PodSpecError for the first of ``names`` that says anything."""
    for name in names:
        if fields.get(name):
            raise PodSpecError(f"{where}.{name} is not supported by this version")


def refuse_of_pod(spec: Json) -> None:
    """Raises PodSpecError, naming the field."""
    refuse(spec, _POD, "spec")
    if spec.get("hostUsers") is False:
        raise PodSpecError("spec.hostUsers false (a user namespace) is not supported by this version")
    if (scheduler := spec.get("schedulerName") or SCHEDULER) != SCHEDULER:
        raise PodSpecError(f"spec.schedulerName {scheduler!r} is not here: machines bid for every pod")
    if (system := (spec.get("os") or {}).get("name") or "linux") != "linux":
        raise PodSpecError(f"spec.os.name {system!r} is not supported: machines run Linux")


def refuse_of_container(container: Json, where: str) -> None:
    """Raises PodSpecError, naming the field."""
    refuse(container, _CONTAINER, where)
    for index, port in enumerate(container.get("ports") or ()):
        refuse(port, ("hostPort",), f"{where}.ports[{index}]")
    resources = container.get("resources") or {}
    refuse(resources, ("claims",), f"{where}.resources")
    for which, name in _amounts(resources):
        if name not in RESOURCES:
            known = ", ".join(RESOURCES)
            raise PodSpecError(f"{where}.resources.{which}: machines have no {name!r}, only {known}")
    for name in PROBES:
        handlers = [key for key in _HANDLERS if (container.get(name) or {}).get(key) is not None]
        if container.get(name) and len(handlers) != 1:
            said = ", ".join(handlers) or "nothing"
            raise PodSpecError(f"{where}.{name} says {said}; exactly one of {', '.join(_HANDLERS)} is needed")


def _amounts(resources: Json) -> Iterator[tuple[str, str]]:
    for which in ("limits", "requests"):
        for name, amount in (resources.get(which) or {}).items():
            if str(amount) != "0":
                yield which, name
