"""The configuration says by its option what cannot work."""

import socket
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from machineplane.config import Config, ConfigError, default_node_name, parse_ports, parse_subnet, pod_subnet
from magik_proto.fields import DNS_SUBDOMAIN


def config(**options: Any) -> Config:
    return Config(**{"state_dir": Path("/s"), "run_dir": Path("/r"), **options})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rest_api_host": "localhost"}, "--rest-api-host localhost"),
        ({"mesh_host": ""}, "--mesh-host"),
        ({"rest_api_port": 65536}, "--rest-api-port 65536"),
        ({"rest_api_tls_port": -1}, "--rest-api-tls-port -1"),
        ({"mesh_port": 1 << 20}, "--mesh-port 1048576"),
        ({"rest_api_port": 6443}, "both 6443"),
        ({"advertise": ("192.0.2.1:1", "foo")}, "--advertise foo"),
        ({"advertise": ("192.0.2.1:0",)}, "--advertise 192.0.2.1:0"),
        ({"run_dir": Path("/" + "r" * 60)}, "--run-dir"),
        ({"run_dir": Path("/" + "ü" * 30)}, "--run-dir"),
        ({"cgroup_parent": ""}, "--cgroup-parent"),
        ({"cgroup_parent": "a/../.."}, "--cgroup-parent"),
        ({"pod_subnet": IPv4Network("10.0.0.0/8")}, "--pod-subnet 10.0.0.0/8"),
        ({"pod_subnet": IPv4Network("10.0.0.0/29")}, "--pod-subnet 10.0.0.0/29"),
        ({"node_name": "My Node"}, "--node-name 'My Node'"),
        ({"node_name": "a" * 64}, "--node-name"),
        ({"labels": (("a b", "c"),)}, "--label a b=c"),
        ({"labels": (("a", "c d"),)}, "--label a=c d"),
        ({"runtime": "docker"}, "--runtime docker"),
        ({"dht_refresh_interval": 0.5}, "--dht-refresh-interval-secs 0.5"),
        ({"dht_refresh_interval": float("nan")}, "--dht-refresh-interval-secs nan"),
        ({"dht_refresh_interval": float("inf")}, "--dht-refresh-interval-secs inf"),
        ({"open_fabric": True, "invite": "x"}, "--open-fabric and --invite"),
    ],
)
def test_what_cannot_work_is_said_by_its_option(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**options)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_what_can_work_is_taken() -> None:
    found = config(
        rest_api_host="::",
        rest_api_port=0,
        rest_api_tls_port=0,
        advertise=("[2001:db8::1]:4001",),
        labels=(("example.com/disk", "ssd"), ("empty", "")),
        node_name="rack-1.machine-2",
        cgroup_parent="/a/b",
        pod_subnet=IPv4Network("10.1.0.0/16"),
    )
    assert found.ready_file == Path("/r/machineplane.json")


def test_directories_are_absolute_for_the_helpers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert config(state_dir=Path("s")).state_dir == tmp_path / "s"


def test_an_invite_is_not_in_what_is_printed() -> None:
    assert "magik-invite" not in repr(config(invite="magik-invite-1.secret"))


def test_identities_are_kept_unless_asked_otherwise() -> None:
    assert config().keeps_identity and config(kem_ephemeral=True).keeps_identity
    assert not config(ephemeral_keys=True).keeps_identity
    assert not config(signing_ephemeral=True).keeps_identity


@pytest.mark.parametrize("text", ["", "10.0.0.0/33", "10.0.0.1/24", "fd00::/64", "x"])
def test_what_is_no_subnet_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--pod-subnet: .*10\.88\.0\.0/16"):
        parse_subnet(text)
    assert parse_subnet("10.1.2.0/24") == IPv4Network("10.1.2.0/24")


@pytest.mark.parametrize(
    "text", ["", "-", "1-", "x-y", "80-90", "2000-65536", "3000-2999", "²000-3000", "2000-3000-1"]
)
def test_what_is_no_range_of_ports_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--agent-ports .* as 20000-27999"):
        parse_ports(text)
    assert parse_ports("2000-2000") == range(2000, 2001)


def test_pods_of_two_machines_mostly_have_two_networks() -> None:
    found = {pod_subnet(bytes([a, b]) + bytes(30)) for a in range(0, 256, 16) for b in range(0, 256, 16)}
    assert len(found) == 4 * 16
    assert all(n.subnet_of(IPv4Network("10.64.0.0/10")) and n.prefixlen == 24 for n in found)


@pytest.mark.parametrize("host", ["vm", "My.Host", "---", "", "ünïcode", "h" * 300, "a" * 49 + "-b"])
def test_every_host_name_makes_a_node_name(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    name = default_node_name("0123456789abcdef")
    assert DNS_SUBDOMAIN.fullmatch(name) and len(name) <= 63 and name.endswith("-01234567")
