"""The link of one pod: a veth pair between the bridge and the pod's namespace. Blocking: call in a worker
thread.
"""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TypeVar

from machineplane.linux.netns import in_netns
from machineplane.podnet.addresses import gateway_of
from machineplane.podnet.bridge import Bridge, netlink
from machineplane.podnet.errors import PodGone, PodNetworkError
from machineplane.podnet.marks import PodMark, link_name, pod_mac

POD_INTERFACE = "eth0"
T = TypeVar("T")


def netns_path(pid: int) -> Path:
    """The network namespace of process ``pid``."""
    return Path(f"/proc/{pid}/ns/net")


def connect_pod(bridge: Bridge, subnet: IPv4Network, mark: PodMark, pid: int) -> None:
    """Make the pair and set up both ends; on any failure nothing of it is left.

    Raises :class:`PodGone` where ``pid`` has ended, :class:`LinkFailed` for what the kernel refuses.
    """
    try:
        _make_pair(bridge, mark, pid)
        enter_pod(mark.uid, pid, lambda: _set_up_inside(subnet, mark))
    except PodNetworkError:
        disconnect_pod(mark.uid)
        raise


def disconnect_pod(uid: str) -> None:
    """Remove the pod's link; nothing happens when it is gone (with its namespace, as a rule)."""
    with netlink(f"link of pod {uid}") as handle:
        for index in handle.link_lookup(ifname=link_name(uid)):
            handle.link("del", index=index)


def pod_address(uid: str, pid: int) -> IPv4Address | None:
    """The IPv4 address on the pod's ``eth0`` as seen inside; None where it has none. :class:`PodGone` as
    above.
    """
    return enter_pod(uid, pid, lambda: _inside_address(uid))


def enter_pod(uid: str, pid: int, work: Callable[[], T]) -> T:
    """What ``work`` gives in the pod's network namespace. :class:`PodGone` as above."""
    try:
        return in_netns(netns_path(pid), work)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise PodGone(f"pod {uid}: process {pid}, which held its network, has ended") from error


def _make_pair(bridge: Bridge, mark: PodMark, pid: int) -> None:
    name = link_name(mark.uid)
    try:
        namespace = netns_path(pid).open("rb")
    except (FileNotFoundError, ProcessLookupError) as error:
        raise PodGone(f"pod {mark.uid}: process {pid}, which held its network, has ended") from error
    with namespace, netlink(f"link of pod {mark.uid}") as handle:
        handle.link(
            "add",
            ifname=name,
            kind="veth",
            mtu=bridge.mtu,
            peer={
                "ifname": POD_INTERFACE,
                "address": pod_mac(mark.address),
                "mtu": bridge.mtu,
                "net_ns_fd": namespace.fileno(),
            },
        )
        index = handle.link_lookup(ifname=name)[0]
        # The mark comes before the bridge: what is on the bridge without one is known to be unfinished.
        handle.link("set", index=index, ifalias=str(mark))
        handle.link("set", index=index, master=bridge.index, state="up")


def _set_up_inside(subnet: IPv4Network, mark: PodMark) -> None:
    with netlink(f"network of pod {mark.uid}") as handle:
        index = handle.link_lookup(ifname=POD_INTERFACE)[0]
        handle.link("set", index=handle.link_lookup(ifname="lo")[0], state="up")
        handle.addr(
            "add",
            index=index,
            address=str(mark.address),
            prefixlen=subnet.prefixlen,
            broadcast=str(subnet[-1]),
        )
        handle.link("set", index=index, state="up")
        handle.route("add", dst="default", gateway=str(gateway_of(subnet)), oif=index)


def _inside_address(uid: str) -> IPv4Address | None:
    with netlink(f"network of pod {uid}") as handle:
        for index in handle.link_lookup(ifname=POD_INTERFACE):
            for item in handle.get_addr(index=index, family=2):
                return IPv4Address(item.get("address"))
    return None
