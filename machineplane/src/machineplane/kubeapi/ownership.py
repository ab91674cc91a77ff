"""Field ownership for server-side apply: ``metadata.managedFields``.

Objects are tracked from their first server-side apply on, not before: until then they have no managedFields
(which is allowed: clients take absence as "not tracked"). At the first apply everything that is set already
belongs to the manager ``before-first-apply``, as in Kubernetes. From then on every write is booked: an apply
owns exactly what it says, another write owns what it changes. An apply that would change what somebody else
owns is a conflict, unless forced; a field that an applier no longer says and nobody else owns goes away.

Simpler than Kubernetes in one respect: no field is "atomic" beyond plain lists, so selectors are owned key by
key.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from attrs import frozen

from .backend import Object
from .errors import Cause
from .fields import schema
from .fieldsets import FieldSet, field_set, from_json, merge_config, remove_path, show, to_json, value_at
from .kinds import Kind

BEFORE: Final = "before-first-apply"
#: Managers of "Update" entries kept per object; the oldest are joined into one (Kubernetes: 10).
MAX_UPDATERS: Final = 10
_ANCIENT: Final = "ancient-changes"


@frozen
class Owner:
    """One entry of managedFields."""

    manager: str
    operation: str
    fields: FieldSet
    time: str
    api_version: str

    def json(self) -> dict[str, Any]:
        """The ``ManagedFieldsEntry``."""
        return {
            "manager": self.manager,
            "operation": self.operation,
            "apiVersion": self.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": to_json(self.fields),
        }

    def without(self, gone: FieldSet) -> "Owner":
        """The same, owning less."""
        return Owner(self.manager, self.operation, self.fields - gone, self.time, self.api_version)


def owners_of(obj: Mapping[str, Any]) -> list[Owner]:
    """The entries of an object; malformed ones are dropped."""
    return [
        Owner(
            str(entry.get("manager", "")),
            str(entry.get("operation", "Update")),
            from_json(entry["fieldsV1"]),
            str(entry.get("time", "")),
            str(entry.get("apiVersion", "")),
        )
        for entry in obj["metadata"].get("managedFields") or ()
        if isinstance(entry.get("fieldsV1"), dict)
    ]


def drop(obj: Object) -> None:
    """A new object is not tracked, whatever its author sent."""
    obj["metadata"].pop("managedFields", None)


def track_update(obj: Object, old: Object, manager: str, now: float) -> None:
    """Book what an ordinary write changes, if the object is tracked."""
    if "managedFields" not in obj["metadata"] and old["metadata"].get("managedFields"):
        obj["metadata"]["managedFields"] = old["metadata"]["managedFields"]
    owners = owners_of(obj)
    if not owners:
        return drop(obj)
    name = _type_name(obj)
    after, before = field_set(obj, name), field_set(old, name)
    changed = frozenset(path for path in after if value_at(obj, path) != value_at(old, path))
    gone = before - after
    if changed or gone:
        owners = [owner.without(changed | gone) for owner in owners]
        owners = _with_update(owners, manager, changed, _stamp(now), obj["apiVersion"])
    _put(obj, owners)
    return None


def _with_update(
    owners: list[Owner], manager: str, changed: FieldSet, stamp: str, api_version: str
) -> list[Owner]:
    mine = [owner for owner in owners if (owner.manager, owner.operation) == (manager, "Update")]
    rest = [owner for owner in owners if owner not in mine]
    fields = changed.union(*(owner.fields for owner in mine))
    updaters = sorted((owner for owner in rest if owner.operation == "Update"), key=lambda owner: owner.time)
    if len(updaters) >= MAX_UPDATERS:
        oldest = updaters[:2]
        joined = Owner(_ANCIENT, "Update", oldest[0].fields | oldest[1].fields, oldest[1].time, api_version)
        rest = [owner for owner in rest if owner not in oldest] + [joined]
    return [*rest, Owner(manager, "Update", fields, stamp, api_version)]


def conflicts_of(old: Object, config: Object, kind: Kind, manager: str) -> list[Cause]:
    """Fields that the configuration would change and that others own."""
    causes = []
    paths = sorted(field_set(config, kind.schema))
    for owner in _others(_owners_at_apply(old, kind), manager):
        for path in paths:
            wanted = value_at(config, path)
            if path in owner.fields and not isinstance(wanted, dict) and value_at(old, path) != wanted:
                who = f'conflict with "{owner.manager}" using {owner.api_version}'
                causes.append(Cause("FieldManagerConflict", who, show(path)))
    return causes


def applied(old: Object | None, config: Object, kind: Kind, manager: str, now: float) -> Object:
    """The object after an apply, with its managedFields; conflicts have been dealt with."""
    owners = _owners_at_apply(old, kind) if old is not None else []
    mine = field_set(config, kind.schema)
    before = frozenset[Any]().union(*(owner.fields for owner in owners if _is(owner, manager)))
    others = _others(owners, manager)
    new = merge_config(old or {}, config, kind.schema)
    _remove_abandoned(new, before - mine, others)
    if old is not None:
        taken = frozenset(path for path in mine if value_at(new, path) != value_at(old, path))
        others = [owner.without(taken) for owner in others]
    entry = Owner(manager, "Apply", mine, _stamp(now), kind.api_version)
    _put(new, [*others, _unchanged(owners, entry) or entry])
    return new


def _unchanged(owners: Iterable[Owner], entry: Owner) -> Owner | None:
    """The entry of before if it says the same, so that an apply without change changes nothing."""
    return next((o for o in owners if _is(o, entry.manager) and o.fields == entry.fields), None)


def _remove_abandoned(obj: Object, abandoned: FieldSet, others: list[Owner]) -> None:
    held = frozenset[Any]().union(*(owner.fields for owner in others))
    # Items before their fields: without its key an item could not be found any more.
    for path in sorted(abandoned, key=len):
        if not any(other[: len(path)] == path for other in held):
            remove_path(obj, path)


def _owners_at_apply(old: Object, kind: Kind) -> list[Owner]:
    if owners := owners_of(old):
        return owners
    stamp = str(old["metadata"].get("creationTimestamp", ""))
    return [Owner(BEFORE, "Update", field_set(old, kind.schema), stamp, kind.api_version)]


def _is(owner: Owner, manager: str) -> bool:
    return (owner.manager, owner.operation) == (manager, "Apply")


def _others(owners: Iterable[Owner], manager: str) -> list[Owner]:
    return [owner for owner in owners if not _is(owner, manager)]


def _put(obj: Object, owners: Iterable[Owner]) -> None:
    kept = [owner.json() for owner in owners if owner.fields]
    if kept:
        obj["metadata"]["managedFields"] = kept
    else:
        drop(obj)


def _type_name(obj: Object) -> str:
    return schema().type_of(obj["apiVersion"], obj["kind"]) or ""


def _stamp(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
