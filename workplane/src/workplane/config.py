"""The agent's configuration: what its options and ``BEE_*`` variables say, checked once."""

import base64
import binascii
import re
from pathlib import Path
from urllib.parse import urlsplit

from attrs import field, frozen

from magik_proto.errors import ProtocolError
from magik_proto.identity import BootstrapPeer, Identity, parse_address

WORKLOAD_KINDS = ("Deployment", "StatefulSet", "Pod")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_PATTERN = re.compile(r"[A-Za-z0-9*./-]{1,255}")
_ORDINAL = re.compile(r"-(\d+)$")
REPLICAS_MAX = 10_000
DEFAULT_LISTEN = ("0.0.0.0", 4701)
"""The agent's port in its pod (a guess: near the machines' 4001, and not registered by IANA for anything)."""


DEFAULT_DNS = ("127.0.0.1", 53)


class ConfigError(Exception):
    """An option has a value that cannot work; the text names the option and its variable, and what is expected."""


@frozen(kw_only=True)
class Config:
    """Everything the command line settles. Intervals are in seconds; `identity` is for manual use, and never shown."""

    namespace: str
    workload: str
    pod: str
    workload_kind: str
    replicas: int
    identity: Identity | None = field(default=None, repr=False)
    liveness_url: str | None = None
    readiness_url: str | None = None
    machine_api: str = "http://localhost:8080"
    bootstrap_peers: tuple[BootstrapPeer, ...] = ()
    listen_addrs: tuple[tuple[str, int], ...] = ()
    allow_workloads: tuple[str, ...] = ()
    deny_workloads: tuple[str, ...] = ()
    allow_cross_namespace: bool = False
    dns_addr: tuple[str, int] = DEFAULT_DNS
    redirect_port: int | None = None
    dht_ttl: float = 15.0
    dht_heartbeat: float = 5.0
    health_interval: float = 10.0
    health_timeout: float = 5.0
    replica_check_interval: float = 30.0
    local_api: tuple[str, int] = ("127.0.0.1", 4700)
    run_folder: Path = Path("/run/magik")

    def __attrs_post_init__(self) -> None:
        _require("--namespace", _DNS_LABEL.fullmatch(self.namespace), "a DNS label", self.namespace)
        _require("--workload", _DNS_NAME.fullmatch(self.workload), "a DNS name", self.workload)
        _require("--pod", _DNS_NAME.fullmatch(self.pod), "a DNS name", self.pod)
        _require("--replicas", 0 < self.replicas <= REPLICAS_MAX, f"from 1 to {REPLICAS_MAX}", self.replicas)
        if self.dht_heartbeat >= self.dht_ttl:
            raise ConfigError(
                f"--dht-heartbeat-secs {self.dht_heartbeat:g} must be below --dht-ttl-secs {self.dht_ttl:g}, "
                "or records end before they are announced again"
            )
        if len(self.listen_addrs) > 1:
            raise ConfigError(
                "--listen-addrs: expected one address; 0.0.0.0 or [::] hears on all of the pod's"
            )
        _require(
            "--local-api",
            self.local_api[0] in ("127.0.0.1", "::1"),
            "127.0.0.1:PORT or [::1]:PORT",
            self.local_api[0],
        )
        if self.workload_kind == "StatefulSet" and self.ordinal is None:
            raise ConfigError(
                f"--pod {self.pod}: a StatefulSet's pod is named with its ordinal, like {self.workload}-0"
            )

    @property
    def listen(self) -> tuple[str, int]:
        """Where peers are listened for."""
        return self.listen_addrs[0] if self.listen_addrs else DEFAULT_LISTEN

    @property
    def app_folder(self) -> Path:
        """What the agent shares with the pod's containers."""
        return self.run_folder / "app"

    @property
    def state_folder(self) -> Path:
        """What outlives the agent, and goes with the pod."""
        return self.run_folder / "agent" / "state"

    @property
    def ordinal(self) -> int | None:
        """The number at the end of a StatefulSet pod's name; None for other kinds."""
        match = _ORDINAL.search(self.pod)
        return int(match[1]) if match and self.workload_kind == "StatefulSet" else None

    @property
    def workload_id(self) -> str:
        """``{namespace}/{kind}/{name}``."""
        return f"{self.namespace}/{self.workload_kind}/{self.workload}"


def _require(option: str, fine: object, expected: str, got: object) -> None:
    if not fine:
        raise ConfigError(f"{option} {got!r}: expected {expected}")


def parse_key(text: str) -> Identity:
    """An Ed25519 seed in base64. Raises ConfigError, which does not repeat the text: it may be a key with a typing error."""
    try:
        return Identity.from_seed(base64.b64decode(text.strip(), validate=True))
    except (binascii.Error, ValueError, ProtocolError) as error:
        raise ConfigError("--privkey (BEE_PRIVATE_KEY_B64): expected 32 bytes in base64") from error


def parse_machine(text: str) -> str:
    """The machine's API: ``unix:/PATH`` or ``http://HOST:PORT``. Raises ConfigError."""
    parts = urlsplit(text)
    unix = parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc
    if not unix and not (parts.scheme == "http" and parts.hostname and parts.path in ("", "/")):
        raise ConfigError(f"--machine-api {text!r}: expected unix:/PATH or http://HOST:PORT")
    return text


def parse_url(option: str, text: str | None) -> str | None:
    """An HTTP URL on the pod's own loopback: probes go nowhere else. Raises ConfigError."""
    if not text:
        return None
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or parts.hostname not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(
            f"{option} {text!r}: expected http://127.0.0.1:PORT/PATH; probes go to the own pod only"
        )
    return text


def parse_peers(text: str | None) -> tuple[BootstrapPeer, ...]:
    """Comma-separated ``ID@IP:PORT``. Raises ConfigError."""
    try:
        return tuple(BootstrapPeer.parse(part) for part in parse_list(text))
    except ProtocolError as error:
        raise ConfigError(f"--bootstrap-peers: {error}") from error


def parse_addresses(text: str | None) -> tuple[tuple[str, int], ...]:
    """Comma-separated ``IP:PORT``; port 0 is any that is free. Raises ConfigError."""
    try:
        return tuple(_parse_listen(part) for part in parse_list(text))
    except ProtocolError as error:
        raise ConfigError(f"--listen-addrs: {error}") from error


def parse_door(text: str) -> tuple[str, int]:
    """Where the app's door is: ``127.0.0.1:PORT``; port 0 is any that is free. Raises ConfigError."""
    try:
        return _parse_listen(text)
    except ProtocolError as error:
        raise ConfigError(f"--local-api: {error}") from error


def parse_dns(text: str) -> tuple[str, int]:
    """``IP:PORT`` at which the pod's apps ask for names; port 0 is any that is free. Raises ConfigError."""
    try:
        return _parse_listen(text)
    except ProtocolError as error:
        raise ConfigError(f"--dns-addr (BEE_DNS_ADDR): {error}") from error


def _parse_listen(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    return (parse_address(f"{host}:1")[0], 0) if colon and port == "0" else parse_address(text)


def parse_patterns(option: str, text: str | None) -> tuple[str, ...]:
    """Comma-separated workload patterns, ``*`` standing for any part. Raises ConfigError."""
    patterns = parse_list(text)
    for pattern in patterns:
        _require(option, _PATTERN.fullmatch(pattern), "patterns like default/Deployment/*", pattern)
    return patterns


def parse_list(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
