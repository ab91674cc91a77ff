"""Strategic merge patch: a merge patch that knows which lists are sets of named things.

Rules as Kubernetes documents them, by the merge keys of the field table: ``$patch: replace|delete|merge``,
``$deleteFromPrimitiveList/<field>``, ``$setElementOrder/<field>``, ``$retainKeys``. Fields that the table
does not know are merged as JSON merge patch does (maps deeply, lists replaced).
"""

from collections.abc import Mapping
from typing import Any, Final

from .errors import ApiError
from .fields import Field, Type, schema

Value = dict[str, Any]

_PATCH: Final = "$patch"
_RETAIN: Final = "$retainKeys"
_ORDER: Final = "$setElementOrder/"
_REMOVE: Final = "$deleteFromPrimitiveList/"


def strategic_merge(current: Value, patch: Value, type_name: str) -> Value:
    """``current`` with ``patch`` applied; neither is changed. Raises ApiError 400 for a patch that makes no
    sense."""
    return _object(current, patch, type_name)


def merge(current: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return patch
    out = dict(current) if isinstance(current, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge(out.get(key), value)
    return out


def _object(current: Value, patch: Value, name: str) -> Value:
    match patch.get(_PATCH):
        case "replace":
            return dict(_plain(patch))
        case "delete":
            return {}
        case None | "merge":
            pass
        case other:
            raise ApiError.bad_request(f"unknown patch type {other!r} in $patch")
    fields = schema().json.get(name, {})
    out = _retained(current, patch)
    _remove_from_primitive_lists(out, patch)
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            out.pop(key, None)
        else:
            out[key] = _field(out.get(key), value, fields.get(key))
    _set_element_order(out, patch, fields)
    return out


def _retained(current: Value, patch: Value) -> Value:
    if _RETAIN not in patch:
        return dict(current)
    keep = _list(patch[_RETAIN], _RETAIN)
    if foreign := [
        key for key in patch if not key.startswith("$") and patch[key] is not None and key not in keep
    ]:
        raise ApiError.bad_request(f"$retainKeys does not name {foreign[0]!r}, which the patch sets")
    return {key: value for key, value in current.items() if key in keep}


def _remove_from_primitive_lists(out: Value, patch: Value) -> None:
    for key, gone in patch.items():
        name = key.removeprefix(_REMOVE)
        if name != key and isinstance(out.get(name), list):
            out[name] = [item for item in out[name] if item not in _list(gone, key)]


def _set_element_order(out: Value, patch: Value, fields: Mapping[str, Field]) -> None:
    for key, order in patch.items():
        name = key.removeprefix(_ORDER)
        if name != key and isinstance(out.get(name), list):
            merge_key = fields[name].merge_key if name in fields else None
            out[name] = _ordered(out[name], _list(order, key), merge_key)


def _field(current: Any, patch: Any, field: Field | None) -> Any:
    if isinstance(patch, list) and field is not None and "merge" in field.patch:
        return _merged_list(current if isinstance(current, list) else [], patch, field)
    if isinstance(patch, list):
        return [_plain(item) for item in patch]
    if isinstance(patch, dict):
        return _merged_map(current if isinstance(current, dict) else {}, patch, field)
    return patch


def _merged_map(current: Value, patch: Value, field: Field | None) -> Value:
    """An object by its type; a map of texts and what the table does not know by plain merging."""
    name = field.type.name if field is not None and field.type.shape == "object" else ""
    return _object(current, patch, name)


def _merged_list(current: list[Any], patch: list[Any], field: Field) -> list[Any]:
    if any(isinstance(item, dict) and item.get(_PATCH) == "replace" for item in patch):
        return [_plain(item) for item in patch if not (isinstance(item, dict) and _PATCH in item)]
    if field.merge_key is None:
        return current + [item for index, item in enumerate(patch) if item not in current + patch[:index]]
    return _keyed_list(current, patch, field.merge_key, field.type)


def _keyed_list(current: list[Any], patch: list[Any], key: str, kind: Type) -> list[Any]:
    assert kind.item is not None
    out = list(current)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise ApiError.bad_request(f"map: {item!r} does not contain declared merge key: {key}")
        index = next((at for at, old in enumerate(out) if _key_of(old, key) == item[key]), None)
        if item.get(_PATCH) == "delete":
            out = [old for old in out if _key_of(old, key) != item[key]]
        elif index is None:
            out.append(_object({}, item, kind.item.name))
        else:
            out[index] = _object(out[index], item, kind.item.name)
    return out


def _ordered(items: list[Any], order: list[Any], key: str | None) -> list[Any]:
    """Items in the order given; those that it does not name keep their place relative to the named one before
    them."""
    ranks = {
        _hashable(_key_of(entry, key) if isinstance(entry, dict) else entry): at
        for at, entry in enumerate(order)
    }
    named = sorted(
        (item for item in items if _hashable(_key_of(item, key)) in ranks),
        key=lambda item: ranks[_hashable(_key_of(item, key))],
    )
    # Each unnamed item follows as many named ones as it did before.
    out: list[Any] = []
    waiting = iter(named)
    for item in items:
        out.append(next(waiting) if _hashable(_key_of(item, key)) in ranks else item)
    return out


def _key_of(item: Any, key: str | None) -> Any:
    return item.get(key) if isinstance(item, dict) and key is not None else item


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ApiError.bad_request(f"{name} must be a list")
    return value


def _plain(value: Any) -> Any:
    """A value without directives and nulls."""
    if isinstance(value, dict):
        return {
            key: _plain(inner)
            for key, inner in value.items()
            if inner is not None and not key.startswith("$")
        }
    return [_plain(item) for item in value] if isinstance(value, list) else value
