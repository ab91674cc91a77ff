"""Rules for ConfigMaps and Secrets: keys, sizes, what a type of Secret must hold, and what may not change."""

import base64
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from .problems import Problems

Object = Mapping[str, Any]

#: All values of a ConfigMap or Secret together, in bytes (Kubernetes' limit).
MAX_DATA: Final = 1024 * 1024
MAX_KEY: Final = 253
_KEY: Final = re.compile(r"[-._a-zA-Z0-9]+")
_KEY_MESSAGE: Final = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' "
    "(e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)
#: The keys that a Secret of a type must have (k8s.io/kubernetes/pkg/apis/core/validation).
_NEEDED: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "kubernetes.io/tls": ("tls.crt", "tls.key"),
        "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
        "kubernetes.io/dockercfg": (".dockercfg",),
        "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    }
)


def check_config_map(obj: Object, problems: Problems) -> None:
    """Keys of both maps, none in both, and the size of all."""
    data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    check_keys(data, "data", problems)
    check_keys(binary, "binaryData", problems)
    for key in sorted(data.keys() & binary.keys()):
        problems.invalid("data", key, "duplicate of key present in binaryData")
    _check_size([*(text.encode() for text in data.values()), *_bytes(binary)], "", problems)


def check_secret(obj: Object, problems: Problems) -> None:
    """Keys, size, and what the type asks for."""
    data = obj.get("data") or {}
    check_keys(data, "data", problems)
    _check_size(list(_bytes(data)), "data", problems)
    for key in _NEEDED.get(obj.get("type", ""), ()):
        if key not in data:
            problems.required(f"data[{key}]")


def check_unchanged(obj: Object, old: Object, problems: Problems) -> None:
    """What is ``immutable`` stays so, and as it is; a Secret's type never changes."""
    if old.get("type") != obj.get("type"):
        problems.invalid("type", obj.get("type"), "field is immutable")
    if not old.get("immutable"):
        return
    if not obj.get("immutable"):
        problems.forbidden("immutable", "field is immutable when `immutable` is set")
    for name in ("data", "binaryData"):
        if (obj.get(name) or {}) != (old.get(name) or {}):
            problems.forbidden(name, "field is immutable when `immutable` is set")


def check_keys(data: Object, path: str, problems: Problems) -> None:
    """Names that can be files and variables."""
    for key in data:
        if not _KEY.fullmatch(key):
            problems.invalid(f"{path}[{key}]", key, _KEY_MESSAGE)
        elif len(key) > MAX_KEY or key in (".", "..") or key.startswith(".."):
            problems.invalid(
                f"{path}[{key}]", key, f"must be at most {MAX_KEY} characters and not begin with '..'"
            )


def _bytes(data: Object) -> Iterator[bytes]:
    return (base64.b64decode(value) for value in data.values())


def _check_size(values: list[bytes], path: str, problems: Problems) -> None:
    if sum(map(len, values)) > MAX_DATA:
        problems.too_long(path, MAX_DATA)
