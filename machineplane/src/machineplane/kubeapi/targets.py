"""From URL paths to what they name."""

from collections.abc import Sequence

from .calls import Target
from .errors import ApiError
from .kinds import KindTable


def find_target(kinds: KindTable, group: str, version: str, path: Sequence[str]) -> Target:
    """The target of the segments after ``/api/v1`` or ``/apis/<group>/<version>``. Raises ApiError 404."""
    namespace, rest = _split_namespace(kinds, group, version, path)
    if not 1 <= len(rest) <= 3 or "" in path:
        raise ApiError.no_such_path()
    kind = kinds.find(group, version, rest[0])
    name = rest[1] if len(rest) > 1 else None
    if kind is None or (namespace is not None) > kind.namespaced:
        raise ApiError.no_such_path()
    if kind.namespaced and namespace is None and name is not None:
        raise ApiError.no_such_path()
    subresource = rest[2] if len(rest) > 2 else None
    if subresource is not None and kind.subresource(subresource) is None:
        raise ApiError.no_such_path()
    return Target(kind, namespace, name, subresource)


def _split_namespace(
    kinds: KindTable, group: str, version: str, path: Sequence[str]
) -> tuple[str | None, Sequence[str]]:
    """``namespaces/N/pods/…`` → (N, pods/…); ``namespaces/N`` and ``namespaces/N/status`` are about the
    namespace itself."""
    if len(path) < 3 or path[0] != "namespaces":
        return None, path
    own = kinds.find(group, version, "namespaces")
    if len(path) == 3 and own is not None and own.subresource(path[2]) is not None:
        return None, path
    return path[1], path[2:]
