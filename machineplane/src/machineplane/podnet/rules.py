"""The nftables rules of a pod bridge: masquerading, and ports of the machine that lead to pods. Blocking.

All of a bridge is in one table, with names that begin with the bridge's: two chains and two maps. A map's elements are
the forwarded ports, which so outlive the daemon; a new daemon writes the chains anew and leaves the maps alone.
"""

import re
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network

from machineplane.linux import nft
from machineplane.podnet.ports import Forward

TABLE = "magik-podnet"
_ELEMENT = re.compile(r"(\d+) : ([\d.]+) \. (\d+)")


def set_rules(name: str, subnet: IPv4Network, *, masquerade: bool, forwards: bool) -> None:
    """Have the bridge ``name`` masquerade and forward ports, or not; ports that are forwarded stay so."""
    if not masquerade and not forwards:
        drop_rules(name)
        return
    rules = [*_chains(name)]
    if masquerade:
        rules += _masquerade(name, f'ip saddr {subnet} oifname != "{name}"')
    if forwards:
        # A pod must answer its neighbour by way of the machine: the neighbour knows it by the machine's address.
        rules += _masquerade(name, f'ip saddr {subnet} oifname "{name}" ct status dnat')
        rules.append(
            f"add rule ip {TABLE} {name}/in fib daddr type local dnat ip to udp dport map @{name}/ports"
        )
    nft.run("\n".join(rules))


def drop_rules(name: str) -> None:
    """Remove all that is there of ``name``; the table goes with its last chain."""
    try:
        ours = TABLE in nft.tables("ip")
    except nft.NftUnavailable:  # then no rule was made with it either
        return
    if not ours:
        return
    nft.run("\n".join((*_chains(name), *_removal(name))))
    if "chain" not in nft.run(f"list table ip {TABLE}"):
        nft.delete_table("ip", TABLE)


def list_forwards(name: str) -> tuple[Forward, ...]:
    """The ports that are forwarded to pods of the bridge, in the kernel's order."""
    found = _ELEMENT.findall(nft.run(f"list map ip {TABLE} {name}/ports"))
    return tuple(Forward(int(port), IPv4Address(address), int(inner)) for port, address, inner in found)


def adopt_forwards(name: str, pods: Mapping[IPv4Address, str]) -> dict[str, Forward]:
    """The forwards of an earlier daemon by the pods' uids; those that lead to no pod are removed."""
    adopted: dict[str, Forward] = {}
    for forward in list_forwards(name):
        uid = pods.get(forward.address)
        if uid is None or uid in adopted:
            remove_forward(name, forward)
        else:
            adopted[uid] = forward
    return adopted


def add_forward(name: str, forward: Forward) -> None:
    """From now on datagrams to that port of any of the machine's addresses go to the pod.

    What the pod sends from its port leaves the machine from that port as well, so that who sees the pod's datagrams
    sees the address by which others reach it.
    """
    nft.run("\n".join(_elements("add", name, forward)))


def remove_forward(name: str, forward: Forward) -> None:
    """Undo :func:`add_forward`; nothing happens when that was done, or somebody has flushed all rules."""
    nft.run("\n".join((*_maps(name), *_elements("add", name, forward), *_elements("delete", name, forward))))


def _elements(verb: str, name: str, forward: Forward) -> Iterator[str]:
    port, inner = forward.port, f"{forward.address} . {forward.pod_port}"
    yield f"{verb} element ip {TABLE} {name}/ports {{ {port} : {inner} }}"
    yield f"{verb} element ip {TABLE} {name}/sources {{ {inner} : {port} }}"


def _maps(name: str) -> Iterator[str]:
    """`add` of what is there changes nothing."""
    yield f"add table ip {TABLE}"
    yield f"add map ip {TABLE} {name}/ports {{ type inet_service : ipv4_addr . inet_service; }}"
    yield f"add map ip {TABLE} {name}/sources {{ type ipv4_addr . inet_service : inet_service; }}"


def _chains(name: str) -> Iterator[str]:
    """All that is needed of a bridge, its chains empty."""
    yield from _maps(name)
    for chain, hook in ((name, "postrouting priority srcnat"), (f"{name}/in", "prerouting priority dstnat")):
        yield f"add chain ip {TABLE} {chain} {{ type nat hook {hook}; policy accept; }}"
        yield f"flush chain ip {TABLE} {chain}"


def _masquerade(name: str, which: str) -> Iterator[str]:
    sources = f"ip saddr . udp sport map @{name}/sources"
    yield f"add rule ip {TABLE} {name} {which} meta l4proto udp masquerade to : {sources}"
    yield f"add rule ip {TABLE} {name} {which} masquerade"


def _removal(name: str) -> Iterator[str]:
    for kind, thing in (
        ("chain", name),
        ("chain", f"{name}/in"),
        ("map", f"{name}/ports"),
        ("map", f"{name}/sources"),
    ):
        yield f"delete {kind} ip {TABLE} {thing}"
