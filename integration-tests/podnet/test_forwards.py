"""Ports of the machine that lead to pods, on real namespaces."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from attrs import evolve
from pyroute2 import IPRoute

from machineplane.linux import nft
from machineplane.linux.netns import in_netns
from machineplane.podnet import PodGone, PodNetConfig, PodNetworkError, PortsExhausted, open_pod_network

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("machine")]

Pod = Callable[[], "subprocess.Popen[str]"]
CONFIG = PodNetConfig(bridge="mg-test", subnet=IPv4Network("10.199.0.0/24"), ports=range(21_000, 21_100))
MACHINE, WORLD = "198.51.100.1", "198.51.100.2"
AGENT = 4701
WAIT_S = 5.0
BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


@pytest.fixture
def world(pod: Pod) -> Iterator[int]:
    """A neighbour of the machine, by its process."""
    process = pod()
    with IPRoute() as handle, Path(f"/proc/{process.pid}/ns/net").open() as namespace:
        handle.link("add", ifname="up0", kind="veth", peer={"ifname": "w0", "net_ns_fd": namespace.fileno()})
        _bring_up(handle, "up0", MACHINE)
    in_netns(f"/proc/{process.pid}/ns/net", _be_the_world)
    yield process.pid
    with IPRoute() as handle:
        for index in handle.link_lookup(ifname="up0"):
            handle.link("del", index=index)


def _be_the_world() -> None:
    with IPRoute() as handle:
        _bring_up(handle, "w0", WORLD)


def _bring_up(handle: IPRoute, name: str, address: str) -> None:
    index = handle.link_lookup(ifname=name)[0]
    handle.addr("add", index=index, address=address, prefixlen=24)
    handle.link("set", index=index, state="up")


def udp(pid: int, port: int = 0) -> socket.socket:
    """A datagram socket within the network namespace of ``pid``."""
    made = in_netns(f"/proc/{pid}/ns/net", partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM))
    made.bind(("0.0.0.0", port))
    made.settimeout(WAIT_S)
    return made


def exchange(caller: int, callee: int, port: int, to: str = MACHINE) -> tuple[str, int]:
    """A datagram to the machine's port and the answer to it; from where the pod saw it come."""
    with udp(caller) as out, udp(callee, AGENT) as agent:
        out.sendto(b"hello", (to, port))
        data, source = agent.recvfrom(10)
        assert data == b"hello"
        agent.sendto(b"welcome", source)
        assert out.recvfrom(10) == (b"welcome", (to, port))
        return source


async def test_each_pod_is_reached_by_a_port_of_its_own(pod: Pod, world: int) -> None:
    one, two = pod(), pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        await network.attach("two", two.pid)
        ports = [await network.forward(name, AGENT) for name in ("one", "two")]
        assert len(set(ports)) == 2 and all(port in range(21_000, 21_100) for port in ports)
        assert await network.forward("one", AGENT) == ports[0]
        for process, port in zip((one, two), ports, strict=True):
            assert exchange(world, process.pid, port)[0] == WORLD
        await network.detach("one")
        await network.detach("two")


async def test_who_hears_a_pod_sees_the_port_that_leads_to_it(pod: Pod, world: int) -> None:
    one, two = pod(), pod()
    async with open_pod_network(CONFIG) as network:
        for name, process in (("one", one), ("two", two)):
            await network.attach(name, process.pid)
            port = await network.forward(name, AGENT)
            with udp(world) as outside, udp(process.pid, AGENT) as agent, udp(process.pid) as other:
                for sender, expected in ((agent, {port}), (other, set(range(1, 65536)) - {port})):
                    sender.sendto(b"hello", (WORLD, outside.getsockname()[1]))
                    address, seen = outside.recvfrom(10)[1]
                    assert address == MACHINE and seen in expected
        await network.detach("one")
        await network.detach("two")


