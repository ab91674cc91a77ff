"""Label and field selectors: the query strings ``labelSelector`` and ``fieldSelector``, and ``LabelSelector``
objects."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from .errors import ApiError

Labels = Mapping[str, str]

_KEY: Final = r"[A-Za-z0-9](?:[-A-Za-z0-9_./]*[A-Za-z0-9])?"
_EXISTS: Final = re.compile(rf"(!?)\s*({_KEY})")
_SET: Final = re.compile(rf"({_KEY})\s+(in|notin)\s*\(([^()]*)\)")
_EQUAL: Final = re.compile(rf"({_KEY})\s*(==|=|!=)\s*([-A-Za-z0-9_.]*)")
_FIELD: Final = re.compile(r"([A-Za-z0-9.]+)(==|=|!=)(.*)")


@frozen
class Requirement:
    """One term: ``key operator values`` with operator In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Labels) -> bool:
        """Kubernetes' rule: NotIn also holds where the key is absent."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value in self.values
            case "NotIn":
                return value not in self.values
            case "Exists":
                return value is not None
            case _:
                return value is None


@frozen
class LabelSelector:
    """All requirements must hold; none at all selects everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Labels) -> bool:
        """Whether an object with these labels is selected."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    @classmethod
    def parse(cls, text: str) -> "LabelSelector":
        """From ``app=web,tier in (a, b),!legacy``. Raises ApiError 400."""
        terms = [term.strip() for term in re.split(r",(?![^(]*\))", text)]
        return cls(tuple(_label_term(term) for term in terms if term or len(terms) > 1))

    @classmethod
    def of(cls, selector: Mapping[str, Any]) -> "LabelSelector":
        """From a ``LabelSelector`` object with matchLabels and matchExpressions."""
        equal = [
            Requirement(key, "In", frozenset([value]))
            for key, value in (selector.get("matchLabels") or {}).items()
        ]
        terms = [
            Requirement(term.get("key", ""), term.get("operator", ""), frozenset(term.get("values") or ()))
            for term in selector.get("matchExpressions") or ()
        ]
        return cls(tuple(equal + terms))


def selector_text(selector: Mapping[str, Any]) -> str:
    """A ``LabelSelector`` object as kubectl writes it in tables and as ``Scale.status.selector`` wants it."""
    words = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    for term in selector.get("matchExpressions") or ():
        key, operator, values = term.get("key", ""), term.get("operator", ""), term.get("values") or ()
        words.append(
            {"Exists": key, "DoesNotExist": f"!{key}"}.get(
                operator, f"{key} {operator.lower()} ({','.join(sorted(values))})"
            )
        )
    return ",".join(words)


def _label_term(term: str) -> Requirement:
    if match := _SET.fullmatch(term):
        values = frozenset(value.strip() for value in match[3].split(","))
        return Requirement(match[1], "In" if match[2] == "in" else "NotIn", values)
    if match := _EQUAL.fullmatch(term):
        return Requirement(match[1], "NotIn" if match[2] == "!=" else "In", frozenset([match[3]]))
    if match := _EXISTS.fullmatch(term):
        return Requirement(match[2], "DoesNotExist" if match[1] else "Exists")
    raise ApiError.bad_request(f"unable to parse requirement: {term!r} is no label selector term")


@frozen
class FieldTerm:
    """``path = value`` or ``path != value``."""

    path: str
    value: str
    equal: bool


@frozen
class FieldSelector:
    """All terms must hold."""

    terms: tuple[FieldTerm, ...] = ()

    def matches(self, obj: Mapping[str, Any]) -> bool:
        """Whether the object is selected; an absent field is the empty text, as in Kubernetes."""
        return all((read_path(obj, term.path) == term.value) == term.equal for term in self.terms)

    @classmethod
    def parse(cls, text: str, supported: Sequence[str]) -> "FieldSelector":
        """From ``metadata.name=x,status.phase!=Running``. Raises ApiError 400 for a path not in
        ``supported``."""
        terms = tuple(_field_term(term) for term in text.split(",") if term)
        for term in terms:
            if term.path not in supported:
                raise ApiError.bad_request(f'field label not supported: "{term.path}"')
        return cls(terms)


def _field_term(term: str) -> FieldTerm:
    match = _FIELD.fullmatch(term.strip())
    if match is None:
        raise ApiError.bad_request(f"invalid selector: {term!r}; can't understand it")
    return FieldTerm(match[1], match[3], match[2] != "!=")


def read_path(obj: Mapping[str, Any], path: str) -> str:
    """The text at a dotted path: ``""`` if there is nothing, ``true``/``false`` for booleans."""
    value: Any = obj
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


#: Field paths that can be selected by, beside those of every kind.
FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "Pod": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
    ),
    "Node": ("spec.unschedulable",),
    "Namespace": ("status.phase",),
    "ReplicaSet": ("status.replicas",),
    "Event": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
}

Matcher = Callable[[Mapping[str, Any]], bool]


def matcher(kind: str, labels: str, fields: str) -> Matcher:
    """A predicate from the two query parameters. Raises ApiError 400 if either does not parse."""
    by_label = LabelSelector.parse(labels) if labels else LabelSelector()
    supported = ("metadata.name", "metadata.namespace", *FIELDS.get(kind, ()))
    by_field = FieldSelector.parse(fields, supported)
    return lambda obj: by_label.matches(obj.get("metadata", {}).get("labels") or {}) and by_field.matches(obj)
