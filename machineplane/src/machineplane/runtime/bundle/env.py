"""A container's environment and command line, by Kubernetes' rules."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

from machineplane.runtime.bundle.fields import Place, check_field, check_resource, field_value, resource_value
from machineplane.runtime.bundle.objects import Lookup, as_text, find_key, find_values
from machineplane.runtime.errors import PodSpecError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as other runtimes set it

MAX_ENTRIES = 4096
"""Environment variables of a container; more are refused. The kernel bounds their bytes at exec."""

_REFERENCE = re.compile(r"\$\$|\$\(([^()\s]*)\)")
_KEY_SOURCES = {"configMapKeyRef": "ConfigMap", "secretKeyRef": "Secret"}
_MAP_SOURCES = {"configMapRef": "ConfigMap", "secretRef": "Secret"}


@frozen(kw_only=True)
class Surroundings:
    """What a container's variables are made of, beside its own spec."""

    pod: Mapping[str, Any]
    place: Place
    lookup: Lookup

    @property
    def containers(self) -> dict[str, Mapping[str, Any]]:
        """The pod's containers by name."""
        spec = self.pod.get("spec") or {}
        return {c["name"]: c for key in ("initContainers", "containers") for c in spec.get(key) or []}


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by its value; unknown names stay as they are, and ``$$`` is a dollar sign."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else values.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def _usable(name: object) -> bool:
    return isinstance(name, str) and bool(name) and "=" not in name and "\0" not in name


def check_env(container: Mapping[str, Any], where: str) -> None:
    """Refuse sources of variables that this version does not know.

    Raises:
        PodSpecError: names the field.
    """
    for index, entry in enumerate(container.get("env") or []):
        path = f"{where}.env[{index}]"
        if not _usable(entry.get("name")):
            raise PodSpecError(f"{path}: an env entry has the name {entry.get('name')!r}")
        _check_source(entry.get("valueFrom") or {}, f"{path}.valueFrom")
    for index, entry in enumerate(container.get("envFrom") or []):
        unknown = [key for key in entry if key not in {*_MAP_SOURCES, "prefix"}]
        if unknown:
            raise PodSpecError(f"{where}.envFrom[{index}].{unknown[0]} is not supported by this version")


def _check_source(source: Mapping[str, Any], where: str) -> None:
    for kind, reference in source.items():
        if kind == "fieldRef":
            check_field(reference.get("fieldPath"), where)
        elif kind == "resourceFieldRef":
            check_resource(reference, where)
        elif kind not in _KEY_SOURCES:
            raise PodSpecError(f"{where}.{kind} is not supported by this version")


def _all_of(container: Mapping[str, Any], around: Surroundings) -> dict[str, str]:
    """The variables of ``envFrom``; keys that are no names of variables are left out, as Kubernetes does."""
    found: dict[str, str] = {}
    for entry in container.get("envFrom") or []:
        for key, kind in _MAP_SOURCES.items():
            if entry.get(key) is None:
                continue
            for name, raw in (find_values(around.lookup, kind, entry[key]) or {}).items():
                full = f"{entry.get('prefix') or ''}{name}"
                if _usable(full):
                    found[full] = as_text(raw, f"key {name} of {kind} {entry[key].get('name')}")
    return found


def _value(entry: Mapping[str, Any], own: str, around: Surroundings, values: Mapping[str, str]) -> str | None:
    source = entry.get("valueFrom")
    if not source:
        return expand(str(entry.get("value") or ""), values)
    if "fieldRef" in source:
        return field_value(around.pod, str(source["fieldRef"].get("fieldPath")), around.place)
    if "resourceFieldRef" in source:
        return resource_value(around.containers, source["resourceFieldRef"], own, around.place)
    kind = next(iter(source))
    if kind not in _KEY_SOURCES:
        raise PodSpecError(f"env {entry['name']!r}: valueFrom.{kind} is not supported by this version")
    return find_key(around.lookup, _KEY_SOURCES[kind], source[kind])


def own_variables(container: Mapping[str, Any], around: Surroundings) -> dict[str, str]:
    """The variables of the spec: ``envFrom``, then ``env`` in order; each may refer to those before it.

    Raises:
        PodSpecError: a name or value that cannot be.
        MissingReference: what one refers to is not there.
    """
    check_env(container, f"container {container.get('name')}")
    own = _all_of(container, around)
    for entry in container.get("env") or []:
        value = _value(entry, str(container.get("name")), around, own)
        if value is not None:
            own[entry["name"]] = value
    return own


def environment(own: Mapping[str, str], image_env: Iterable[str], hostname: str) -> dict[str, str]:
    """The container's variables: the image's, then the spec's."""
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    values |= dict(pair.split("=", 1) for pair in image_env if "=" in pair)
    values |= own
    if len(values) > MAX_ENTRIES:
        raise PodSpecError(f"{len(values)} environment variables; at most {MAX_ENTRIES} are allowed")
    return values


def arguments(
    container: Mapping[str, Any], entrypoint: Iterable[str], cmd: Iterable[str], values: Mapping[str, str]
) -> list[str]:
    """The command line: ``command`` replaces the image's entrypoint and its cmd, ``args`` its cmd alone.

    Only what stands in the spec is expanded, by the spec's own variables.
    """
    command = [expand(str(part), values) for part in container.get("command") or ()]
    args = [expand(str(part), values) for part in container.get("args") or ()]
    parts = [*command, *args] if command else [*entrypoint, *(args or cmd)]
    if not parts:
        raise PodSpecError(f"container {container.get('name')!r} has no command, and neither has its image")
    return parts
