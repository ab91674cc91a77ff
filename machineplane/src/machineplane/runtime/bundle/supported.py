"""Which pods this version can run. What it cannot do is refused by name, never quietly left out."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from machineplane.runtime.bundle.volumes import check_volumes
from machineplane.runtime.errors import PodSpecError

Json = Mapping[str, Any]

MAX_CONTAINERS = 24
"""Containers of a pod, init ones included; more is refused. A guess far above use, below what a shim keeps (64)."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,63}")
_POD_REFUSED = (
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "shareProcessNamespace",
    "ephemeralContainers",
    "resourceClaims",
)
_CONTAINER_REFUSED = ("lifecycle", "envFrom", "tty", "volumeDevices")
_RESTART_POLICIES = ("Always", "OnFailure", "Never")


def _mapping(value: object, where: str) -> Json:
    if not isinstance(value, Mapping):
        raise PodSpecError(f"{where} is missing or not an object")
    return value


def _refuse(fields: Json, names: Iterable[str], where: str) -> None:
    for name in names:
        if fields.get(name):
            raise PodSpecError(f"{where}.{name} is not supported by this version")


def _seccomp(context: Json, where: str) -> None:
    kind = (context.get("seccompProfile") or {}).get("type", "Unconfined")
    if kind != "Unconfined":
        raise PodSpecError(f"{where}.seccompProfile {kind} is not supported by this version")


def check_container(container: object, where: str, *, allow_privileged: bool) -> None:
    """Refuse a container that this version cannot run as its spec says."""
    fields = _mapping(container, where)
    name = fields.get("name")
    if not isinstance(name, str) or not _LABEL.fullmatch(name):
        raise PodSpecError(f"{where}.name {name!r} is not a DNS label")
    if not isinstance(fields.get("image"), str) or not fields["image"]:
        raise PodSpecError(f"{where}.image is missing")
    _refuse(fields, _CONTAINER_REFUSED, where)
    if fields.get("restartPolicy"):
        raise PodSpecError(f"{where}.restartPolicy (sidecar containers) is not supported by this version")
    context = _mapping(fields.get("securityContext") or {}, f"{where}.securityContext")
    if context.get("privileged") and not allow_privileged:
        raise PodSpecError(f"{where}.securityContext.privileged is not allowed on this machine")
    _seccomp(context, f"{where}.securityContext")


def all_containers(pod: Json) -> list[tuple[Json, bool]]:
    """Every container of the pod with whether it is an init container, in the order in which they start."""
    spec = pod.get("spec") or {}
    return [(c, True) for c in spec.get("initContainers") or []] + [
        (c, False) for c in spec.get("containers") or []
    ]


def check_pod(pod: Json, *, allow_privileged: bool) -> None:
    """Refuse a malformed pod, and one that asks for what this version does not do.

    Raises:
        PodSpecError: names the field.
    """
    metadata = _mapping(pod.get("metadata"), "metadata")
    if not _UID.fullmatch(str(metadata.get("uid", ""))):
        raise PodSpecError("metadata.uid is missing or not usable as a name")
    for key in ("name", "namespace"):
        if not isinstance(metadata.get(key), str) or not metadata[key]:
            raise PodSpecError(f"metadata.{key} is missing")
    spec = _mapping(pod.get("spec"), "spec")
    if spec.get("restartPolicy", "Always") not in _RESTART_POLICIES:
        raise PodSpecError(
            f"spec.restartPolicy {spec['restartPolicy']!r} is none of {', '.join(_RESTART_POLICIES)}"
        )
    _refuse(spec, _POD_REFUSED, "spec")
    security = _mapping(spec.get("securityContext") or {}, "spec.securityContext")
    _refuse(security, ("sysctls",), "spec.securityContext")
    _seccomp(security, "spec.securityContext")
    check_volumes(spec)
    _check_containers(spec, allow_privileged)


def _check_containers(spec: Json, allow_privileged: bool) -> None:
    names: list[str] = []
    for key in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(key) or []):
            check_container(container, f"spec.{key}[{index}]", allow_privileged=allow_privileged)
            names.append(container["name"])
    if not spec.get("containers"):
        raise PodSpecError("spec.containers is empty")
    if len(names) > MAX_CONTAINERS:
        raise PodSpecError(f"the pod has {len(names)} containers; at most {MAX_CONTAINERS} are run")
    if len(set(names)) != len(names):
        raise PodSpecError("two containers of the pod have the same name")
