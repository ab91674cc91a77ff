"""Credentials for registries, as Docker's ``config.json`` and Kubernetes' ``kubernetes.io/dockerconfigjson`` write them.

The rules for which key is for which image are those of Kubernetes ("Images", "Interpretation of config.json"): a host
may have ``*`` for a whole label or a part of one, a path is a prefix of whole names, the longest key is tried first.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from attrs import field, frozen

from machineplane.runtime.images.errors import BadSettings, shown

_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io", "registry.docker.io")
_VERSIONS = ("v1", "v2")  # old keys are addresses of an API: https://index.docker.io/v1/


@frozen
class Credential:
    """A name with a password, or an identity token that the token service takes in their place."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


@frozen
class _Key:
    host: str
    path: str
    credential: Credential

    def fits(self, host: str, path: str) -> bool:
        if self.path and path != self.path and not path.startswith(self.path + "/"):
            return False
        wanted, given = _canonical(self.host).split("."), _canonical(host).split(".")
        return len(wanted) == len(given) and all(map(fnmatchcase, given, wanted))


@frozen
class Keyring:
    """Credentials with what they are for."""

    keys: tuple[_Key, ...] = field(default=(), repr=False)

    def find(self, host: str, path: str) -> list[Credential]:
        """What to try for the repository ``path`` of ``host``, best first; equals in the order of the keyring."""
        fitting = [key for key in self.keys if key.fits(host, path)]
        fitting.sort(key=lambda key: -len(key.path))
        return list(dict.fromkeys(key.credential for key in fitting))

    def __add__(self, other: "Keyring") -> "Keyring":
        return Keyring(self.keys + other.keys)


def _canonical(host: str) -> str:
    return _DOCKER_HUB[0] if host in _DOCKER_HUB else host


def keyring_of(document: object, subject: str) -> Keyring:
    """The ``auths`` of a parsed document. Raises ``BadSettings``, which never shows a secret."""
    if not isinstance(document, Mapping):
        raise BadSettings(subject, "is not a table of keys and values")
    for name in ("credsStore", "credHelpers"):
        if document.get(name):
            problem = "names a credential helper, a program that is not run here"
            raise BadSettings(f"{subject}: {name}", problem, "put the credentials under auths")
    auths = {} if document.get("auths") is None else document["auths"]
    if not isinstance(auths, Mapping):
        raise BadSettings(f"{subject}: auths", "is not a table of registries")
    return Keyring(tuple(_key(str(key), value, f"{subject}: auths.{key}") for key, value in auths.items()))


def parse_docker_config(data: bytes, subject: str) -> Keyring:
    """The content of a pull secret's ``.dockerconfigjson``. Raises ``BadSettings``."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise BadSettings(subject, "is not JSON") from None
    return keyring_of(document, subject)


def parse_docker_cfg(data: bytes, subject: str) -> Keyring:
    """The older ``.dockercfg``: the table of registries without ``auths`` around it. Raises ``BadSettings``."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise BadSettings(subject, "is not JSON") from None
    return keyring_of({"auths": document}, subject)


def _key(text: str, value: object, subject: str) -> _Key:
    if not isinstance(value, Mapping):
        raise BadSettings(subject, "is not a table with auth, or username and password")
    _, separator, rest = text.partition("://")
    host, _, path = (rest if separator else text).partition("/")
    parts = [part for part in path.split("/") if part]
    if parts[:1] and parts[0] in _VERSIONS:
        parts = parts[1:]
    if not host:
        raise BadSettings(subject, "names no registry")
    return _Key(host, "/".join(parts), _credential(value, subject))


def _credential(value: Mapping[str, object], subject: str) -> Credential:
    names: Sequence[str] = ("auth", "username", "password", "identitytoken")
    fields = {name: value.get(name) or "" for name in names}
    for name, content in fields.items():
        if not isinstance(content, str):
            raise BadSettings(f"{subject}.{name}", "is not a text")
    username, password = str(fields["username"]), str(fields["password"])
    if fields["auth"] and not username:
        username, password = _basic(str(fields["auth"]), subject)
    token = str(fields["identitytoken"])
    if not username and not token:
        raise BadSettings(subject, "has neither auth nor username", "`docker login` writes one of them")
    if any(ord(char) < 32 for char in username + password + token):
        raise BadSettings(subject, f"has control characters in it, for {shown(username)}")
    return Credential(username, password, token)


def _basic(auth: str, subject: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(auth, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise BadSettings(f"{subject}.auth", "is not base64 of NAME:PASSWORD") from None
    username, colon, password = text.partition(":")
    if not colon or not username:
        raise BadSettings(f"{subject}.auth", "is not base64 of NAME:PASSWORD")
    return username, password.rstrip("\0")
