"""What a reader wants of another machine's table (machineplane-spec, "Large fabrics"), and where names lead. Pure."""

import re
from collections.abc import Mapping

from attrs import field, frozen

from machineplane.fabric.table import Key, Value
from magik_proto.errors import ProtocolError
from magik_proto.messages import ResourceId

OF = "of"
"""The key of an entry's value that says which resource it belongs to."""

TEXTS_MAX = 256  # of each list of a scope; a guess: as many workloads as a machine may share with another
_TEXT_MAX = 400  # characters: of a resource id
_POD_PARENTS = frozenset({"Pod", "Deployment", "StatefulSet"})
_OF_PODS = frozenset({"pod", "workload", "placement", "runners"})
_LETTERS = re.compile("-[a-z0-9]{5}$")
_HASH = re.compile("-[0-9a-f]{10}$")
_ORDINAL = re.compile("-[0-9]{1,10}$")


def _texts(value: object) -> frozenset[str] | None:
    if value is None or isinstance(value, frozenset):
        return value
    if not isinstance(value, list | tuple | set) or len(value) > TEXTS_MAX:
        raise ValueError(f"scope: not a list of at most {TEXTS_MAX} texts")
    if not all(isinstance(text, str) and len(text) <= _TEXT_MAX for text in value):
        raise ValueError(f"scope: not texts of at most {_TEXT_MAX} characters")
    return frozenset(value)


def _some_texts(value: object) -> frozenset[str]:
    return _texts(value) or frozenset()


@frozen
class Scope:
    """``kinds`` of a table's entries, and which resources they belong to: all that fit what is not None.

    ``parents`` are kinds of resources, as ``Deployment``; ``of`` are resources, as ``default/Deployment/web``.
    """

    kinds: frozenset[str] = field(converter=_some_texts)
    namespace: str | None = None
    parents: frozenset[str] | None = field(default=None, converter=_texts)
    of: frozenset[str] | None = field(default=None, converter=_texts)

    def covers(self, key: Key, value: Value | None) -> bool:
        """Whether an entry is of interest. That one is gone is: who knew it has to forget it. So are disposals."""
        if key[0] == "disposal":
            return True
        if key[0] not in self.kinds:
            return False
        if value is None:
            return True
        resource = value.get(OF)
        if not isinstance(resource, str):
            return False
        space, _, rest = resource.partition("/")
        return (
            (self.namespace is None or space == self.namespace)
            and (self.parents is None or rest.partition("/")[0] in self.parents)
            and (self.of is None or resource in self.of)
        )

    def to_wire(self) -> dict[str, object]:
        wire: dict[str, object] = {"kinds": sorted(self.kinds)}
        if self.namespace is not None:
            wire["namespace"] = self.namespace
        for name in ("parents", "of"):
            texts = getattr(self, name)
            if texts is not None:
                wire[name] = sorted(texts)
        return wire

    @classmethod
    def from_wire(cls, wire: object) -> "Scope":
        """Raises ValueError naming what is wrong."""
        if not isinstance(wire, Mapping) or not isinstance(wire.get("kinds"), list):
            raise ValueError("scope: a map with kinds is expected")
        space = wire.get("namespace")
        if not isinstance(space, str | None):
            raise ValueError("scope: namespace is not a text")
        return cls(wire["kinds"], space, wire.get("parents"), wire.get("of"))


def scope_of_kind(kind: str, namespace: str | None) -> Scope:
    """What objects of an API's kind are made of; None: of all namespaces."""
    match kind:
        case "Pod":
            return Scope(_OF_PODS, namespace, _POD_PARENTS)
        case "Deployment" | "ReplicaSet":
            return Scope(_OF_PODS, namespace, {"Deployment"})
        case "StatefulSet":
            return Scope(_OF_PODS, namespace, {"StatefulSet"})
        case "Node":
            return Scope({"node"})
        case "Event":
            return Scope({"event"}, namespace)
    return Scope({"workload"}, namespace, {kind})


def scope_of_names(resources: frozenset[str]) -> Scope:
    """All that belongs to these resources."""
    return Scope({*_OF_PODS, "node"}, of=resources)


def resources_of(kind: str, namespace: str | None, name: str) -> tuple[str, ...]:
    """The resources by which an object can be found, as names lead to them; none where names lead nowhere."""
    candidates: list[tuple[str, str]] = []
    if kind == "Pod":
        candidates.append(("Pod", name))
        candidates += [("StatefulSet", name[: m.start()])] if (m := _ORDINAL.search(name)) else []
        if (m := _LETTERS.search(name)) and (h := _HASH.search(name[: m.start()])):
            candidates.append(("Deployment", name[: h.start()]))
    elif kind == "ReplicaSet":
        candidates += [("Deployment", name[: m.start()])] if (m := _HASH.search(name)) else []
    elif kind != "Event":
        candidates.append((kind, name))
    # What has no namespace is filed under its own name.
    found = (resource_text(namespace or each, parent, each) for parent, each in candidates)
    return tuple(text for text in found if text is not None)


def resource_text(namespace: str, kind: str, name: str) -> str | None:
    """As resources stand in tables; None where none can have such a name."""
    try:
        return str(ResourceId(namespace, kind, name))
    except ProtocolError:
        return None
