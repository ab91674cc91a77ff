"""What Services mean: which workloads they select, and which pods of a namespace can tell others of themselves.

An index beside the view, brought up to date by each change of one of its groups. It holds no more than what the view does.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import define, field, frozen

from machineplane.fabric.manifests import Object
from machineplane.fabric.view import ObjectKey, PodEntry, View

AGENT = "magik.io/agent"
"""A pod's annotation: ``PEER@IP:PORT`` of its agent, as other machines reach it."""
LEADER = "magik.io/leader"
"""Of the pod that leads its StatefulSet: a label, ``true``, and an annotation, ``GENERATION/TERM`` of its lease."""
_ORDER = ("Service", "Deployment", "StatefulSet", "Pod")

Labels = Mapping[str, str]


@frozen
class _Workload:
    """What is known of a group: ``id`` is ``NAMESPACE/KIND/NAME``; ``agents`` by pod uid."""

    namespace: str
    id: str = ""
    labels: Labels = field(factory=dict)
    service: str = ""
    agents: Mapping[str, str] = field(factory=dict)


@define
class _Namespace:
    """Its groups."""

    groups: dict[str, _Workload] = field(factory=dict)


class Services:
    """See :meth:`changed`."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._spaces: dict[str, _Namespace] = {}
        self._places: dict[str, str] = {}

    def changed(self, group: str) -> str:
        """A group of the view looks different; the namespace that it is (or was) of, empty if of none that counts."""
        kind, _, uid = group.partition("/")
        if kind != "workload":
            return ""
        before = self._places.get(group, "")
        found = self._look(group, uid)
        if found is None:
            if before:
                self._drop(group, before)
            return before
        self._places[group] = found.namespace
        self._spaces.setdefault(found.namespace, _Namespace()).groups[group] = found
        return found.namespace

    def _drop(self, group: str, namespace: str) -> None:
        del self._places[group]
        space = self._spaces[namespace]
        space.groups.pop(group, None)
        if not space.groups:
            del self._spaces[namespace]

    def _look(self, group: str, uid: str) -> _Workload | None:
        agents = {pod.uid: text for pod in self._view.pods_of(uid) if (text := _agent_of(pod.obj))}
        shown = sorted((key for key in self._view.shown_in(group) if key[0] in _ORDER), key=_order)
        for key in shown:
            obj, (kind, namespace, name) = self._view.rendered[key], key
            if kind == "Service":
                return _Workload(namespace, service=name)
            if kind != "Pod" or not obj["metadata"].get(
                "ownerReferences"
            ):  # else a pod of another manifest's
                return _Workload(
                    namespace, f"{namespace}/{kind}/{name}", _template_labels(obj), agents=agents
                )
        for pod in self._view.pods_of(uid):
            return _Workload(pod.obj["metadata"].get("namespace") or "", agents=agents)
        return None

    def _groups(self, namespace: str) -> Iterator[_Workload]:
        space = self._spaces.get(namespace)
        yield from space.groups.values() if space else ()

    def named(self, namespace: str, name: str) -> Object | None:
        """The v1 Service of that name."""
        return self._view.rendered.get(("Service", namespace, name))

    def workloads(self, service: Object) -> tuple[str, ...]:
        """Ids of the workloads whose template's labels a Service selects, in order."""
        selector = selector_of(service)
        namespace = service["metadata"].get("namespace") or ""
        groups = self._groups(namespace) if selector else ()
        return tuple(sorted(w.id for w in groups if w.id and selects(selector, w.labels)))

    def selecting(self, namespace: str, labels: Labels) -> list[Object]:
        """The Services that select a pod with these labels, by name."""
        names = sorted(w.service for w in self._groups(namespace) if w.service)
        found = [service for name in names if (service := self.named(namespace, name)) is not None]
        return [s for s in found if (selector := selector_of(s)) and selects(selector, labels)]

    def pods(self, namespace: str) -> Iterator[PodEntry]:
        """All pods of a namespace."""
        for group in self._uids(namespace):
            yield from self._view.pods_of(group)

    def touched(self, namespace: str) -> int:
        """The stamp of the newest fact of a namespace's workloads; 0 if there are none."""
        return max((self._view.touched.get(uid, 0) for uid in self._uids(namespace)), default=0)

    def _uids(self, namespace: str) -> list[str]:
        space = self._spaces.get(namespace)
        return [group.partition("/")[2] for group in space.groups] if space else []

    def agents(self, namespace: str) -> dict[str, str]:
        """``PEER@IP:PORT`` of all agents that told of themselves, by their pods' uids."""
        return {uid: text for w in self._groups(namespace) for uid, text in w.agents.items()}


def _order(key: ObjectKey) -> tuple[int, ObjectKey]:
    return _ORDER.index(key[0]), key


def selector_of(service: Mapping[str, Any]) -> Labels:
    """The labels that a Service selects by; none selects nothing."""
    selector = (service.get("spec") or {}).get("selector") or {}
    return selector if isinstance(selector, dict) else {}


def selects(selector: Labels, labels: Labels) -> bool:
    """Whether all of the selector's labels are there."""
    return selector.items() <= labels.items()


def _template_labels(obj: Object) -> Labels:
    metadata = obj["metadata"]
    if obj["kind"] != "Pod":
        metadata = ((obj.get("spec") or {}).get("template") or {}).get("metadata") or {}
    labels = metadata.get("labels") or {}
    return labels if isinstance(labels, dict) else {}


def _agent_of(pod: Mapping[str, Any]) -> str:
    text = (pod["metadata"].get("annotations") or {}).get(AGENT)
    return text if isinstance(text, str) else ""
