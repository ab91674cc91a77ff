"""The files of volumes that are made of objects: configMap, secret, downwardAPI, projected. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from machineplane.runtime.bundle.env import Surroundings
from machineplane.runtime.bundle.fields import check_field, check_resource, field_value, resource_value
from machineplane.runtime.bundle.objects import MissingReference, find_values
from machineplane.runtime.errors import PodSpecError

Source = Mapping[str, Any]

DEFAULT_MODE = 0o644  # Kubernetes'
MAX_PATH = 4096
_OBJECTS = {"configMap": "ConfigMap", "secret": "Secret"}
SOURCES = (*_OBJECTS, "downwardAPI")


@frozen
class File:
    """One file of a volume; ``mode`` are its permission bits."""

    content: bytes
    mode: int


def check_path(path: object, where: str) -> None:
    """Refuse a path that is not one inside its volume.

    Raises:
        PodSpecError: names the field.
    """
    parts = path.split("/") if isinstance(path, str) else [""]
    if not isinstance(path, str) or len(path) > MAX_PATH or "\0" in path or "" in parts or "." in parts:
        raise PodSpecError(f"{where} {path!r} is not a relative path")
    if any(part.startswith("..") for part in parts):
        raise PodSpecError(f"{where} {path!r} has a part that begins with '..'")


def check_mode(mode: object, where: str) -> None:
    """Refuse permission bits that are none."""
    if mode is not None and (type(mode) is not int or not 0 <= mode <= 0o777):
        raise PodSpecError(f"{where} {mode!r} is not between 0 and 0777")


def check_source(kind: str, source: Source, where: str) -> None:
    """Refuse a source whose files cannot be made.

    Raises:
        PodSpecError: names the field.
    """
    if kind == "projected":
        check_mode(source.get("defaultMode"), f"{where}.defaultMode")
        for index, part in enumerate(source.get("sources") or ()):
            for name, inner in part.items():
                _check_part(name, inner, f"{where}.sources[{index}].{name}")
        return
    _check_part(kind, source, where)


def _check_part(kind: str, source: Source, where: str) -> None:
    if kind not in SOURCES:
        raise PodSpecError(f"{where} is not supported by this version")
    check_mode(source.get("defaultMode"), f"{where}.defaultMode")
    for index, item in enumerate(source.get("items") or ()):
        path = f"{where}.items[{index}]"
        check_path(item.get("path"), f"{path}.path")
        check_mode(item.get("mode"), f"{path}.mode")
        if kind == "downwardAPI" and item.get("fieldRef"):
            check_field(item["fieldRef"].get("fieldPath"), path, maps=True)
        elif kind == "downwardAPI":
            check_resource(item.get("resourceFieldRef") or {}, path)
            if not item["resourceFieldRef"].get("containerName"):
                raise PodSpecError(f"{path}.resourceFieldRef.containerName is missing")


def files_of(kind: str, source: Source, around: Surroundings) -> dict[str, File]:
    """What lies in a volume, by path. Of two sources of one path the later counts.

    Raises:
        MissingReference: an object or key is not there.
        PodSpecError: the source cannot be read.
    """
    if kind != "projected":
        return dict(_part(kind, source, _mode(source, DEFAULT_MODE), around))
    mode, found = _mode(source, DEFAULT_MODE), dict[str, File]()
    for part in source.get("sources") or ():
        for name, inner in part.items():
            found |= _part(name, inner, mode, around)
    return found


def _mode(source: Source, default: int) -> int:
    given = source.get("defaultMode")
    return default if given is None else int(given)


def _part(kind: str, source: Source, mode: int, around: Surroundings) -> Iterator[tuple[str, File]]:
    if kind == "downwardAPI":
        for item in source.get("items") or ():
            yield item["path"], File(_downward(item, around).encode(), _item_mode(item, mode))
        return
    values = find_values(around.lookup, _OBJECTS[kind], source)
    if values is None:
        return
    items = source.get("items")
    if not items:
        yield from ((key, File(value, mode)) for key, value in values.items())
        return
    for item in items:
        if item.get("key") in values:
            yield item["path"], File(values[item["key"]], _item_mode(item, mode))
        elif not source.get("optional"):
            raise MissingReference(f"references non-existent key {item.get('key')} of {_OBJECTS[kind]}")


def _item_mode(item: Source, default: int) -> int:
    return default if item.get("mode") is None else int(item["mode"])


def _downward(item: Source, around: Surroundings) -> str:
    if item.get("fieldRef"):
        return field_value(around.pod, str(item["fieldRef"].get("fieldPath")), around.place)
    return resource_value(around.containers, item["resourceFieldRef"], "", around.place)
