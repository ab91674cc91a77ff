"""Two real agents: an app of one pod calls the app of another by a service's name."""

from __future__ import annotations

import random
from pathlib import Path

import httpx
import pytest
import trio
from dnslib import DNSRecord
from rig import WEB, Agent, pod

from magik_mesh.testing import until
from magik_proto.messages import ResourceId

CLIENT = ResourceId("default", "Deployment", "client")


async def resolve(agent: Agent, name: str) -> str:
    told = await agent.said("dns")
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as sock:
        await sock.connect((told["host"], told["port"]))
        await sock.send(DNSRecord.question(f"{name}.default.svc.cluster.local").pack())
        reply = DNSRecord.parse(await sock.recv(4096))
    if not reply.rr:
        raise LookupError(name)
    return str(reply.rr[0].rdata)


async def test_an_app_calls_another_by_its_service_s_name(tmp_path: Path) -> None:
    async def app(stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello")

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    number = listener.socket.getsockname()[1]
    containers = [{"name": "app", "ports": [{"name": "http", "containerPort": number}]}]
    name, port = f"web-{random.SystemRandom().randrange(1 << 40):x}", 20_080
    service = {
        "name": name,
        "namespace": "default",
        "ports": [{"name": "http", "port": port, "protocol": "TCP", "target": "http"}],
        "workloads": [str(WEB)],
        "headless": False,
        "annotations": {},
    }
    async with (
        listener,
        trio.open_nursery() as nursery,
        pod(tmp_path, "web-1", containers=containers) as web,
        pod(tmp_path, "client-1", resource=CLIENT) as client,
    ):
        nursery.start_soon(trio.serve_listeners, app, [listener])
        await until(lambda: web.api.ready() and client.api.ready(), 30)
        client.api.services[f"default/{name}"] = service
        web.api.change(services=[service, {"name": "not to be understood"}])
        client.api.change(bootstrap=[web.api.peer])
        await client.said("replica", pod="web-1", ready=True)
        await web.said("service-not-understood")
        address = await resolve(client, name)
        async with await trio.open_tcp_stream(address, port) as stream:
            assert await stream.receive_some() == b"hello"
        with pytest.raises(LookupError):
            await resolve(client, "no-such-service")
        web.terminate()
        assert await web.process.wait() == 0
        await client.said("replica", pod="web-1", ready=False)
        with pytest.raises((OSError, trio.BrokenResourceError)):  # refused, or taken and reset: as it happens
            async with await trio.open_tcp_stream(address, port) as stream:
                await stream.receive_some()
        nursery.cancel_scope.cancel()


async def test_both_agents_tell_of_a_failure_by_one_id_and_a_service_is_known_while_the_machine_is_not_clear(
    tmp_path: Path,
) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    number = listener.socket.getsockname()[1]
    await listener.aclose()  # so nobody listens there
    containers = [{"name": "app", "ports": [{"name": "http", "containerPort": number}]}]
    name, port = f"web-{random.SystemRandom().randrange(1 << 40):x}", 20_081
    service = {
        "name": name,
        "namespace": "default",
        "ports": [{"name": "http", "port": port, "protocol": "TCP", "target": "http"}],
        "workloads": [str(WEB)],
    }
    (tmp_path / "client-1/app").mkdir(parents=True)
    async with (
        pod(tmp_path, "web-1", containers=containers) as web,
        pod(tmp_path, "client-1", resource=CLIENT) as client,
    ):
        await until(lambda: web.api.ready() and client.api.ready(), 30)
        client.api.services[f"default/{name}"] = service
        web.api.change(services=[service, {"name": "not to be understood"}])
        client.api.change(bootstrap=[web.api.peer])
        await client.said("replica", pod="web-1", ready=True)
        await web.said("service-not-understood")  # so it knows the other one

        address = await resolve(client, name)
        with pytest.raises((OSError, trio.BrokenResourceError)):
            async with await trio.open_tcp_stream(address, port) as stream:
                await stream.receive_some()
        here = await client.said("connection-failed")
        there = await web.said("connection-refused", code="app")
        assert here["correlation_id"] == there["correlation_id"] and there["role"] == "replica"

        client.api.services[f"default/{name}"] = {"name": 5}
        wish = {"service": name, "method": "do", "id": "one-of-ours"}
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "client-1/app/agent.sock"))
        async with httpx.AsyncClient(transport=transport, timeout=35) as http:
            answer = await http.post("http://agent/v1/call", json=wish)
        assert (answer.status_code, answer.json()["reason"]) == (501, "no-app"), answer.text
        await client.said("call-failed", correlation_id="one-of-ours", code="no-app")
        await web.said("call-refused", correlation_id="one-of-ours", code="no-app")
