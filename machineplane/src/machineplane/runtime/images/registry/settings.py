"""The file of ``--registry-config``: what is special about which registry, credentials, and garbage collection.

YAML (hence JSON too) or TOML, told by the name's ending. Everything in it is optional, and nothing unknown is passed over.
"""

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import yaml
from attrs import field, frozen

from machineplane.runtime.images.errors import BadSettings, shown
from machineplane.runtime.images.registry.credentials import Keyring, keyring_of

FILE_MAX = 1 << 20  # bytes; a guess with room for thousands of registries
LOCAL = "localhost"  # as other engines have it, names of this host are of images that came by import
OTHERS = "*"
_HOUR_S = 3600.0
T = TypeVar("T")


@frozen(kw_only=True)
class Mirror:
    """Where a registry's content can be had as well: ``/v2/<prefix>/<name>`` of a host. ``host`` has its port."""

    host: str
    plain_http: bool = False
    prefix: str = ""


@frozen(kw_only=True)
class HostSettings:
    """How one registry is talked to. The default is HTTPS with the system's authorities."""

    enabled: bool = True
    plain_http: bool = False
    skip_verify: bool = False
    ca: Path | None = None
    mirrors: tuple[Mirror, ...] = ()
    share: bool = False  # may machines that asked with credentials hand its images to other machines?


@frozen(kw_only=True)
class GarbageSettings:
    """When images that nothing uses are removed. The percentages and ages are the kubelet's defaults."""

    high_percent: int = 85  # imageGCHighThresholdPercent
    low_percent: int = 80  # imageGCLowThresholdPercent
    minimum_age_s: float = 120.0  # imageMinimumGCAge
    maximum_age_s: float = 0.0  # imageMaximumGCAge; 0: age alone removes nothing


@frozen(kw_only=True)
class RegistrySettings:
    """The whole file. ``at_once`` is how many layers are downloaded at the same time on this machine."""

    hosts: Mapping[str, HostSettings] = field(factory=dict)
    keyring: Keyring = field(factory=Keyring)
    at_once: int = 3  # Docker's max-concurrent-downloads
    garbage: GarbageSettings = field(factory=GarbageSettings)

    def host(self, name: str) -> HostSettings:
        """Settings of a registry, else those of ``*``. ``localhost`` without a port is none unless it is listed."""
        found = self.hosts.get(name)
        if found is None and name == LOCAL:
            return HostSettings(enabled=False)
        return found or self.hosts.get(OTHERS) or HostSettings()


def load_settings(path: Path) -> RegistrySettings:
    """Raises ``BadSettings``, naming the file and the key."""
    subject = f"registry configuration {path}"
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX + 1)
    except OSError as error:
        raise BadSettings(subject, f"cannot be read ({error.strerror})") from error
    if len(data) > FILE_MAX:
        raise BadSettings(subject, f"is larger than {FILE_MAX} bytes")
    try:
        text = data.decode()
        document = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        said = " ".join(str(error).split())
        kind = "TOML" if path.suffix == ".toml" else "YAML"
        raise BadSettings(subject, f"is not {kind}", said) from error
    return read_settings(document if document is not None else {}, subject)


def read_settings(document: object, subject: str) -> RegistrySettings:
    """The settings in a parsed document. Raises ``BadSettings``."""
    top = _Table(document, subject, "")
    settings = RegistrySettings(
        hosts={name: _host(table) for name, table in top.tables("registries")},
        keyring=keyring_of(document, subject),
        at_once=top.table("downloads").number("at-once", 3, 1, 64),
        garbage=_garbage(top.table("garbage-collection")),
    )
    top.table("downloads").only("at-once")
    top.only("registries", "auths", "downloads", "garbage-collection")
    return settings


