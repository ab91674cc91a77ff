"""The daemon's configuration: frozen, checked once at the edge."""

import socket
from ipaddress import AddressValueError, IPv4Network, NetmaskValueError, ip_address
from pathlib import Path

from attrs import field, frozen

from magik_proto.identity import BootstrapPeer

API_TLS_PORT = 6443  # what kubectl's users expect of an API server
RUNTIMES = ("krun", "crun")
SOCKET_PATH_MAX = 60  # leaves room below the run directory for a pod's socket (sun_path holds 108 bytes)


class ConfigError(Exception):
    """An option has a value that cannot work; the text names the option and what to write instead."""


@frozen(kw_only=True)
class Config:
    """Everything that the command line settles. Ports 0 are picked by the kernel; times are in seconds."""

    state_dir: Path
    run_dir: Path
    node_name: str = ""
    rest_api_host: str = "0.0.0.0"
    rest_api_port: int = 3000
    rest_api_tls_port: int = API_TLS_PORT
    mesh_host: str = "0.0.0.0"
    mesh_port: int = 0
    advertise: tuple[str, ...] = ()
    bootstrap_peers: tuple[BootstrapPeer, ...] = ()
    invite: str | None = field(default=None, repr=False)
    open_fabric: bool = False
    runtime: str = "krun"
    runtime_given: bool = False
    pod_subnet: IPv4Network | None = None
    cgroup_parent: str = "magik"
    dht_refresh_interval: float = 60.0
    ephemeral_keys: bool = False
    signing_ephemeral: bool = False
    kem_ephemeral: bool = False
    labels: tuple[tuple[str, str], ...] = ()

    def __attrs_post_init__(self) -> None:
        for option, host in (("--rest-api-host", self.rest_api_host), ("--mesh-host", self.mesh_host)):
            _check_address(option, host)
        ports = {
            "--rest-api-port": self.rest_api_port,
            "--rest-api-tls-port": self.rest_api_tls_port,
            "--mesh-port": self.mesh_port,
        }
        for option, port in ports.items():
            if not 0 <= port <= 65535:
                raise ConfigError(f"{option} {port}: a port is a number from 0 to 65535")
        if self.rest_api_port and self.rest_api_port == self.rest_api_tls_port:
            raise ConfigError(
                f"--rest-api-port and --rest-api-tls-port are both {self.rest_api_port}: take two ports"
            )
        if self.runtime not in RUNTIMES:
            raise ConfigError(f"--runtime {self.runtime}: it is one of {', '.join(RUNTIMES)}")
        if len(str(self.run_dir)) > SOCKET_PATH_MAX:
            raise ConfigError(
                f"--run-dir {self.run_dir}: at most {SOCKET_PATH_MAX} characters, for sockets live there"
            )
        if self.pod_subnet is not None and not 16 <= self.pod_subnet.prefixlen <= 28:
            raise ConfigError(f"--pod-subnet {self.pod_subnet}: take a network of /16 to /28")

    @property
    def ready_file(self) -> Path:
        """Written when the daemon answers; holds what others need to reach it."""
        return self.run_dir / "machineplane.json"

    @property
    def keeps_identity(self) -> bool:
        """Whether the machine is the same one after a restart."""
        return not (self.ephemeral_keys or self.signing_ephemeral)


def _check_address(option: str, host: str) -> None:
    try:
        ip_address(host)
    except ValueError as error:
        raise ConfigError(
            f"{option} {host}: an IP address of this machine is needed (0.0.0.0 for all)"
        ) from error


def parse_subnet(text: str) -> IPv4Network:
    """A ``--pod-subnet``. Raises ConfigError."""
    try:
        return IPv4Network(text)
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise ConfigError(f"--pod-subnet {text}: {error}") from error


def pod_subnet(identity: bytes) -> IPv4Network:
    """A /24 of 10.64.0.0/10 by the machine's identity: pods of different machines mostly have different addresses.

    They need not: a pod's address means something only on its own machine, and traffic between machines is the agents'.
    """
    return IPv4Network((bytes([10, 64 + identity[0] % 64, identity[1], 0]), 24))


def default_node_name(identity_hex: str) -> str:
    """The host name with eight digits of the identity, so that two machines of one image do not share a name."""
    host = "".join(c if c.isalnum() or c == "-" else "-" for c in socket.gethostname().lower()).strip("-")
    return f"{host[:50] or 'machine'}-{identity_hex[:8]}"
