"""TCP to Services' addresses within a pod, on real namespaces: the machine's rule, and the agent behind it."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import trio

from machineplane.linux import nft
from machineplane.linux.netns import in_netns
from machineplane.podnet import PodGone, PodNetConfig, PodNetworkError, open_pod_network

sys.path.insert(0, str(Path(__file__).parents[2] / "workplane/tests/traffic"))

from traffic_support import Machine, read_all, saying, serving
from traffic_support import pod as agent_of

from workplane.redirect import original_destination

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("machine")]

Pod = Callable[[], "subprocess.Popen[str]"]
CONFIG = PodNetConfig(bridge="mg-test", subnet=IPv4Network("10.199.0.0/24"))
AGENT = 4702
WAIT_S = 5.0
SERVICES = (("127.64.0.0", 8080), ("127.77.1.2", 8080), ("127.127.255.255", 443))
OTHERS = ("127.0.0.1", "127.63.255.255", "127.128.0.1", "10.199.0.2")


def inside(pid: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket within the network namespace of ``pid``."""
    made = in_netns(f"/proc/{pid}/ns/net", partial(socket.socket, socket.AF_INET, kind))
    made.settimeout(WAIT_S)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


@contextmanager
def listening(pid: int, address: str, port: int) -> Iterator[socket.socket]:
    with inside(pid) as made:
        made.bind((address, port))
        made.listen()
        yield made


def taken(agent: socket.socket) -> tuple[tuple[str, int] | None, socket.socket]:
    """The next connection that the agent has, and where its client meant to go."""
    accepted, _ = agent.accept()
    with trio.socket.from_stdlib_socket(accepted.dup()) as copy:
        meant = original_destination(trio.SocketStream(copy))
    accepted.settimeout(WAIT_S)  # the copy has made both non-blocking
    return meant, accepted


def ruleset(pid: int) -> str:
    return in_netns(f"/proc/{pid}/ns/net", partial(nft.run, "list ruleset"))


async def test_an_app_at_all_addresses_and_services_share_a_port(pod: Pod) -> None:
    one = pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        await network.redirect("one", one.pid, (AGENT,))
        with listening(one.pid, "0.0.0.0", 8080) as app, listening(one.pid, "0.0.0.0", AGENT) as agent:
            for place in SERVICES:
                with inside(one.pid) as client:
                    client.connect(place)
                    meant, accepted = taken(agent)
                    assert meant == place
                    with accepted:
                        accepted.sendall(b"hello")
                        assert client.recv(10) == b"hello" and client.getpeername() == place
            for address in OTHERS:
                with inside(one.pid) as client:
                    client.connect((address, 8080))
                    accepted, _ = app.accept()
                    with accepted:
                        assert accepted.getsockname() == (address, 8080)
        await network.detach("one")


async def test_clients_of_one_port_reach_each_its_service(pod: Pod) -> None:
    one = pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        await network.redirect("one", one.pid, (AGENT,))
        with listening(one.pid, "0.0.0.0", AGENT) as agent, ExitStack() as stack:
            for place in SERVICES:
                client = stack.enter_context(inside(one.pid))
                client.bind(("127.0.0.1", 30_000))
                client.connect(place)
                meant, accepted = taken(agent)
                stack.enter_context(accepted)
                assert meant == place
                assert accepted.getpeername() == ("127.0.0.1", 30_000)  # none was given another
        await network.detach("one")


async def test_a_port_that_the_pod_has_is_passed_over(pod: Pod) -> None:
    one = pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        with listening(one.pid, "0.0.0.0", AGENT) as app:
            with inside(one.pid) as client:
                client.connect(("127.0.0.1", AGENT))
                app.accept()[0].close()
            assert await network.redirect("one", one.pid, (AGENT, 20_001)) == 20_001
            with listening(one.pid, "0.0.0.0", 20_001) as agent, inside(one.pid) as client:
                client.connect((SERVICES[1][0], AGENT))
                meant, accepted = taken(agent)
                accepted.close()
                assert meant == (SERVICES[1][0], AGENT)
            with pytest.raises(PodNetworkError, match="listens itself at all ports"):
                await network.redirect("one", one.pid, (AGENT,))
            assert "dnat" not in ruleset(one.pid)
        assert await network.redirect("one", one.pid, (AGENT, 20_001)) == AGENT
        assert ruleset(one.pid).count("dnat to :4702") == 1
        await network.detach("one")


async def test_udp_is_left_alone(pod: Pod) -> None:
    one = pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        await network.redirect("one", one.pid, (AGENT,))
        with inside(one.pid, socket.SOCK_DGRAM) as service, inside(one.pid, socket.SOCK_DGRAM) as client:
            service.bind(SERVICES[1])
            client.sendto(b"hello", SERVICES[1])
            assert service.recv(10) == b"hello"
        await network.detach("one")


