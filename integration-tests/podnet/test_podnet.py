"""Pods' network on real namespaces."""

import subprocess
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import trio
from pyroute2 import IPRoute

from machineplane.linux import nft
from machineplane.linux.netns import in_netns
from machineplane.podnet import (
    BridgeConflict,
    PodGone,
    PodNetConfig,
    SubnetExhausted,
    open_pod_network,
)

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("machine")]

Pod = Callable[[], "subprocess.Popen[str]"]
CONFIG = PodNetConfig(bridge="mg-test", subnet=IPv4Network("10.199.0.0/24"))
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


def forwarding() -> bool:
    return FORWARD.read_text() == "1\n"


def set_forwarding(value: str) -> None:
    FORWARD.write_text(value)


def receive_from(pid: int, sender: int, address: str) -> str:
    """Send a datagram from the namespace of ``sender`` to ``address`` in that of ``pid``; what came, and from
    where.
    """
    import socket

    receiver = in_netns(f"/proc/{pid}/ns/net", partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM))
    with receiver:
        receiver.bind(("0.0.0.0", 5000))
        receiver.settimeout(3)
        with in_netns(
            f"/proc/{sender}/ns/net", partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        ) as out:
            out.sendto(b"hello", (address, 5000))
        data, source = receiver.recvfrom(10)
    return f"{data.decode()} {source[0]}"


async def test_pods_reach_each_other_and_everything_goes_at_the_end(
    pod: Pod, links: Callable[[], set[str]]
) -> None:
    before = links()
    one, two = pod(), pod()
    async with open_pod_network(CONFIG) as network:
        first = await network.attach("one", one.pid)
        second = await network.attach("two", two.pid)
        assert (first.ip, second.ip, first.gateway, first.prefix) == (
            "10.199.0.2",
            "10.199.0.3",
            "10.199.0.1",
            24,
        )
        assert links() == before | {"mg-test", first.interface, second.interface}
        assert receive_from(two.pid, one.pid, second.ip) == "hello 10.199.0.2"
        assert in_netns(f"/proc/{one.pid}/ns/net", _default_route) == "10.199.0.1"
        assert forwarding()
        await network.detach("one")
        await network.detach("one")
        await network.detach("two")
        assert links() == before | {"mg-test"}
    assert links() == before
    assert nft.tables("ip") == frozenset()
    assert not forwarding()


def _default_route() -> str:
    with IPRoute() as handle:
        return str(handle.get_default_routes(family=2)[0].get("gateway"))


async def test_a_pod_reaches_the_world_under_the_machines_address(pod: Pod) -> None:
    world, inner = pod(), pod()
    make_uplink(world.pid)
    in_netns(f"/proc/{world.pid}/ns/net", _be_the_world)
    async with open_pod_network(CONFIG) as network:
        await network.attach("inner", inner.pid)
        assert receive_from(world.pid, inner.pid, "198.51.100.2") == "hello 198.51.100.1"
        assert in_netns(f"/proc/{inner.pid}/ns/net", _mtu) == 1400
        await network.detach("inner")
    remove("up0")


def make_uplink(world: int) -> None:
    with IPRoute() as handle, Path(f"/proc/{world}/ns/net").open() as namespace:
        handle.link(
            "add", ifname="up0", kind="veth", mtu=1400, peer={"ifname": "w0", "net_ns_fd": namespace.fileno()}
        )
        index = handle.link_lookup(ifname="up0")[0]
        handle.addr("add", index=index, address="198.51.100.1", prefixlen=24)
        handle.link("set", index=index, state="up")
        handle.route("add", dst="default", gateway="198.51.100.2", oif=index)


def remove(link: str) -> None:
    with IPRoute() as handle:
        handle.link("del", index=_index(link))


def _be_the_world() -> None:
    with IPRoute() as handle:
        index = handle.link_lookup(ifname="w0")[0]
        handle.addr("add", index=index, address="198.51.100.2", prefixlen=24)
        handle.link("set", index=index, state="up")


def _mtu() -> int:
    with IPRoute() as handle:
        return int(handle.link("get", index=handle.link_lookup(ifname="eth0")[0])[0].get("mtu"))


