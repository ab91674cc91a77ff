"""Values that an API server fills in, as ``k8s.io/kubernetes/pkg/apis/{core,apps}/v1/defaults.go`` does.

Tables of plain defaults per type, and small functions for those that depend on other fields. Objects are
changed in place: callers own them.
"""

import base64
from collections.abc import Callable, Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import Any, Final

from .servicerules import set_service_defaults

Object = dict[str, Any]

_POD_SPEC: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "securityContext": {},
        "schedulerName": "default-scheduler",
    }
)
_CONTAINER: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "resources": {},
    }
)
_PROBE: Final[Mapping[str, Any]] = MappingProxyType(
    {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
)
_DEPLOYMENT_SPEC: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "replicas": 1,
        "strategy": {"type": "RollingUpdate"},
        "revisionHistoryLimit": 10,
        "progressDeadlineSeconds": 600,
    }
)
_STATEFUL_SET_SPEC: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "replicas": 1,
        "podManagementPolicy": "OrderedReady",
        "updateStrategy": {"type": "RollingUpdate"},
        "revisionHistoryLimit": 10,
    }
)
_ROLLING: Final[Mapping[str, Any]] = MappingProxyType({"maxUnavailable": "25%", "maxSurge": "25%"})
_PROBES: Final = ("livenessProbe", "readinessProbe", "startupProbe")
#: Volume sources whose files get a mode: 0644.
_WITH_MODE: Final = ("secret", "configMap", "downwardAPI", "projected")
_MODE: Final = 0o644


def set_defaults(kind: str, obj: Object) -> None:
    """Fill in what the author of an object of this kind left open."""
    if (setter := _SETTERS.get(kind)) is not None:
        setter(obj)


def _fill(obj: Object, defaults: Mapping[str, Any]) -> None:
    for key, value in defaults.items():
        if obj.get(key) is None:
            obj[key] = deepcopy(value)


def _pod(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _pod_spec(spec)
    _fill(spec, {"enableServiceLinks": True})
    for container in _all_containers(spec):
        resources = container["resources"]
        if limits := resources.get("limits"):
            resources["requests"] = limits | (resources.get("requests") or {})


def _deployment(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, _DEPLOYMENT_SPEC)
    strategy = spec["strategy"]
    _fill(strategy, {"type": "RollingUpdate"})
    if strategy["type"] == "RollingUpdate":
        _fill(strategy, {"rollingUpdate": {}})
        _fill(strategy["rollingUpdate"], _ROLLING)
    _template(spec)


def _stateful_set(obj: Object) -> None:
    spec = obj.setdefault("spec", {})
    _fill(spec, _STATEFUL_SET_SPEC)
    strategy = spec["updateStrategy"]
    _fill(strategy, {"type": "RollingUpdate"})
    if strategy["type"] == "RollingUpdate":
        _fill(strategy, {"rollingUpdate": {}})
        _fill(strategy["rollingUpdate"], {"partition": 0})
    _template(spec)


def _template(spec: Object) -> None:
    template = spec.setdefault("template", {})
    _fill(template, {"metadata": {}, "spec": {}})
    _pod_spec(template["spec"])


def _namespace(obj: Object) -> None:
    labels = obj["metadata"].setdefault("labels", {})
    labels["kubernetes.io/metadata.name"] = obj["metadata"].get("name", "")
    _fill(obj, {"spec": {}})
    _fill(obj["spec"], {"finalizers": ["kubernetes"]})


def _secret(obj: Object) -> None:
    """``stringData`` is for writing only: it goes into ``data``, over what is there."""
    _fill(obj, {"type": "Opaque"})
    for key, text in (obj.pop("stringData", None) or {}).items():
        obj.setdefault("data", {})[key] = base64.b64encode(text.encode()).decode("ascii")


def _pod_spec(spec: Object) -> None:
    _fill(spec, _POD_SPEC)
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        _fill(spec, {"serviceAccountName": account, "serviceAccount": account})
    for container in _all_containers(spec):
        _container(container)
    for volume in spec.get("volumes") or ():
        _volume(volume)


def _all_containers(spec: Object) -> list[Object]:
    return [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]


def _container(container: Object) -> None:
    _fill(container, _CONTAINER)
    _fill(container, {"imagePullPolicy": pull_policy(container.get("image", ""))})
    for port in container.get("ports") or ():
        _fill(port, {"protocol": "TCP"})
    for name in _PROBES:
        if (probe := container.get(name)) is not None:
            _probe(probe)
    for hook in (container.get("lifecycle") or {}).values():
        if isinstance(hook, dict) and (get := hook.get("httpGet")) is not None:
            _fill(get, {"path": "/", "scheme": "HTTP"})
    for variable in container.get("env") or ():
        if (reference := (variable.get("valueFrom") or {}).get("fieldRef")) is not None:
            _fill(reference, {"apiVersion": "v1"})


def pull_policy(image: str) -> str:
    """``Always`` for ``:latest`` or no tag, else ``IfNotPresent``."""
    if "@" in image:
        return "IfNotPresent"
    tag = image.rpartition("/")[2].partition(":")[2]
    return "Always" if tag in ("", "latest") else "IfNotPresent"


def _probe(probe: Object) -> None:
    _fill(probe, _PROBE)
    if (get := probe.get("httpGet")) is not None:
        _fill(get, {"path": "/", "scheme": "HTTP"})
    if (call := probe.get("grpc")) is not None:
        _fill(call, {"service": ""})


def _volume(volume: Object) -> None:
    if set(volume) <= {"name"}:
        volume["emptyDir"] = {}
    for name in _WITH_MODE:
        if (source := volume.get(name)) is not None:
            _fill(source, {"defaultMode": _MODE})
    if (path := volume.get("hostPath")) is not None:
        _fill(path, {"type": ""})


_SETTERS: Final[Mapping[str, Callable[[Object], None]]] = MappingProxyType(
    {
        "Pod": _pod,
        "Deployment": _deployment,
        "StatefulSet": _stateful_set,
        "Namespace": _namespace,
        "Secret": _secret,
        "Service": set_service_defaults,
    }
)
