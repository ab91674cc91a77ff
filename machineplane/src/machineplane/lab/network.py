"""The network of a lab: a hub namespace with a bridge, a link to the computer and one to each machine.
Blocking.

The bridge has a namespace of its own so that no packet filter of the computer (a container engine's, say)
comes between machines; the computer gets one interface and one address.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from machineplane.lab.errors import LabError
from machineplane.lab.plan import host_address
from machineplane.linux import libc, nft
from machineplane.linux.netns import in_netns

NETNS_DIR = Path("/run/netns")
HUB = "hub"
BRIDGE = "br0"
TABLE = "magik-lab"
THREAD_NETNS = "/proc/thread-self/ns/net"


@contextmanager
def netlink(what: str) -> Iterator[Any]:
    """The kernel's interfaces of this thread's namespace; what fails is a :class:`LabError` about ``what``."""
    # Not at the top: it takes half of the time in which `lab exec` starts its command.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as handle:
            yield handle
    except NetlinkError as error:
        raise LabError(f"{what}: {error.args[1]}") from error


def taken_networks() -> list[IPv4Network]:
    """The networks that this computer has addresses in or routes to."""
    with netlink("routes of this computer") as handle:
        routes = [(route.get("dst"), route["dst_len"]) for route in handle.get_routes(family=2)]
        own = [(item.get("address"), item["prefixlen"]) for item in handle.get_addr(family=2)]
    return [IPv4Network((address, length), strict=False) for address, length in routes + own if address]


def refuse_taken_namespace(name: str) -> None:
    """:class:`LabError` where a namespace of that name is there."""
    if (path := NETNS_DIR / name).exists():
        raise LabError(
            f"{path} is there and is not of this lab: choose another --name, or remove it if nothing uses it"
        )


def refuse_taken_link(name: str) -> None:
    """:class:`LabError` where this computer has an interface of that name."""
    with netlink("interfaces of this computer") as handle:
        if handle.link_lookup(ifname=name):
            raise LabError(f"there is an interface {name} that is not of this lab: choose another --name")


def name_namespace(name: str, source: str) -> Path:
    """Give the network namespace at ``source`` a name as ``ip netns`` does, but no mount on the directory
    itself.
    """
    path = NETNS_DIR / name
    refuse_taken_namespace(name)
    path.touch(mode=0o444)
    libc.mount(source, str(path), flags=libc.MS_BIND)
    return path


def forget_namespace(name: str) -> None:
    """Take the name away; the namespace ends with its last process. Nothing happens when there is no such
    name.
    """
    path = NETNS_DIR / name
    with suppress(OSError):  # not mounted, in a lab that was half made
        libc.umount(str(path), libc.MNT_DETACH)
    path.unlink(missing_ok=True)


def make_hub(name: str, link: str, subnet: IPv4Network) -> None:
    """Make the hub called ``name`` with its bridge, and the computer's interface ``link`` on it."""
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def work() -> None:
        libc.unshare(libc.CLONE_NEWNET)
        name_namespace(name, THREAD_NETNS)
        with netlink(f"hub {name}") as handle:
            handle.link("add", ifname=BRIDGE, kind="bridge")
            bridge = handle.link_lookup(ifname=BRIDGE)[0]
            handle.link("set", index=bridge, state="up")
            _add_port(handle, bridge, "host", {"ifname": link, "net_ns_fd": own})

    try:
        in_netns("/proc/self/ns/net", work)
    finally:
        os.close(own)
    set_up(link, host_address(subnet), subnet, gateway=None)


def remove_host_link(link: str) -> None:
    """Remove the computer's interface; nothing happens when it is gone."""
    with netlink(f"interface {link}") as handle:
        for index in handle.link_lookup(ifname=link):
            handle.link("del", index=index)


def _add_port(handle: Any, bridge: int, name: str, peer: dict[str, Any]) -> None:
    handle.link("add", ifname=name, kind="veth", peer=peer)
    handle.link("set", index=handle.link_lookup(ifname=name)[0], master=bridge, state="up")


def set_up(link: str, address: IPv4Address, subnet: IPv4Network, gateway: IPv4Address | None) -> None:
    """Give an interface of this thread's namespace its address; with a gateway, make it the way to all else."""
    with netlink(f"interface {link}") as handle:
        index = handle.link_lookup(ifname=link)[0]
        handle.addr(
            "add", index=index, address=str(address), prefixlen=subnet.prefixlen, broadcast=str(subnet[-1])
        )
        handle.link("set", index=index, state="up")
        if gateway is not None:
            handle.link("set", index=handle.link_lookup(ifname="lo")[0], state="up")
            handle.route("add", dst="default", gateway=str(gateway), oif=index)


def plug(hub: str, machine: str, netns: Path, address: IPv4Address, subnet: IPv4Network) -> None:
    """Connect the machine whose network namespace is ``netns`` to the hub as ``eth0``, and set it up."""
    with netns.open("rb") as namespace:

        def work() -> None:
            with netlink(f"link of machine {machine}") as handle:
                bridge = handle.link_lookup(ifname=BRIDGE)[0]
                _add_port(handle, bridge, machine, {"ifname": "eth0", "net_ns_fd": namespace.fileno()})

        in_hub(hub, work)
    in_netns(netns, lambda: set_up("eth0", address, subnet, host_address(subnet)))


def unplug(hub: str, machine: str) -> None:
    """Remove the machine's link from the hub, if both are there."""

    def work() -> None:
        with netlink(f"link of machine {machine}") as handle:
            for index in handle.link_lookup(ifname=machine):
                handle.link("del", index=index)

    with suppress(LabError):  # no hub, no link
        in_hub(hub, work)


def in_hub(hub: str, work: Callable[[], None]) -> None:
    """Do ``work`` inside the hub; :class:`LabError` where it is gone."""
    path = NETNS_DIR / hub
    if not path.exists():
        raise LabError(f"{path}, the lab's network, is gone: take the lab down and up again")
    in_netns(path, work)


def set_deaf(netns: Path, addresses: tuple[IPv4Address, ...]) -> None:
    """Let the namespace lose, without a word, all that comes from ``addresses``; from none of them: hear all
    again.

    The hook is before routing, so that what comes for pods behind the machine is lost as well.
    """

    def work() -> None:
        nft.delete_table("inet", TABLE)
        if addresses:
            nft.run(_deafness(addresses))

    in_netns(netns, work)


def _deafness(addresses: tuple[IPv4Address, ...]) -> str:
    return "\n".join(
        (
            f"add table inet {TABLE}",
            f"add chain inet {TABLE} lost {{ type filter hook prerouting priority raw; policy accept; }}",
            f"add rule inet {TABLE} lost ip saddr {{ {', '.join(map(str, addresses))} }} drop",
        )
    )
