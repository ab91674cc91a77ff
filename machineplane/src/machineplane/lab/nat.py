"""Routers that hide machines of a lab behind source NAT, each a network namespace of its own. Blocking.

A router has the machine's address in the lab on `eth0` and the first address of a network of its own on `inside`. It
lets out what the machine sends, lets in only answers to that, and the API's port, so that kubectl reaches the machine.
"""

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from machineplane.lab import network
from machineplane.lab.plan import API_PORT, SYMMETRIC, first_inside, own_inside
from machineplane.linux import libc, nft
from machineplane.linux.netns import in_netns

OUTSIDE = "eth0"
INSIDE = "inside"
TABLE = "magik-lab-nat"
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def plug(
    hub: str, router: str, machine: str, netns: Path, outside: IPv4Address, subnet: IPv4Network,
    inside: IPv4Network, kind: str,
) -> None:  # fmt: skip
    """Make the router called ``router`` on the hub and connect the machine whose network namespace is ``netns`` to it.

    ``kind`` as in :data:`~machineplane.lab.plan.NATS`.
    """
    path = _make(router, inside, kind)
    network.plug(hub, machine, path, outside, subnet)
    with netns.open("rb") as namespace:

        def work() -> None:
            with network.netlink(f"link of machine {machine} to its router") as handle:
                peer = {"ifname": "eth0", "net_ns_fd": namespace.fileno()}
                handle.link("add", ifname=INSIDE, kind="veth", peer=peer)
            network.set_up(INSIDE, first_inside(inside), inside, gateway=None)

        in_netns(path, work)
    in_netns(netns, lambda: network.set_up("eth0", own_inside(inside), inside, first_inside(inside)))


def remove(router: str) -> None:
    """End a router; nothing happens when there is none of that name."""
    network.forget_namespace(router)


def _make(router: str, inside: IPv4Network, kind: str) -> Path:
    def work() -> Path:
        libc.unshare(libc.CLONE_NEWNET)
        path = network.name_namespace(router, network.THREAD_NETNS)
        _FORWARD.write_text("1")
        nft.run(rules(own_inside(inside), kind))
        return path

    return in_netns("/proc/self/ns/net", work)


def rules(machine: IPv4Address, kind: str) -> str:
    """What the router does, in nftables' language.

    Linux keeps a socket's port for all its destinations where it can (a cone), and lets in only what comes from exactly
    where was sent to. `fully-random` draws another port for each destination, as symmetric NATs do. What is for the
    router itself is dropped without a word: were it answered, its conntrack entry would take the port that the machine's
    own datagram to the same place is about to have.
    """
    masquerade = "masquerade fully-random" if kind == SYMMETRIC else "masquerade"
    return "\n".join(
        (
            f"add table ip {TABLE}",
            f"add chain ip {TABLE} out {{ type nat hook postrouting priority srcnat; policy accept; }}",
            f'add rule ip {TABLE} out oifname "{OUTSIDE}" {masquerade}',
            f"add chain ip {TABLE} in {{ type nat hook prerouting priority dstnat; policy accept; }}",
            f'add rule ip {TABLE} in iifname "{OUTSIDE}" tcp dport {API_PORT} dnat to {machine}',
            f"add chain ip {TABLE} through {{ type filter hook forward priority filter; policy drop; }}",
            f'add rule ip {TABLE} through iifname "{INSIDE}" accept',
            f"add rule ip {TABLE} through ct state established,related accept",
            f"add rule ip {TABLE} through ct status dnat accept",
            f"add chain ip {TABLE} local {{ type filter hook input priority filter; policy drop; }}",
            f'add rule ip {TABLE} local iifname "{INSIDE}" accept',
            f"add rule ip {TABLE} local ct state established,related accept",
        )
    )