async def test_the_rule_is_made_once_and_other_tables_are_left_alone(pod: Pod) -> None:
    one = pod()
    own = "add table ip own\nadd chain ip own output { type nat hook output priority -100; }"
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        in_netns(f"/proc/{one.pid}/ns/net", partial(nft.run, own))
        await network.redirect("one", one.pid, (AGENT,))
        before = ruleset(one.pid)
        assert "table ip own" in before and before.count("dnat to :4702") == 1
        with inside(one.pid) as client:
            with listening(one.pid, "0.0.0.0", AGENT) as agent:
                client.connect(SERVICES[0])
                _, accepted = taken(agent)
            assert await network.redirect("one", one.pid, (AGENT,)) == AGENT  # no agent runs
            assert ruleset(one.pid) == before
            with accepted:  # what is open goes on
                client.sendall(b"hello")
                assert accepted.recv(10) == b"hello"
        assert "dnat" not in nft.run("list ruleset")  # of the machine
        await network.detach("one")


async def test_a_later_daemon_finds_the_rule_or_makes_it(pod: Pod) -> None:
    one, two = pod(), pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        await network.redirect("one", one.pid, (AGENT,))
        await network.attach("two", two.pid)
    async with open_pod_network(CONFIG) as network:
        await network.recover("one", one.pid)
        await network.recover("two", two.pid)
        assert "dnat" not in ruleset(two.pid)  # its agent, which runs, was not told
        await network.redirect("two", two.pid, (AGENT,))
        for process in (one, two):
            with listening(process.pid, "0.0.0.0", AGENT) as agent, inside(process.pid) as client:
                client.connect(SERVICES[1])
                meant, accepted = taken(agent)
                accepted.close()
                assert meant == SERVICES[1]
        await network.detach("one")
        await network.detach("two")


async def test_what_is_refused_leaves_nothing_redirected(pod: Pod) -> None:
    one = pod()
    other = (
        "add table ip magik-agent\nadd chain ip magik-agent output { type filter hook output priority 0; }"
    )
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        in_netns(f"/proc/{one.pid}/ns/net", partial(nft.run, other))
        with pytest.raises(nft.NftRefused):
            await network.redirect("one", one.pid, (AGENT,))
        assert not ruleset(one.pid)
        await network.detach("one")


async def test_a_pod_that_is_gone_is_said(pod: Pod) -> None:
    one = pod()
    async with open_pod_network(CONFIG) as network:
        await network.attach("one", one.pid)
        one.kill()
        one.wait()
        with pytest.raises(PodGone, match="pod one: process"):
            await network.redirect("one", one.pid, (AGENT,))
        await network.detach("one")


def test_the_agent_carries_what_is_redirected_and_resets_what_it_does_not_know(pod: Pod) -> None:
    one = pod()

    async def prepare() -> None:
        async with open_pod_network(CONFIG) as network:
            await network.attach("one", one.pid)
            await network.redirect("one", one.pid, (AGENT,))

    async def clean() -> None:
        async with open_pod_network(CONFIG) as network:
            await network.detach("one")

    trio.run(prepare)
    in_netns(f"/proc/{one.pid}/ns/net", partial(trio.run, _be_a_pod))
    trio.run(clean)


async def _be_a_pod() -> None:
    """An app at port 8080 of all addresses that calls two Services at 8080, and one replica for each."""
    machine = Machine()
    machine.serve("web", 8080, workloads=("default/Deployment/web",))
    machine.serve("db", 8080, workloads=("default/Deployment/db",))
    with trio.fail_after(60):
        async with (
            serving(saying(b"web")) as web_app,
            serving(saying(b"db")) as db_app,
            agent_of(machine, 1, "client", redirect_port=AGENT) as client,
            agent_of(machine, 2, "web", others=(client,), ports={"app": web_app}),
            agent_of(machine, 3, "db", others=(client,), ports={"app": db_app}),
            trio.open_nursery() as nursery,
        ):
            listeners = await nursery.start(partial(trio.serve_tcp, saying(b"own"), 8080, host="0.0.0.0"))
            assert len(listeners) == 1
            for name in ("web", "db"):
                (address,) = await client.resolve(f"{name}.default")
                assert await _said(address, 8080) == name.encode()
            assert await _said("127.0.0.1", 8080) == b"own"
            for place in ((address, 8081), ("127.64.0.1", 8080), ("127.0.0.1", AGENT)):
                with pytest.raises(trio.BrokenResourceError):
                    await _said(*place)
            with pytest.raises((OSError, trio.BrokenResourceError)):
                await _said("10.199.0.2", AGENT)  # the pod's own address
            nursery.cancel_scope.cancel()


async def _said(address: str, port: int) -> bytes:
    async with await trio.open_tcp_stream(address, port) as stream:
        return await read_all(stream)
