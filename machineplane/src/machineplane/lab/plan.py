"""Names, addresses and groups of a lab: pure functions."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network

from machineplane.lab.errors import LabError, NoSuchMachine

# 99 keeps interface names short and leaves room in a /24; what one computer bears is less.
MACHINES_LIMIT = 99
MESH_PORT = 4001
API_PORT = 6443

_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
_FIRST_MACHINE = 10  # m0 is .10, the computer itself is .1
_SHORT = 8
# In order of preference: high in 10/8, where few networks are, then the other private ranges (RFC 1918).
_RANGES = (IPv4Network("10.202.0.0/16"), IPv4Network("172.31.0.0/16"), IPv4Network("192.168.0.0/16"))
# Pods are behind their machine's address, so these need only differ from each other and from the lab's own.
_POD_RANGE = IPv4Network("10.201.0.0/16")
# Networks behind routers: seen by their router and machine alone.
_INSIDE_RANGE = IPv4Network("10.200.0.0/16")

CONE = "cone"  # one port outside for all destinations: others can find it out
SYMMETRIC = "symmetric"  # another port for each destination
NATS = (CONE, SYMMETRIC)


def check_name(name: str) -> str:
    """``name`` if it serves as a lab's, else :class:`LabError`."""
    if not _NAME.fullmatch(name):
        raise LabError(
            f"lab name {name!r} is not one: a letter, then letters, digits and '-', at most 20, lower case"
        )
    return name


def check_count(machines: int) -> int:
    """``machines`` if a lab can have so many, else :class:`LabError`."""
    if not 1 <= machines <= MACHINES_LIMIT:
        raise LabError(f"a lab has 1 to {MACHINES_LIMIT} machines, not {machines}")
    return machines


def host_link(lab: str) -> str:
    """The computer's own interface into the lab, at most 11 characters and different for each lab name."""
    if len(lab) <= _SHORT:
        return f"ml-{lab}"
    return f"ml-{lab[:3]}{hashlib.sha256(lab.encode()).hexdigest()[: _SHORT - 3]}"


def netns_name(lab: str, machine: str) -> str:
    """The name of a machine's network namespace, as in ``ip netns``."""
    return f"{lab}-{machine}"


def cgroup_parent(lab: str, machine: str) -> str:
    """The control group below which a machine's pods are: of its own, so that it can be removed with them."""
    return f"magik-{lab}-{machine}"


def machine_names(count: int) -> tuple[str, ...]:
    """``m0``, ``m1``, …"""
    return tuple(f"m{index}" for index in range(count))


def host_address(subnet: IPv4Network) -> IPv4Address:
    """The computer's own address in the lab."""
    return subnet.network_address + 1


def machine_address(subnet: IPv4Network, index: int) -> IPv4Address:
    """The address of machine ``m<index>``."""
    return subnet.network_address + _FIRST_MACHINE + index


def pod_subnet(index: int) -> IPv4Network:
    """The subnet of the pods of machine ``m<index>``."""
    return IPv4Network((int(_POD_RANGE.network_address) + index * 256, 24))


def inside_subnet(index: int) -> IPv4Network:
    """The network between machine ``m<index>`` and its router, where it has one."""
    return IPv4Network((int(_INSIDE_RANGE.network_address) + index * 256, 24))


def first_inside(inside: IPv4Network) -> IPv4Address:
    """The router's address there."""
    return inside.network_address + 1


def own_inside(inside: IPv4Network) -> IPv4Address:
    """The machine's."""
    return inside.network_address + 2


def parse_nats(cones: str, symmetric: str, machines: Sequence[str]) -> dict[str, str]:
    """``("m2", "m3,m4")`` → which machines are behind a router, and of which kind.

    Raises :class:`NoSuchMachine` for a name that the lab will lack, and :class:`LabError` for one named twice, or when
    no machine is left that the others can join by.
    """
    found: dict[str, str] = {}
    for kind, words in ((CONE, cones), (SYMMETRIC, symmetric)):
        for name in filter(None, words.split(",")):
            if check_machine(name, machines) in found:
                raise LabError(f"machine {name} is named twice: it is behind one router")
            found[name] = kind
    if machines and machines[0] in found:
        raise LabError(f"{machines[0]} is the machine that the others join by: put others behind NAT")
    return found


def free_subnet(taken: Iterable[IPv4Network]) -> IPv4Network:
    """The first /24 of the ranges above that overlaps nothing in ``taken`` (a default route does not count)."""
    real = [network for network in taken if network.prefixlen > 0]
    for wide in _RANGES:
        for candidate in wide.subnets(new_prefix=24):
            if not any(candidate.overlaps(network) for network in real):
                return candidate
    raise LabError(
        "no private /24 is free for a lab: every one is in this computer's routes; take a lab down"
    )


def parse_groups(words: Sequence[str], machines: Sequence[str]) -> tuple[frozenset[str], ...]:
    """``("m0,m1", "m2")`` → the groups of a partition. One group alone is parted from all the others.

    Raises :class:`NoSuchMachine` for a name that the lab lacks and :class:`LabError` for one named twice.
    """
    groups: list[frozenset[str]] = []
    seen: set[str] = set()
    for word in words:
        names = [check_machine(name, machines) for name in word.split(",") if name]
        for name in names:
            if name in seen:
                raise LabError(f"machine {name} is named twice: a machine is on one side only")
            seen.add(name)
        groups.append(frozenset(names))
    if len(groups) == 1:
        groups.append(frozenset(machines) - groups[0])
    if not all(groups) or not groups:
        raise LabError("a partition has two sides with a machine each, such as `m0,m1 m2`")
    return tuple(groups)


def check_machine(name: str, machines: Sequence[str]) -> str:
    """``name`` if it is one of ``machines``."""
    if name not in machines:
        raise NoSuchMachine(f"there is no machine {name} in this lab: it has {', '.join(machines)}")
    return name


def cut_off_from(machine: str, groups: Iterable[frozenset[str]]) -> tuple[str, ...]:
    """The machines that ``machine`` must not hear, in order; one that is in no group hears and is heard by
    all.
    """
    groups = tuple(groups)
    if not any(machine in group for group in groups):
        return ()
    return tuple(sorted(name for group in groups if machine not in group for name in group))
