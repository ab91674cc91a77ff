"""TCP between pods by service names: over real nodes, DNS and sockets."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from traffic_support import Machine, Pod, a_port, introduce, pod, read_all, saying, serving, unique, wall
from trio import socket

from magik_mesh.testing import until
from magik_proto.records import ServiceRecord
from workplane.catalog import Visibility

WEB = "default/Deployment/web"


@attrs.define
class World:
    machine: Machine
    client: Pod
    replicas: list[Pod]
    name: str
    port: int

    async def connect(self, name: str = "") -> trio.SocketStream:
        return await self.client.connect(name or f"{self.name}.default", self.port)

    async def said(self, count: int = 1) -> list[bytes]:
        """What the apps say that a number of connections in a row reach."""
        found = []
        for _ in range(count):
            async with await self.connect() as stream:
                found.append(await read_all(stream))
        return found


@asynccontextmanager
async def world(*apps: Any, service: dict[str, Any] | None = None, **pods: Any) -> AsyncIterator[World]:
    """A client, and a replica of ``web`` for each app (None: nothing listens at its port)."""
    machine, name, port = Machine(), unique("web"), a_port()
    machine.serve(name, port, workloads=(WEB,), **(service or {}))
    async with AsyncExitStack() as stack:
        open_fabric, port_of_all = bool(pods.get("open_fabric")), pods.pop("redirect_port", None)
        client = await stack.enter_async_context(
            pod(machine, 1, "client", open_fabric=open_fabric, redirect_port=port_of_all)
        )
        replicas: list[Pod] = []
        for seed, app in enumerate(apps, 2):
            number = 9 if app is None else await stack.enter_async_context(serving(app))
            made = pod(machine, seed, "web", others=(client, *replicas), ports={"app": number}, **pods)
            replicas.append(await stack.enter_async_context(made))
        with trio.fail_after(60):
            yield World(machine, client, replicas, name, port)


async def echo(stream: trio.SocketStream) -> None:
    async for chunk in stream:
        await stream.send_all(chunk)
    await stream.send_eof()


async def is_reset(stream: trio.SocketStream) -> bool:
    try:
        await stream.receive_some()
        return False
    except trio.BrokenResourceError:
        return True


async def test_connections_go_to_the_replicas_in_turn() -> None:
    async with world(saying(b"two"), saying(b"three")) as w:
        said = await w.said(6)
    assert sorted(said) == [b"three"] * 3 + [b"two"] * 3


async def test_a_defect_ends_its_connection_and_not_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(saying(b"two"), saying(b"three")) as w:
        assert len(await w.said(1)) == 1
        real, calls = w.client.traffic.router._check, []

        def check(record: ServiceRecord) -> None:
            calls.append(record)
            if len(calls) == 1:
                raise ZeroDivisionError
            real(record)

        monkeypatch.setattr(w.client.traffic.router, "_check", check)
        assert len(await w.said(2)) == 2  # the first goes to the other replica
        assert len(calls) == 3


async def test_all_bytes_come_and_a_half_that_ended_leaves_the_other_open() -> None:
    async def count(stream: trio.SocketStream) -> None:
        whole = await read_all(stream)  # ends although the client still listens
        await stream.send_all(struct.pack(">I", len(whole)) + whole[::-1])

    payload = bytes(range(256)) * 8192
    async with world(count) as w, await w.connect() as stream:
        await stream.send_all(payload)
        await stream.send_eof()
        answer = await read_all(stream)
    assert answer == struct.pack(">I", len(payload)) + payload[::-1]


async def test_an_app_that_does_not_read_holds_the_client_up() -> None:
    go = trio.Event()

    async def lazy(stream: trio.SocketStream) -> None:
        await go.wait()
        await stream.send_all(str(len(await read_all(stream))).encode())

    async with world(lazy) as w, await w.connect() as stream:
        sent = 0
        with trio.move_on_after(1.0):
            while sent < 200 << 20:
                await stream.send_all(bytes(1 << 16))
                sent += 1 << 16
        assert sent < 64 << 20  # the kernel's buffers and ours
        go.set()
        stream = stream  # the last piece was cut: the count is of what went out
        await stream.send_eof()
        assert int(await read_all(stream)) >= sent


@pytest.mark.parametrize("side", ["app", "client"])
async def test_a_reset_arrives_as_one(side: str) -> None:
    seen = trio.Event()

    def reset(stream: trio.SocketStream) -> None:
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()

    async def app(stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello")
        if side == "app":
            assert await stream.receive_some() == b"go"
            reset(stream)
        elif await is_reset(stream):
            seen.set()

    async with world(app) as w, await w.connect() as stream:
        assert await stream.receive_some() == b"hello"
        if side == "app":
            await stream.send_all(b"go")
            assert await is_reset(stream)
        else:
            reset(stream)
            await seen.wait()


async def test_an_app_that_is_down_is_passed_over_and_then_avoided() -> None:
    async with world(None, saying(b"three")) as w:
        assert await w.said(6) == [b"three"] * 6
        assert await w.said(6) == [b"three"] * 6
        assert w.replicas[0].traffic.inbound.asked == 1


async def test_without_a_replica_the_connection_is_reset() -> None:
    async with world() as w, await w.connect() as stream:
        assert await is_reset(stream)
    async with world(saying(b"two")) as w:
        w.replicas[0].ready[0] = False  # and its record does not say so yet
        async with await w.connect() as stream:
            assert await is_reset(stream)


async def test_a_service_may_have_pods_that_are_not_ready() -> None:
    async with world(saying(b"two"), service={"unready": True}) as w:
        (replica,) = w.replicas
        replica.ready[0] = False
        w.client.catalog.take([replica.record(version=2, ready=False)], wall())
        assert await w.said() == [b"two"]


async def test_a_local_service_has_the_pods_of_the_own_machine_alone() -> None:
    async with world(saying(b"two"), saying(b"three"), service={"local": True}) as w:
        w.client.traffic.router._balancer.machine = "m1"
        here, there = w.replicas
        for replica, machine in ((here, "m1"), (there, "m2")):
            w.client.catalog.take([replica.record(version=2, caps={"machine": machine})], wall())
        assert await w.said(3) == [b"two"] * 3
        w.client.catalog.take([here.record(version=3, ready=False)], wall())
        async with await w.connect() as stream:
            assert await is_reset(stream)


async def test_a_pod_reaches_itself_without_a_call() -> None:
    async with world(saying(b"two")) as w:
        (replica,) = w.replicas
        async with await replica.connect(f"{w.name}.default", w.port) as stream:
            assert await read_all(stream) == b"two"
        assert replica.traffic.inbound.asked == 0


async def test_pods_and_the_leader_have_names() -> None:
    async with world(saying(b"two"), saying(b"three")) as w:
        for text, number in ((b"two", 2), (b"three", 3)):
            async with await w.connect(f"web-{number}.{w.name}.default") as stream:
                assert await read_all(stream) == text
        with pytest.raises(LookupError):
            await w.connect(f"web-9.{w.name}.default")
        async with await w.connect(f"leader.{w.name}.default") as stream:
            assert await is_reset(stream)  # there is none
        led = w.replicas[1].record(version=2, caps={"leader": True, "leader_epoch": 1})
        w.client.catalog.take([led], wall())
        for _ in range(3):
            async with await w.connect(f"leader.{w.name}.default") as stream:
                assert await read_all(stream) == b"three"


async def test_a_headless_service_stands_for_its_pods_at_the_port_of_the_app_too() -> None:
    async with world(saying(b"two"), saying(b"three"), service={"headless": True}) as w:
        addresses = await w.client.resolve(f"{w.name}.default")
        assert len(set(addresses)) == 2
        said = []
        for address, replica in zip(addresses, w.replicas, strict=True):
            for port in (w.port, replica.ports["app"]):
                async with await trio.open_tcp_stream(address, port) as stream:
                    said.append(await read_all(stream))
        assert said == [b"two"] * 2 + [b"three"] * 2


async def test_who_is_denied_is_refused_by_the_receiver() -> None:
    denied = Visibility(namespace="default", deny=("*/client",))
    async with world(saying(b"two"), visibility=denied) as w, await w.connect() as stream:
        assert await is_reset(stream)


async def test_an_open_fabric_needs_no_pass_and_patterns_admit_nobody_there() -> None:
    async with world(saying(b"two"), open_fabric=True) as w:
        assert await w.said() == [b"two"]
    only = Visibility(namespace="default", allow=("*/client",))
    async with world(saying(b"two"), open_fabric=True, visibility=only) as w, await w.connect() as stream:
        assert await is_reset(stream)


async def test_a_record_of_another_workload_s_pod_is_not_believed() -> None:
    async with world(saying(b"two")) as w:
        liar = w.client.record(workload_name="web", workload_id=WEB)  # the client says that it is of web
        honest = w.replicas[0]
        service = w.machine.services["default", w.name]  # it would even take the connection
        service["workloads"].append("default/Deployment/client")
        service["ports"][0]["target"] = honest.ports["app"]
        async with pod(w.machine, 8, "other", others=(w.client, honest)) as other:
            other.catalog.forget(w.client.node.id, "default/Deployment/client")
            other.catalog.forget(honest.node.id, WEB)
            other.catalog.take([liar], wall())
            async with await other.connect(f"{w.name}.default", w.port) as stream:
                assert await is_reset(stream)
            assert other.catalog.of_peer(w.client.node.id, WEB) is None


async def test_a_port_that_no_service_names_is_not_reached() -> None:
    """However the caller puts it: the receiver decides what a port means."""
    async with world(saying(b"two")) as w:
        del w.machine.services["default", w.name]
        w.machine.serve("other", w.port, workloads=("default/Deployment/client",))
        for service in (w.name, "other"):
            body = {"namespace": "default", "service": service, "port": w.port}
            with pytest.raises(Exception, match="no-such-port"):
                async with w.client.node.open_call(w.replicas[0].node.id, "/workplane/tcp/1.0.0", body):
                    pass
        for body in (None, {}, {"namespace": "default", "service": 5, "port": "x"}):
            with pytest.raises(Exception, match="expected namespace"):
                async with w.client.node.open_call(w.replicas[0].node.id, "/workplane/tcp/1.0.0", body):
                    pass


async def test_while_the_machine_is_away_its_last_word_holds() -> None:
    async with world(saying(b"two")) as w:
        assert await w.said() == [b"two"]
        w.machine.away = True
        assert await w.said(2) == [b"two"] * 2
        with pytest.raises(LookupError):
            await w.client.resolve("never-asked-for.default")


async def test_draining_ends_new_connections_and_lets_others_end() -> None:
    async with world(echo, saying(b"three")) as w, await w.connect(f"web-2.{w.name}.default") as stream:
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.replicas[0].traffic.drain)
            await trio.testing.wait_all_tasks_blocked()
            assert await w.said(4) == [b"three"] * 4
            await stream.send_all(b"y")
            assert await stream.receive_some() == b"y"
            await stream.send_eof()
            assert await read_all(stream) == b""


async def test_a_replica_ends_its_limits_and_the_next_takes_over() -> None:
    async with world(echo, saying(b"three")) as w:
        w.replicas[0].traffic.inbound.max_of_peer = 1
        async with await w.connect(f"web-2.{w.name}.default") as held:
            await held.send_all(b"x")
            assert await held.receive_some() == b"x"
            assert await w.said(3) == [b"three"] * 3


async def test_a_listener_more_than_allowed_closes_the_one_used_least_lately() -> None:
    async with world(saying(b"two")) as w:
        w.client.traffic.front._max_listeners = 2
        names = [f"{w.name}.default", f"web-2.{w.name}.default", f"leader.{w.name}.default"]
        addresses = [(await w.client.resolve(name))[0] for name in names]
        assert [place.host for place in w.client.traffic.front.places] == addresses[1:]
        with pytest.raises(OSError, match="failed"):
            await trio.open_tcp_stream(addresses[0], w.port)
        assert await w.said() == [b"two"]  # asked for again, it is there again


async def test_a_port_that_an_app_has_is_told_and_does_no_harm() -> None:
    async with world(saying(b"two"), service={"headless": True}) as w:
        app = w.replicas[0].ports["app"]
        (everywhere,) = await trio.open_tcp_listeners(w.port, host="0.0.0.0")
        async with everywhere:
            (address,) = await w.client.resolve(f"{w.name}.default")
            async with await trio.open_tcp_stream(address, app) as stream:
                assert await read_all(stream) == b"two"


async def test_a_udp_port_that_an_app_has_leaves_the_service_s_tcp_alone() -> None:
    async with world(saying(b"two")) as w:
        service = w.machine.services["default", w.name]
        service["ports"] = [{**service["ports"][0], "protocol": protocol} for protocol in ("UDP", "TCP")]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as everywhere:
            await everywhere.bind(("0.0.0.0", w.port))
            assert await w.said() == [b"two"]
            assert {place.protocol for place in w.client.traffic.front.places} == {"TCP"}


async def test_where_tcp_is_redirected_no_service_s_port_is_bound() -> None:
    """That the rule's connections come: integration-tests/podnet."""
    async with world(saying(b"two"), redirect_port=0) as w:
        (address,) = await w.client.resolve(f"{w.name}.default")
        assert [(place.host, place.port) for place in w.client.traffic.front.places] == [(address, w.port)]
        (everywhere,) = await trio.open_tcp_listeners(w.port, host="0.0.0.0")
        await everywhere.aclose()


async def test_a_connection_that_nobody_redirected_is_reset() -> None:
    async with world(saying(b"two"), redirect_port=0) as w:
        for _ in range(2):
            async with await trio.open_tcp_stream("127.0.0.1", w.client.traffic.redirect_port) as stream:
                assert await is_reset(stream)


async def test_a_redirect_port_that_an_app_has_is_told_and_taken_once_it_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workplane.traffic.RETRY_S", 0.05)
    (taken,) = await trio.open_tcp_listeners(0, host="0.0.0.0")
    port = taken.socket.getsockname()[1]
    async with taken, world(saying(b"two"), redirect_port=port) as w:
        assert w.client.traffic.redirect_port == 0
        assert len(await w.client.resolve(f"{w.name}.default")) == 1  # the rest goes on
        await taken.aclose()
        await until(lambda: w.client.traffic.redirect_port == port, 20.0)


async def test_introductions_are_mutual() -> None:
    """The support itself: all pods know all records."""
    async with world(saying(b"two"), saying(b"three")) as w:
        introduce(w.client, *w.replicas)
        assert all(len(p.catalog.ready(WEB, wall())) == 2 for p in (w.client, *w.replicas))