@pytest.fixture(params=["0", "1"])
def filtered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether what crosses a bridge is shown to the rules of IP, as it is where other container engines are."""
    before = BRIDGED.read_text() if BRIDGED.exists() else ""
    if not before and request.param == "1":
        pytest.skip("br_netfilter is not loaded")
    if before:
        BRIDGED.write_text(request.param)
    yield
    if before:
        BRIDGED.write_text(before)


@pytest.mark.usefixtures("filtered")
async def test_a_pod_reaches_its_neighbour_by_the_machines_address(pod: Pod, world: int) -> None:
    one, two = pod(), pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        gateway = (await network.attach("two", two.pid)).gateway
        port = await network.forward("two", AGENT)
        assert exchange(one.pid, two.pid, port)[0] == gateway
        assert exchange(one.pid, two.pid, port, to=gateway)[0] == gateway
        await network.detach("one")
        await network.detach("two")


@pytest.mark.usefixtures("filtered")
async def test_two_agents_reach_each_other_by_the_machines_address_both_ways(pod: Pod, world: int) -> None:
    one, two = pod(), pod()
    async with open_pod_network(CONFIG) as network:
        gateway = (await network.attach("one", one.pid)).gateway
        await network.attach("two", two.pid)
        first, second = await network.forward("one", AGENT), await network.forward("two", AGENT)
        with udp(one.pid, AGENT) as a, udp(two.pid, AGENT) as b:
            a.sendto(b"ping", (MACHINE, second))
            assert b.recvfrom(10) == (b"ping", (gateway, first))
            b.sendto(b"pong", (MACHINE, first))
            assert a.recvfrom(10)[0] == b"pong"
        await network.detach("one")
        await network.detach("two")


async def test_a_restart_keeps_ports_and_forgets_those_of_pods_that_are_gone(pod: Pod, world: int) -> None:
    one, two = pod(), pod()
    async with open_pod_network(CONFIG) as network:
        gone = await network.attach("one", one.pid)
        await network.attach("two", two.pid)
        lost, port = await network.forward("one", AGENT), await network.forward("two", AGENT)
    with IPRoute() as handle:
        handle.link("del", index=handle.link_lookup(ifname=gone.interface)[0])
    elsewhere = evolve(CONFIG, ports=range(22_000, 22_100))  # an option that changed moves no pod that runs
    async with open_pod_network(elsewhere) as network:
        await network.recover("two", two.pid)
        assert exchange(world, two.pid, port)[0] == WORLD
        assert await network.forward("two", AGENT) == port
        assert f"{lost} : " not in nft.run("list ruleset")
        with pytest.raises(PodGone, match="pod one is not attached"):
            await network.forward("one", AGENT)
        await network.detach("two")
    assert nft.tables("ip") == frozenset()


async def test_a_detached_pods_port_leads_nowhere(pod: Pod, world: int) -> None:
    one = pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        port = await network.forward("one", AGENT)
        await network.detach("one")
        assert f"{port} : " not in nft.run("list ruleset") and f" : {port}" not in nft.run("list ruleset")
        with udp(world) as out:
            out.connect((MACHINE, port))
            out.send(b"hello")
            with pytest.raises(ConnectionRefusedError):  # by the machine itself
                out.recv(10)


async def test_another_port_of_the_pod_takes_over(pod: Pod, world: int) -> None:
    one = pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        port = await network.forward("one", 9)
        assert await network.forward("one", AGENT) == port
        assert exchange(world, one.pid, port)[0] == WORLD
        await network.detach("one")


async def test_no_port_left_is_said_and_the_pod_keeps_its_network(pod: Pod, world: int) -> None:
    one, two = pod(), pod()
    async with open_pod_network(evolve(CONFIG, ports=range(21_000, 21_002))) as network:
        await network.attach("one", one.pid)
        await network.attach("two", two.pid)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
            program.bind((MACHINE, 21_000))  # what a program of the machine has is not taken from it
            assert await network.forward("one", AGENT) == 21_001
            with pytest.raises(PortsExhausted, match="no free UDP port from 21000 to 21001: 1 pods"):
                await network.forward("two", AGENT)
        assert exchange(one.pid, two.pid, AGENT, to="10.199.0.3")[0] == "10.199.0.2"
        assert await network.forward("two", AGENT) == 21_000
        await network.detach("one")
        await network.detach("two")


async def test_forwarding_without_masquerading_and_neither(pod: Pod, world: int) -> None:
    one, two = pod(), pod()
    async with open_pod_network(evolve(CONFIG, masquerade=False)) as network:
        await network.attach("one", one.pid)
        await network.attach("two", two.pid)
        assert exchange(two.pid, one.pid, await network.forward("one", AGENT))[0] == "10.199.0.1"
        await network.detach("one")
        await network.detach("two")
    async with open_pod_network(evolve(CONFIG, masquerade=False, ports=None)) as network:
        await network.attach("one", one.pid)
        assert nft.tables("ip") == frozenset()
        with pytest.raises(PodNetworkError, match="opened without ports"):
            await network.forward("one", AGENT)
        await network.detach("one")


async def test_rules_that_somebody_flushed_do_not_keep_a_pod_from_ending(pod: Pod, world: int) -> None:
    one = pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        port = await network.forward("one", AGENT)
        nft.run("flush ruleset")
        await network.detach("one")
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        assert await network.forward("one", AGENT) == port
        await network.detach("one")
