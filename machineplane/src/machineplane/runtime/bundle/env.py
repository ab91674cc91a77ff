"""A container's environment and command line, by Kubernetes' rules."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from machineplane.runtime.errors import PodSpecError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # as other runtimes set it

MAX_ENTRIES = 4096
"""Environment variables of a container; more are refused. The kernel bounds their bytes at exec."""

_REFERENCE = re.compile(r"\$\$|\$\(([^()\s]*)\)")
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")


def expand(text: str, values: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by its value; unknown names stay as they are, and ``$$`` is a dollar sign."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else values.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def field_value(pod: Mapping[str, Any], path: str, *, pod_ip: str, node_name: str) -> str:
    """What a ``fieldRef`` stands for.

    Raises:
        PodSpecError: a field that cannot be had.
    """
    metadata = pod["metadata"]
    subscript = _SUBSCRIPT.fullmatch(path)
    if subscript:
        return str((metadata.get(subscript[1]) or {}).get(subscript[2], ""))
    known = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
        "spec.nodeName": node_name,
        "spec.serviceAccountName": (pod.get("spec") or {}).get("serviceAccountName") or "default",
    }
    if path not in known:
        raise PodSpecError(f"env fieldRef {path!r} is not supported by this version")
    return str(known[path])


def _entry(
    entry: Mapping[str, Any], pod: Mapping[str, Any], values: Mapping[str, str], ip: str, node: str
) -> str:
    source = entry.get("valueFrom")
    if not source:
        return expand(str(entry.get("value") or ""), values)
    if "fieldRef" in source:
        return field_value(pod, str(source["fieldRef"].get("fieldPath")), pod_ip=ip, node_name=node)
    raise PodSpecError(
        f"env {entry['name']!r}: valueFrom.{next(iter(source))} is not supported by this version"
    )


def environment(
    container: Mapping[str, Any],
    image_env: Iterable[str],
    pod: Mapping[str, Any],
    *,
    hostname: str,
    pod_ip: str,
    node_name: str,
) -> dict[str, str]:
    """The container's variables: the image's, then the spec's, in order; each may refer to those before it."""
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    values |= dict(pair.split("=", 1) for pair in image_env if "=" in pair)
    own: dict[str, str] = {}
    for entry in container.get("env") or []:
        name = entry.get("name")
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise PodSpecError(f"an env entry has the name {name!r}")
        own[name] = _entry(entry, pod, own, pod_ip, node_name)
    values |= own
    if len(values) > MAX_ENTRIES:
        raise PodSpecError(f"{len(values)} environment variables; at most {MAX_ENTRIES} are allowed")
    return values


def arguments(
    container: Mapping[str, Any], entrypoint: Iterable[str], cmd: Iterable[str], values: Mapping[str, str]
) -> list[str]:
    """The command line: ``command`` replaces the image's entrypoint and its cmd, ``args`` its cmd alone."""
    command, args = container.get("command"), container.get("args")
    parts = [*command, *(args or ())] if command else [*entrypoint, *(args or cmd)]
    if not parts:
        raise PodSpecError(f"container {container.get('name')!r} has no command, and neither has its image")
    return [expand(str(part), values) for part in parts]
