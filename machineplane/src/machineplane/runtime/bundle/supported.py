"""Which pods this version can run. What it cannot do is refused by name, never quietly left out."""

import re
from collections.abc import Mapping
from typing import Any

from machineplane.runtime.bundle.env import check_env
from machineplane.runtime.bundle.hostpolicy import HostPolicy
from machineplane.runtime.bundle.seccomp import check_seccomp
from machineplane.runtime.bundle.sysctls import check_sysctls
from machineplane.runtime.bundle.unsupported import refuse, refuse_of_container, refuse_of_pod
from machineplane.runtime.bundle.volumes import check_volumes
from machineplane.runtime.errors import PodSpecError

Json = Mapping[str, Any]

MAX_CONTAINERS = 24
"""Containers of a pod, init ones included; more is refused. A guess far above use, below what a shim keeps (64)."""

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,63}")
_SECURITY_REFUSED = ("seLinuxOptions", "windowsOptions")
_RESTART_POLICIES = ("Always", "OnFailure", "Never")
_HOOKS = ("postStart", "preStop")
_ACTIONS = ("exec", "httpGet", "sleep")


def _mapping(value: object, where: str) -> Json:
    if not isinstance(value, Mapping):
        raise PodSpecError(f"{where} is missing or not an object")
    return value


def _check_hooks(lifecycle: Json, where: str) -> None:
    for name, hook in lifecycle.items():
        if name not in _HOOKS:
            raise PodSpecError(f"{where}.{name} is not supported by this version")
        actions = [action for action in hook if hook[action] is not None]
        if len(actions) != 1 or actions[0] not in _ACTIONS:
            said = ", ".join(actions) or "nothing"
            raise PodSpecError(f"{where}.{name} says {said}; one of {', '.join(_ACTIONS)} is supported")
        if actions[0] == "exec" and not (hook["exec"] or {}).get("command"):
            raise PodSpecError(f"{where}.{name}.exec.command is missing")


def _check_security(context: Json, where: str, policy: HostPolicy) -> None:
    refuse(context, _SECURITY_REFUSED, where)
    if context.get("privileged") and not policy.privileged:
        raise PodSpecError(f"{where}.privileged is not allowed on this machine: see --allow-privileged")
    if context.get("procMount") not in {None, "", "Default"} and not policy.privileged:
        raise PodSpecError(f"{where}.procMount {context['procMount']} is not allowed on this machine")
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") == "Localhost":
        raise PodSpecError(f"{where}.appArmorProfile.type Localhost is not supported by this version")
    check_seccomp(context, where, policy.seccomp_dir, anything=policy.anything)


def check_container(container: object, where: str, policy: HostPolicy, *, init: bool = False) -> None:
    """Refuse a container that this version cannot run as its spec says."""
    fields = _mapping(container, where)
    name = fields.get("name")
    if not isinstance(name, str) or not _LABEL.fullmatch(name):
        raise PodSpecError(f"{where}.name {name!r} is not a DNS label")
    if not isinstance(fields.get("image"), str) or not fields["image"]:
        raise PodSpecError(f"{where}.image is missing")
    if fields.get("restartPolicy") and not (init and fields["restartPolicy"] == "Always"):
        raise PodSpecError(f"{where}.restartPolicy: only an init container's `Always` is supported")
    if fields.get("terminationMessagePolicy") not in {None, "", "File", "FallbackToLogsOnError"}:
        raise PodSpecError(
            f"{where}.terminationMessagePolicy {fields['terminationMessagePolicy']!r} is unknown"
        )
    refuse_of_container(fields, where)
    _check_hooks(_mapping(fields.get("lifecycle") or {}, f"{where}.lifecycle"), f"{where}.lifecycle")
    check_env(fields, where)
    context = _mapping(fields.get("securityContext") or {}, f"{where}.securityContext")
    _check_security(context, f"{where}.securityContext", policy)


def all_containers(pod: Json) -> list[tuple[Json, bool]]:
    """Every container of the pod with whether it is an init container, in the order in which they start."""
    spec = pod.get("spec") or {}
    return [(c, True) for c in spec.get("initContainers") or []] + [
        (c, False) for c in spec.get("containers") or []
    ]


def is_sidecar(container: Json) -> bool:
    """Whether an init container runs beside the pod's others instead of before them."""
    return container.get("restartPolicy") == "Always"


def check_pod(pod: Json, policy: HostPolicy) -> None:
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
    check_spec(_mapping(pod.get("spec"), "spec"), policy)


def check_spec(spec: Json, policy: HostPolicy) -> None:
    """As :func:`check_pod`, for the spec alone: of a pod or of a template."""
    if spec.get("restartPolicy", "Always") not in _RESTART_POLICIES:
        raise PodSpecError(
            f"spec.restartPolicy {spec['restartPolicy']!r} is none of {', '.join(_RESTART_POLICIES)}"
        )
    refuse_of_pod(spec)
    security = _mapping(spec.get("securityContext") or {}, "spec.securityContext")
    _check_security(security, "spec.securityContext", policy)
    check_sysctls(security, "spec.securityContext", policy)
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and (type(deadline) is not int or deadline < 1):
        raise PodSpecError(f"spec.activeDeadlineSeconds {deadline!r} is not a number of seconds from 1 on")
    check_volumes(spec, policy)
    _check_containers(spec, policy)


def _check_containers(spec: Json, policy: HostPolicy) -> None:
    names: list[str] = []
    for key in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(key) or []):
            check_container(container, f"spec.{key}[{index}]", policy, init=key == "initContainers")
            names.append(container["name"])
    if not spec.get("containers"):
        raise PodSpecError("spec.containers is empty")
    if len(names) > MAX_CONTAINERS:
        raise PodSpecError(f"the pod has {len(names)} containers; at most {MAX_CONTAINERS} are run")
    if len(set(names)) != len(names):
        raise PodSpecError("two containers of the pod have the same name")
