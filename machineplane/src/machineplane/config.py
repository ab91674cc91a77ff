"""The daemon's configuration: frozen, checked once at the edge."""

import os
import re
import socket
from collections.abc import Iterator
from ipaddress import IPv4Network, ip_address
from pathlib import Path

from attrs import field, frozen

from machineplane.runtime.krun.boot import BOOT_TIMEOUT_S
from machineplane.runtime.slices import CGROUPFS, SYSTEMD, slice_of
from magik_proto.errors import ProtocolError
from magik_proto.fields import DNS_SUBDOMAIN, LABEL_KEY, LABEL_VALUE
from magik_proto.identity import BootstrapPeer, parse_address

API_TLS_PORT = 6443  # what kubectl's users expect of an API server
RUNTIMES = ("krun", "crun")
RUN_DIR_MAX = 60  # bytes; leaves room below the run directory for a pod's socket (sun_path holds 108)
NODE_NAME_MAX = 63  # it is also the value of the label kubernetes.io/hostname
CONNECTIONS_MIN, CONNECTIONS_MAX = 4, 512  # less makes no mesh; more than a directory of known machines bears
REFRESH_MAX_S = 86_400  # a guess: presence that is a day old helps nobody

# A guess: more than there are pods, and below the ports that Linux and Kubernetes give out (32768, 30000).
AGENT_PORTS = range(20_000, 28_000)


class ConfigError(Exception):
    """An option has a value that cannot work; the text names the option and what to write instead."""


def _absolute(path: Path) -> Path:
    return path.absolute()


@frozen(kw_only=True)
class Config:
    """Everything that the command line settles. Ports 0 are picked by the kernel; times are in seconds."""

    state_dir: Path = field(converter=_absolute)  # helpers have working directories of their own
    run_dir: Path = field(converter=_absolute)
    node_name: str = ""
    rest_api_host: str = "0.0.0.0"
    rest_api_port: int = 3000
    rest_api_tls_port: int = API_TLS_PORT
    mesh_host: str = "0.0.0.0"
    mesh_port: int = 0
    mesh_connections: int = 64
    advertise: tuple[str, ...] = ()
    bootstrap_peers: tuple[BootstrapPeer, ...] = ()
    invite: str | None = field(default=None, repr=False)
    open_fabric: bool = False
    runtime: str = "krun"
    runtime_given: bool = False
    libkrun: Path | None = None
    microvm_boot_timeout: float = BOOT_TIMEOUT_S
    registry_config: Path | None = None
    pod_subnet: IPv4Network | None = None
    agent_ports: range = AGENT_PORTS
    cgroup_parent: str = "magik"
    cgroup_driver: str = CGROUPFS
    relay: bool = True
    dht_refresh_interval: float = 60.0
    ephemeral_keys: bool = False
    signing_ephemeral: bool = False
    kem_ephemeral: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    allow_privileged: bool = False
    allow_host_paths: tuple[str, ...] = ()
    allow_sysctls: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        problem = next(self._problems(), None)
        if problem is not None:
            raise ConfigError(problem)

    def _problems(self) -> Iterator[str]:
        """What cannot work, each naming its option."""
        yield from self._address_problems()
        yield from self._place_problems()
        yield from self._name_problems()
        if self.open_fabric and self.invite is not None:
            yield "--open-fabric and --invite: a fabric is open or it invites, so give one of them"
        if self.runtime not in RUNTIMES:
            yield f"--runtime {self.runtime}: it is one of {', '.join(RUNTIMES)}"
        if not CONNECTIONS_MIN <= self.mesh_connections <= CONNECTIONS_MAX:
            yield f"--mesh-connections {self.mesh_connections}: take {CONNECTIONS_MIN} to {CONNECTIONS_MAX}"
        if not 1 <= self.dht_refresh_interval <= REFRESH_MAX_S:
            yield f"--dht-refresh-interval-secs {self.dht_refresh_interval:g}: take 1 to {REFRESH_MAX_S} seconds"

    def _address_problems(self) -> Iterator[str]:
        hosts = {"--rest-api-host": self.rest_api_host, "--mesh-host": self.mesh_host}
        yield from (_NO_ADDRESS.format(o, host) for o, host in hosts.items() if not _is_address(host))
        ports = {
            "--rest-api-port": self.rest_api_port,
            "--rest-api-tls-port": self.rest_api_tls_port,
            "--mesh-port": self.mesh_port,
        }
        yield from (_NO_PORT.format(o, port) for o, port in ports.items() if not 0 <= port <= 65535)
        if self.rest_api_port and self.rest_api_port == self.rest_api_tls_port:
            yield f"--rest-api-port and --rest-api-tls-port are both {self.rest_api_port}: take two ports"
        for text in self.advertise:
            try:
                parse_address(text)
            except ProtocolError:
                yield f"--advertise {text}: an IP address and a port are needed, as 192.0.2.1:4001"

    def _place_problems(self) -> Iterator[str]:
        if len(os.fsencode(self.run_dir)) > RUN_DIR_MAX:
            yield f"--run-dir {self.run_dir}: at most {RUN_DIR_MAX} bytes, for sockets live there"
        parts = self.cgroup_parent.strip("/").split("/")
        if not {"", ".", ".."}.isdisjoint(parts):
            yield f"--cgroup-parent {self.cgroup_parent!r}: a path below the root of the hierarchy is needed"
        elif self.cgroup_driver == SYSTEMD:
            try:
                slice_of(self.cgroup_parent)
            except ValueError as error:
                yield f"--cgroup-parent with --cgroup-driver {SYSTEMD}: {error}"
        for path in self.allow_host_paths:
            if not path.startswith("/") or ".." in path.split("/"):
                yield f"--allow-host-path {path}: an absolute path without '..' is needed"
        if self.pod_subnet is not None and not 16 <= self.pod_subnet.prefixlen <= 28:
            yield f"--pod-subnet {self.pod_subnet}: take a network of /16 to /28"

    def _name_problems(self) -> Iterator[str]:
        name = self.node_name
        if name and (len(name) > NODE_NAME_MAX or not DNS_SUBDOMAIN.fullmatch(name)):
            yield f"--node-name {name!r}: {_NAME_RULE}, at most {NODE_NAME_MAX} characters"
        for key, value in self.labels:
            if not LABEL_KEY.fullmatch(key):
                yield f"--label {key}={value}: {key!r} is not a Kubernetes label key"
            if not LABEL_VALUE.fullmatch(value):
                yield f"--label {key}={value}: {value!r} is not a Kubernetes label value"

    @property
    def ready_file(self) -> Path:
        """Written when the daemon answers; holds what others need to reach it."""
        return self.run_dir / "machineplane.json"

    @property
    def keeps_identity(self) -> bool:
        """Whether the machine is the same one after a restart."""
        return not (self.ephemeral_keys or self.signing_ephemeral)


