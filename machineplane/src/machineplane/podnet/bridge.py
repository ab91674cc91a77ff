"""The bridge of a machine's pods, with its rules and the machine's IP forwarding. Blocking: call in a worker thread.

Each function opens a netlink handle of its own: a pyroute2 handle that is used from several threads keeps one
event loop and socket open for each of them, and opening one takes 0.8 ms.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from attrs import frozen
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from machineplane.podnet.addresses import gateway_of
from machineplane.podnet.errors import BridgeConflict, LinkFailed, PodNetworkError
from machineplane.podnet.marks import BridgeMark, PodMark, bridge_mac
from machineplane.podnet.ports import Forward
from machineplane.podnet.rules import adopt_forwards, drop_rules, set_rules

FALLBACK_MTU = 1500
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


@frozen
class Bridge:
    """A pod bridge that is up."""

    name: str
    index: int
    mtu: int
    pods: tuple[PodMark, ...]  # found on it
    forwards: Mapping[str, Forward]  # found, by the pods' uids


@contextmanager
def netlink(what: str) -> Iterator[Any]:
    """A route netlink handle of the calling thread; its refusals become :class:`LinkFailed` about ``what``."""
    try:
        with IPRoute() as handle:
            yield handle
    except NetlinkError as error:
        hint = "; this needs CAP_NET_ADMIN (run as root)" if error.code == 1 else ""
        raise LinkFailed(f"{what}: {error.args[1]}{hint}") from error


def raise_bridge(
    name: str, subnet: IPv4Network, mtu: int | None, *, masquerade: bool, forwards: bool
) -> Bridge:
    """Make the bridge, or adopt the one of an earlier daemon; with masquerading and forwarded ports as asked.

    Raises :class:`BridgeConflict` for a link that is not ours or whose pods are of another subnet.
    """
    with netlink(f"pod bridge {name}") as handle:
        link = _find(handle, name)
        mark = _own_mark(link, name) if link else None
        if link is None or mark is None:
            index, mark = _make(handle, link, name)
        else:
            index = link["index"]
        pods = _pods(handle, index, subnet, name)
        _set_address(handle, index, subnet)
        mtu = mtu or _egress_mtu(handle, index)
        handle.link("set", index=index, mtu=mtu, state="up")
    _write_forwarding(True)
    set_rules(name, subnet, masquerade=masquerade, forwards=forwards)
    found = adopt_forwards(name, {mark.address: mark.uid for mark in pods}) if forwards else {}
    return Bridge(name, index, mtu, pods, found)


def lower_bridge(name: str) -> bool:
    """Remove the bridge with its rules, and forwarding if we turned it on; False (and no change) while pods
    use it.
    """
    with netlink(f"pod bridge {name}") as handle:
        link = _find(handle, name)
        mark = BridgeMark.parse(link.get("ifalias")) if link else None
        if link is None or mark is None:
            return True
        if _ports(handle, link["index"]):
            return False
        handle.link("del", index=link["index"])
        last = not _bridges(handle)
    drop_rules(name)
    if last and not mark.forwarding_was:
        _write_forwarding(False)
    return True


def _find(handle: Any, name: str) -> Any:
    found = handle.link_lookup(ifname=name)
    return handle.link("get", index=found[0])[0] if found else None


def _own_mark(link: Any, name: str) -> BridgeMark | None:
    """The mark of our bridge; None for one made by us a moment before its daemon was killed (no mark yet,
    down).
    """
    kind = (link.get("linkinfo") or {}).get("kind")
    mark = BridgeMark.parse(link.get("ifalias"))
    unfinished = (
        link.get("ifalias") is None and link["state"] == "down" and link.get("address") == bridge_mac(name)
    )
    if kind != "bridge" or (mark is None and not unfinished):
        raise BridgeConflict(
            f"link {name} ({kind or 'device'}) exists and is not a pod bridge of Magik: "
            "choose another bridge name, or remove that link"
        )
    return mark


def _make(handle: Any, link: Any, name: str) -> tuple[int, BridgeMark]:
    siblings = _bridges(handle)
    was = siblings[0].forwarding_was if siblings else _read_forwarding()
    mark = BridgeMark(was)
    if link is None:
        handle.link("add", ifname=name, kind="bridge", address=bridge_mac(name))
    index = handle.link_lookup(ifname=name)[0]
    handle.link("set", index=index, ifalias=str(mark))
    return index, mark


def _bridges(handle: Any) -> list[BridgeMark]:
    marks = (BridgeMark.parse(link.get("ifalias")) for link in handle.get_links())
    return [mark for mark in marks if mark is not None]


def _ports(handle: Any, index: int) -> list[Any]:
    return [link for link in handle.get_links() if link.get("master") == index]


def _pods(handle: Any, index: int, subnet: IPv4Network, name: str) -> tuple[PodMark, ...]:
    """The marks of the bridge's ports; a port without one was never finished, and goes."""
    marks = []
    for port in _ports(handle, index):
        mark = PodMark.parse(port.get("ifalias"))
        if mark is None:
            handle.link("del", index=port["index"])
        elif mark.address not in subnet:
            raise BridgeConflict(
                f"pod {mark.uid} on bridge {name} has {mark.address}, which is not of subnet {subnet}: "
                "start with the earlier --pod-subnet, or end that pod first"
            )
        else:
            marks.append(mark)
    return tuple(marks)


def _set_address(handle: Any, index: int, subnet: IPv4Network) -> None:
    """Leave the gateway's address alone on the bridge: others are of an earlier subnet without pods."""
    wanted = (str(gateway_of(subnet)), subnet.prefixlen)
    present = {(item.get("address"), item["prefixlen"]) for item in handle.get_addr(index=index, family=2)}
    for address, prefix in present - {wanted}:
        handle.addr("del", index=index, address=address, prefixlen=prefix)
    if wanted not in present:
        handle.addr("add", index=index, address=wanted[0], prefixlen=wanted[1], broadcast=str(subnet[-1]))


def _egress_mtu(handle: Any, own: int) -> int:
    """The MTU of the link of the default route: more would need path discovery for each connection of a pod."""
    for route in handle.get_default_routes(family=2):
        index = route.get("oif")
        if index and index != own:
            return int(handle.link("get", index=index)[0].get("mtu"))
    return FALLBACK_MTU


def _read_forwarding() -> bool:
    return _FORWARD.read_text().strip() == "1"


def _write_forwarding(on: bool) -> None:
    try:
        if _read_forwarding() != on:
            _FORWARD.write_text("1\n" if on else "0\n")
    except OSError as error:
        raise PodNetworkError(
            f"cannot set {_FORWARD} to {int(on)} ({error.strerror}): pods need IP forwarding; "
            "run as root with a writable /proc/sys"
        ) from error
