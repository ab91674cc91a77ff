"""What a pod refers to: values of ConfigMaps and Secrets of its own namespace, and what else is known only where it runs."""

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

from machineplane.runtime.errors import PodSpecError

Lookup = Callable[[str, str], Mapping[str, Any] | None]
"""The object of a kind (``ConfigMap``, ``Secret``) and name in the pod's namespace; none if this machine knows none."""


class MissingReference(Exception):
    """What a container needs is not there (yet); the text is what users of Kubernetes know."""


def nothing(kind: str, name: str) -> None:
    """The lookup of a machine that knows no objects."""
    return


def _decoded(data: object, where: str) -> dict[str, bytes]:
    values = data or {}
    if not isinstance(values, Mapping):
        raise PodSpecError(f"{where} is not an object")
    try:
        return {str(key): base64.b64decode(value, validate=True) for key, value in values.items()}
    except (binascii.Error, ValueError, TypeError) as error:
        raise PodSpecError(f"{where} holds what is not base64") from error


def values_of(kind: str, obj: Mapping[str, Any]) -> dict[str, bytes]:
    """All values of a ConfigMap or Secret, as bytes."""
    if kind == "Secret":
        return _decoded(obj.get("data"), "the Secret's data")
    texts = {str(key): str(text).encode() for key, text in (obj.get("data") or {}).items()}
    return texts | _decoded(obj.get("binaryData"), "the ConfigMap's binaryData")


def find_values(lookup: Lookup, kind: str, reference: Mapping[str, Any]) -> dict[str, bytes] | None:
    """The values that a reference (``name``, ``optional``) means; none where it is absent and may be.

    Raises:
        MissingReference: it is absent and needed.
    """
    name = str(reference.get("name") or reference.get("secretName") or "")
    obj = lookup(kind, name)
    if obj is not None:
        return values_of(kind, obj)
    if reference.get("optional"):
        return None
    raise MissingReference(f'{kind.lower()} "{name}" not found')


def find_key(lookup: Lookup, kind: str, reference: Mapping[str, Any]) -> str | None:
    """One value as text; none where object or key are absent and may be.

    Raises:
        MissingReference: it is absent and needed.
        PodSpecError: it is no text.
    """
    values, key = find_values(lookup, kind, reference), str(reference.get("key", ""))
    if values is not None and key in values:
        return as_text(values[key], f"key {key} of {kind} {reference.get('name')}")
    if reference.get("optional"):
        return None
    raise MissingReference(f"couldn't find key {key} in {kind} {reference.get('name')}")


def as_text(value: bytes, what: str) -> str:
    """A value that is to be an environment variable.

    Raises:
        PodSpecError: it is no UTF-8, or holds a NUL, which ends a variable.
    """
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise PodSpecError(f"{what} is not UTF-8, so it cannot be an environment variable") from error
    if "\0" in text:
        raise PodSpecError(f"{what} holds a NUL byte, so it cannot be an environment variable")
    return text