async def test_a_restart_keeps_pods_and_their_addresses(pod: Pod, links: Callable[[], set[str]]) -> None:
    before = links()
    one, two = pod(), pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        second = await network.attach("two", two.pid)
        await network.detach("one")
    assert links() == before | {"mg-test", second.interface}
    assert "masquerade" in nft.run("list ruleset")

    async with open_pod_network(CONFIG) as network:
        assert {uid: str(address) for uid, address in network.held().items()} == {"two": "10.199.0.3"}
        index = _index(second.interface)
        assert await network.recover("two", two.pid) == second
        assert _index(second.interface) == index  # not wired anew
        assert (await network.attach("one", one.pid)).ip == "10.199.0.4"
        assert nft.run("list ruleset").count("masquerade") == 2
        await network.detach("one")
        await network.detach("two")
    assert links() == before
    assert not forwarding()


def _index(link: str) -> int:
    with IPRoute() as handle:
        return int(handle.link_lookup(ifname=link)[0])


async def test_a_pod_that_lost_its_link_is_wired_anew_under_its_address(pod: Pod) -> None:
    one = pod()
    async with open_pod_network(CONFIG) as network:
        first = await network.attach("one", one.pid)
        with IPRoute() as handle:
            handle.link("del", index=_index(first.interface))
        assert await network.recover("one", one.pid) == first
        assert _index(first.interface) > 0
        await network.detach("one")


async def test_a_pod_that_is_gone_frees_its_address(pod: Pod, links: Callable[[], set[str]]) -> None:
    one = pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        one.kill()
        one.wait()
        with pytest.raises(PodGone, match="pod one: process"):
            await network.recover("one", one.pid)
        assert network.held() == {}
        with pytest.raises(PodGone):
            await network.attach("two", one.pid)
        assert network.held() == {}
    assert "mg-test" not in links()


async def test_a_full_subnet_refuses_and_goes_on(pod: Pod) -> None:
    config = PodNetConfig(bridge="mg-test", subnet=IPv4Network("10.199.0.0/30"))
    one, two = pod(), pod()
    async with open_pod_network(config) as network:
        await network.attach("one", one.pid)
        with pytest.raises(
            SubnetExhausted, match=r"subnet 10\.199\.0\.0/30 has no free address: all 1 are held"
        ):
            await network.attach("two", two.pid)
        await network.detach("one")
        assert (await network.attach("two", two.pid)).ip == "10.199.0.2"
        await network.detach("two")


async def test_a_link_that_is_not_ours_is_left_alone(links: Callable[[], set[str]]) -> None:
    with IPRoute() as handle:
        handle.link("add", ifname="mg-test", kind="veth")
    before = links()
    with pytest.raises(BridgeConflict, match=r"link mg-test \(veth\) exists and is not a pod bridge"):
        async with open_pod_network(CONFIG):
            raise AssertionError("opened")
    assert links() == before
    assert nft.tables("ip") == frozenset()
    remove("mg-test")


async def test_another_subnet_is_refused_while_pods_have_the_earlier_one(pod: Pod) -> None:
    one = pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
    other = PodNetConfig(bridge="mg-test", subnet=IPv4Network("10.198.0.0/24"))
    with pytest.raises(BridgeConflict, match=r"10\.199\.0\.2, which is not of subnet 10\.198\.0\.0/24"):
        async with open_pod_network(other):
            raise AssertionError("opened")
    async with open_pod_network(CONFIG) as network:
        assert await network.recover("one", one.pid)
        await network.detach("one")


async def test_forwarding_goes_off_with_the_last_of_two_bridges() -> None:
    second = PodNetConfig(bridge="mg-two", subnet=IPv4Network("10.198.0.0/24"))
    async with open_pod_network(second):
        async with open_pod_network(CONFIG):
            assert nft.run("list ruleset").count("masquerade") == 4
        assert forwarding()
        assert nft.run("list ruleset").count("masquerade") == 2
    assert not forwarding()
    assert nft.tables("ip") == frozenset()


async def test_forwarding_that_was_on_stays_on() -> None:
    set_forwarding("1")
    try:
        async with open_pod_network(CONFIG):
            pass
        assert forwarding()
    finally:
        set_forwarding("0")


async def test_many_pods_at_once(pod: Pod) -> None:
    pods = [pod() for _ in range(6)]
    async with open_pod_network(CONFIG) as network:
        async with trio.open_nursery() as nursery:
            for number, process in enumerate(pods):
                nursery.start_soon(network.attach, f"pod-{number}", process.pid)
        assert len(set(network.held().values())) == 6
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(network.detach, f"pod-{number}")
