"""What a pod's spec asks of Kubernetes that is not done here, and that the pod runs without: told as warnings."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

Object = Mapping[str, Any]

_NODE_HARD: Final = "requiredDuringSchedulingIgnoredDuringExecution"
_NODE_SOFT: Final = "preferredDuringSchedulingIgnoredDuringExecution"


def pod_warnings(kind: str, obj: Object) -> tuple[str, ...]:
    """One line for each field of a Pod, or of a workload's template, that is not obeyed."""
    spec, path = obj.get("spec") or {}, "spec"
    if kind != "Pod":
        spec, path = (spec.get("template") or {}).get("spec") or {}, "spec.template.spec"
    return tuple(f"{path}.{field}" for field in _unheeded(spec)) if spec.get("containers") else ()


def _unheeded(spec: Object) -> Iterator[str]:
    spread = "replicas are spread over machines as far as these allow, and not otherwise"
    affinity = spec.get("affinity") or {}
    for field in ("podAffinity", "podAntiAffinity"):
        if affinity.get(field):
            yield f"affinity.{field}: not obeyed: {spread}"
    if spec.get("topologySpreadConstraints"):
        yield f"topologySpreadConstraints: not obeyed: {spread}"
    node = affinity.get("nodeAffinity") or {}
    if node.get(_NODE_SOFT):
        yield f"affinity.nodeAffinity.{_NODE_SOFT}: not obeyed: machines have no preferences"
    terms = (node.get(_NODE_HARD) or {}).get("nodeSelectorTerms") or ()
    if any(term.get("matchFields") for term in terms):
        yield f"affinity.nodeAffinity.{_NODE_HARD}: matchFields is not obeyed: match the label kubernetes.io/hostname"
    if spec.get("priorityClassName"):
        yield "priorityClassName: there are no priority classes: say the number by priority"
    if spec.get("automountServiceAccountToken"):
        yield "automountServiceAccountToken: there are no service accounts: no token is mounted"
