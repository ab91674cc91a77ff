"""Sets of field paths: what a manager owns of an object, and their ``FieldsV1`` form.

A path is a tuple of elements as Kubernetes writes them: ``f:spec``, ``k:{"name":"web"}`` (an item of a keyed
list), ``v:"x"`` (a member of a list that is a set). Lists without merge key are owned whole. The path of a
keyed item itself is owned too.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from .fields import Field, schema

Path = tuple[str, ...]
FieldSet = frozenset[Path]

#: Where an item is told apart by more than its merge key; values are what an absent key means.
_MORE_KEYS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType({"containerPort": {"protocol": "TCP"}})
#: Parts of metadata that somebody can own; the rest is the API's.
_METADATA: Final = ("annotations", "finalizers", "labels", "ownerReferences")


def field_set(obj: Mapping[str, Any], type_name: str) -> FieldSet:
    """Every path that an object sets, without its identity and status."""
    body = {
        key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata", "status")
    }
    meta = {key: value for key, value in (obj.get("metadata") or {}).items() if key in _METADATA}
    return frozenset(_paths(body | ({"metadata": meta} if meta else {}), type_name, ()))


def _paths(value: Mapping[str, Any], type_name: str, base: Path) -> Iterator[Path]:
    fields = schema().json.get(type_name, {})
    for key, inner in value.items():
        yield from _value_paths(inner, fields.get(key), (*base, f"f:{key}"))


def _value_paths(value: Any, field: Field | None, path: Path) -> Iterator[Path]:
    if isinstance(value, dict) and value:
        yield from _paths(value, _object_name(field), path)
    elif isinstance(value, list) and field is not None and "merge" in field.patch:
        for item in value:
            yield from _item_paths(item, field, path)
    else:
        yield path


def _item_paths(item: Any, field: Field, path: Path) -> Iterator[Path]:
    here = (*path, item_key(item, field))
    yield here
    if isinstance(item, dict):
        yield from _paths(item, _item_name(field), here)


def item_key(item: Any, field: Field) -> str:
    """The path element of a list's item."""
    if field.merge_key is None or not isinstance(item, dict):
        return f"v:{json.dumps(item)}"
    keys = {field.merge_key: item.get(field.merge_key)}
    keys |= {key: item.get(key, default) for key, default in _MORE_KEYS.get(field.merge_key, {}).items()}
    return f"k:{json.dumps(keys, sort_keys=True, separators=(',', ':'))}"


def _object_name(field: Field | None) -> str:
    return field.type.name if field is not None and field.type.shape == "object" else ""


def _item_name(field: Field) -> str:
    return field.type.item.name if field.type.item is not None else ""


def merge_config(current: Any, config: Mapping[str, Any], type_name: str) -> dict[str, Any]:
    """``current`` with everything that ``config`` says; keyed lists by item, sets by union, other lists
    whole."""
    out = dict(current) if isinstance(current, dict) else {}
    fields = schema().json.get(type_name, {})
    for key, value in config.items():
        field = fields.get(key)
        if isinstance(value, dict):
            out[key] = merge_config(out.get(key), value, _object_name(field))
        elif isinstance(value, list) and field is not None and "merge" in field.patch:
            out[key] = _merge_items(out.get(key) or [], value, field)
        else:
            out[key] = value
    return out


def _merge_items(current: list[Any], config: list[Any], field: Field) -> list[Any]:
    out = list(current)
    places = {item_key(item, field): index for index, item in enumerate(out)}
    for item in config:
        index = places.get(item_key(item, field))
        if index is None:
            out.append(item)
        elif isinstance(item, dict):
            out[index] = merge_config(out[index], item, _item_name(field))
    return out


def value_at(obj: Any, path: Path) -> Any:
    """What stands at a path, or None."""
    for element in path:
        obj = _step(obj, element)
    return obj


def _step(obj: Any, element: str) -> Any:
    form, _, text = element.partition(":")
    if form == "f":
        return obj.get(text) if isinstance(obj, dict) else None
    index = _index(obj, element)
    return obj[index] if index is not None else None


def _index(items: Any, element: str) -> int | None:
    form, _, text = element.partition(":")
    wanted = json.loads(text)
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if form == "v" and item == wanted:
            return index
        if form == "k" and isinstance(item, dict) and all(_same(item, key, wanted[key]) for key in wanted):
            return index
    return None


def _same(item: Mapping[str, Any], key: str, value: Any) -> bool:
    default = next((more[key] for more in _MORE_KEYS.values() if key in more), None)
    return bool(item.get(key, default) == value)


def remove_path(obj: Any, path: Path) -> None:
    """Take away what stands at a path, in place; nothing happens if it is not there."""
    parent = value_at(obj, path[:-1])
    form, _, text = path[-1].partition(":")
    if form == "f":
        if isinstance(parent, dict):
            parent.pop(text, None)
        return
    if (index := _index(parent, path[-1])) is not None:
        del parent[index]


def to_json(paths: Iterable[Path]) -> dict[str, Any]:
    """The ``fieldsV1`` object."""
    members = frozenset(paths)
    root: dict[str, Any] = {}
    for path in sorted(members):
        node = root
        for depth, element in enumerate(path, start=1):
            fresh = element not in node
            node = node.setdefault(element, {})
            if depth < len(path) and path[:depth] in members and not fresh:
                node.setdefault(".", {})
    return root


def from_json(fields: Mapping[str, Any]) -> FieldSet:
    """From a ``fieldsV1`` object; what is malformed in it owns nothing."""
    return frozenset(_members(fields, ()))


def _members(fields: Mapping[str, Any], base: Path) -> Iterator[Path]:
    for element, inner in fields.items():
        if not isinstance(inner, dict) or not (element == "." or _is_element(element)):
            continue
        if element == ".":
            yield base
        elif not inner:
            yield (*base, element)
        else:
            yield from _members(inner, (*base, element))


def _is_element(text: str) -> bool:
    form, _, rest = text.partition(":")
    if form == "f":
        return True
    try:
        value = json.loads(rest)
    except ValueError:
        return False
    return form == "v" or (form == "k" and isinstance(value, dict))


def show(path: Path) -> str:
    """A path for people: ``.spec.containers[name="web"].image``."""
    words = []
    for element in path:
        form, _, text = element.partition(":")
        if form == "f":
            words.append(f".{text}")
        elif form == "k":
            words.append(
                f"[{','.join(f'{key}={json.dumps(value)}' for key, value in json.loads(text).items())}]"
            )
        else:
            words.append(f"[={text}]")
    return "".join(words)
