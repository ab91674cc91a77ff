"""From a pod template to what a tender asks for (protocol.md, Tender: requirements)."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from machineplane.quantities import byte_count, millicores
from magik_proto.errors import InvalidField
from magik_proto.identity import PeerId
from magik_proto.messages import Expression, Requirements, SelectorTerm, Toleration

RUNTIME_ANNOTATION = "magik.io/runtime"
RUNTIMES = ("crun", "krun", "wasm")
# How other runtimes (crun, containerd's shims) are told that an image is a WebAssembly module.
WASM_ANNOTATIONS = {
    "run.oci.handler": ("wasm",),
    "module.wasm.image/variant": ("compat", "compat-smart"),
}
# What a container that names no request is taken to need, so that "best effort" pods still spread and still count.
DEFAULT_CPU_MILLIS = 10
DEFAULT_MEMORY_BYTES = 16 * 1024 * 1024
PRIORITY_MAX = (1 << 31) - 1  # a tender's, and Kubernetes' int32

PodSpec = Mapping[str, Any]


class RequirementsError(ValueError):
    """The pod template asks for something that cannot be read; the text names the field."""


def requirements_of(
    spec: PodSpec, annotations: Mapping[str, str], default_runtime: str, avoid: Iterable[PeerId] = ()
) -> Requirements:
    """Requests of all app containers together (or of the largest init container, if that is more), and where to run.

    Raises RequirementsError, also for what no tender can say (a label that is none, an amount beyond all bounds).
    """
    try:
        return _requirements(spec, annotations, default_runtime, avoid)
    except InvalidField as error:
        raise RequirementsError(str(error)) from error


def priority_of(spec: PodSpec) -> int:
    """The pod's own priority, 0 where it names none. Raises RequirementsError."""
    priority = spec.get("priority") or 0
    if type(priority) is not int or abs(priority) > PRIORITY_MAX:
        raise RequirementsError(f"priority: must be a whole number, at most {PRIORITY_MAX} either way")
    return priority


def _requirements(
    spec: PodSpec, annotations: Mapping[str, str], default_runtime: str, avoid: Iterable[PeerId]
) -> Requirements:
    runtime = (
        annotations.get(RUNTIME_ANNOTATION) or (_asks_for_wasm(annotations) and "wasm") or default_runtime
    )
    if runtime not in RUNTIMES:
        raise RequirementsError(
            f"annotation {RUNTIME_ANNOTATION}: {runtime!r} is none of {', '.join(RUNTIMES)}"
        )
    selector = dict(_part(spec, "nodeSelector"))
    return Requirements(
        cpu_millis=_need(spec, "cpu", DEFAULT_CPU_MILLIS),
        memory_bytes=_need(spec, "memory", DEFAULT_MEMORY_BYTES),
        storage_bytes=_need(spec, "ephemeral-storage", 0),
        runtime=runtime,
        architecture=selector.pop("kubernetes.io/arch", None),
        node_selector=selector,
        affinity=tuple(_affinity(spec)),
        tolerations=tuple(_toleration(t) for t in _objects(spec, "tolerations")),
        avoid=tuple(avoid),
    )


def _asks_for_wasm(annotations: Mapping[str, str]) -> bool:
    return any(annotations.get(name) in values for name, values in WASM_ANNOTATIONS.items())


Resource = Literal["cpu", "memory", "ephemeral-storage"]


def _need(spec: PodSpec, resource: Resource, default: int) -> int:
    apps = sum(_request(c, resource, default) for c in _objects(spec, "containers"))
    inits = max((_request(c, resource, default) for c in _objects(spec, "initContainers")), default=0)
    return max(apps, inits)


def _request(container: Mapping[str, Any], resource: Resource, default: int) -> int:
    limit = _part(container, "resources", "limits").get(resource)
    text = _part(container, "resources", "requests").get(resource, limit)
    if text is None:
        return default
    try:
        return millicores(text) if resource == "cpu" else byte_count(text)
    except ValueError as error:
        raise RequirementsError(
            f"container {container.get('name')}: resources {resource}: {error}"
        ) from error


def _affinity(spec: PodSpec) -> Iterable[SelectorTerm]:
    node = _part(spec, "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution")
    for term in _objects(node, "nodeSelectorTerms"):
        yield SelectorTerm(tuple(_expression(e) for e in _objects(term, "matchExpressions")))


def _expression(wire: Mapping[str, Any]) -> Expression:
    values = wire.get("values") or ()
    if not isinstance(values, list | tuple):
        raise RequirementsError("matchExpressions: values is not a list")
    return Expression(wire.get("key", ""), wire.get("operator", ""), tuple(values))


def _toleration(wire: Mapping[str, Any]) -> Toleration:
    return Toleration(
        wire.get("key", ""), wire.get("operator", "Equal"), wire.get("value", ""), wire.get("effect", "")
    )


def _part(value: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The object at the end of a path of objects; empty where there is none."""
    for name in path:
        value = value.get(name) or {}
        if not isinstance(value, dict):
            raise RequirementsError(f"{name} is not an object")
    return value


def _objects(value: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """A field that is a list of objects; empty where there is none."""
    found = value.get(name) or []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise RequirementsError(f"{name} is not a list of objects")
    return found