def _host(table: "_Table") -> HostSettings:
    made = HostSettings(
        enabled=table.flag("enabled", True),
        plain_http=table.flag("plain-http", False),
        skip_verify=table.flag("skip-verify", False),
        ca=table.file("ca"),
        mirrors=tuple(_mirror(table, text) for text in table.texts("mirrors")),
        share=table.flag("share", False),
    )
    if made.plain_http and (made.ca or made.skip_verify):
        raise table.bad("plain-http", "goes with neither ca nor skip-verify: there is no TLS")
    if made.ca and made.skip_verify:
        raise table.bad("skip-verify", "makes the ca useless: give one of them")
    table.only("enabled", "plain-http", "skip-verify", "ca", "mirrors", "share")
    return made


def _mirror(table: "_Table", text: str) -> Mirror:
    parts = urlsplit(text)
    try:
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:
        usable = None
    if not usable or parts.query or parts.fragment or "@" in parts.netloc:
        raise table.bad("mirrors", f"has {shown(text)}: write it as https://HOST[:PORT][/PREFIX]")
    return Mirror(host=parts.netloc, plain_http=parts.scheme == "http", prefix=parts.path.strip("/"))


def _garbage(table: "_Table") -> GarbageSettings:
    usual = GarbageSettings()
    made = GarbageSettings(
        high_percent=table.number("high-percent", usual.high_percent, 0, 100),
        low_percent=table.number("low-percent", usual.low_percent, 0, 100),
        minimum_age_s=float(table.number("minimum-age-seconds", int(usual.minimum_age_s), 0, 1 << 31)),
        maximum_age_s=table.number("maximum-age-hours", 0, 0, 1 << 20) * _HOUR_S,
    )
    if made.low_percent >= made.high_percent:
        raise table.bad("low-percent", f"is {made.low_percent}: it has to be below high-percent")
    if made.maximum_age_s and made.maximum_age_s <= made.minimum_age_s:
        raise table.bad("maximum-age-hours", "has to be more than minimum-age-seconds")
    table.only("high-percent", "low-percent", "minimum-age-seconds", "maximum-age-hours")
    return made


class _Table:
    """A mapping whose values are asked for by type; what is wrong is told with its key."""

    def __init__(self, value: object, subject: str, key: str) -> None:
        self._subject = subject
        self._key = key
        if not isinstance(value, Mapping):
            raise BadSettings(f"{subject}: {key}" if key else subject, "is not a table of keys and values")
        self._value: Mapping[Any, Any] = value

    def bad(self, name: str, problem: str) -> BadSettings:
        return BadSettings(f"{self._subject}: {self._path(name)}", problem)

    def _path(self, name: str) -> str:
        return f"{self._key}.{name}" if self._key else name

    def _get(self, name: str, kind: type, usual: T, what: str, fits: Callable[[Any], bool]) -> T:
        value = self._value.get(name, usual)
        if value is usual:
            return usual
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)) or not fits(value):
            raise self.bad(name, f"has to be {what}")
        found: T = value  # type: ignore[assignment] # of ``kind``, hence a T, which mypy cannot know
        return found

    def flag(self, name: str, usual: bool) -> bool:
        return self._get(name, bool, usual, "true or false", lambda _: True)

    def number(self, name: str, usual: int, low: int, high: int) -> int:
        what = f"a whole number from {low} to {high}"
        return self._get(name, int, usual, what, lambda value: low <= value <= high)

    def file(self, name: str) -> Path | None:
        text = self._get(name, str, "", "the path of a file", lambda value: Path(value).is_file())
        return Path(text) if text else None

    def texts(self, name: str) -> list[str]:
        nothing: list[str] = []
        return self._get(
            name, list, nothing, "a list of texts", lambda items: all(isinstance(i, str) for i in items)
        )

    def table(self, name: str) -> "_Table":
        return _Table(self._value.get(name) or {}, self._subject, self._path(name))

    def tables(self, name: str) -> list[tuple[str, "_Table"]]:
        outer = self.table(name)
        return [(str(key), outer.table(str(key))) for key in outer._value]

    def only(self, *known: str) -> None:
        """Raises for a key that is not known: a misspelt one would silently do nothing."""
        unknown = sorted(str(key) for key in self._value if key not in known)
        if unknown:
            raise self.bad(unknown[0], f"is not known: there are {', '.join(known)}")