_NO_ADDRESS = "{} {}: an IP address of this machine is needed (0.0.0.0 for all)"
_NO_PORT = "{} {}: a port is a number from 0 to 65535"
_NAME_RULE = "a name is of small letters, digits, '-' and '.', with a letter or digit at either end"


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def parse_subnet(text: str) -> IPv4Network:
    """A ``--pod-subnet``. Raises ConfigError."""
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise ConfigError(f"--pod-subnet: {error}: take a network as 10.88.0.0/16") from error


def parse_ports(text: str) -> range:
    """An ``--agent-ports``. Raises ConfigError."""
    first, dash, last = text.partition("-")
    if dash and all(number.isascii() and number.isdecimal() and len(number) <= 5 for number in (first, last)):
        ports = range(int(first), int(last) + 1)
        if ports and ports[0] >= 1024 and ports[-1] <= 65535:
            return ports
    raise ConfigError(
        f"--agent-ports {text}: take the first and the last of some ports from 1024 to 65535, as 20000-27999"
    )


def pod_subnet(identity: bytes) -> IPv4Network:
    """A /24 of 10.64.0.0/10 by the machine's identity: pods of different machines mostly have different addresses.

    They need not: a pod's address means something only on its own machine, and traffic between machines is the agents'.
    """
    return IPv4Network((bytes([10, 64 + identity[0] % 64, identity[1], 0]), 24))


def default_node_name(identity_hex: str) -> str:
    """The host name with eight digits of the identity, so that two machines of one image do not share a name."""
    host = re.sub("[^a-z0-9]+", "-", socket.gethostname().lower())[:50].strip("-")
    return f"{host or 'machine'}-{identity_hex[:8]}"
