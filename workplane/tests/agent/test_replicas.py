"""Real agent processes of a StatefulSet: they elect, answer their apps, and are told of a scaling and of an end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from rig import Agent, pod

from magik_mesh.testing import until
from magik_proto.leadership_wire import stored_from_bytes
from magik_proto.messages import ResourceId

DB = ResourceId("default", "StatefulSet", "db")


@asynccontextmanager
async def stateful(folder: Path, size: int = 3) -> AsyncIterator[list[Agent]]:
    async with AsyncExitStack() as stack:
        agents: list[Agent] = []
        for number in range(size):
            name = f"db-{number}"
            for part in ("app", "agent/state"):
                (folder / name / part).mkdir(parents=True)
            if number == 0:
                (folder / name / "agent/state/founder").touch()
            agents.append(await stack.enter_async_context(pod(folder, name, resource=DB, replicas=size)))
        await until(lambda: all(one.api.ready() for one in agents), 30)
        for one in agents[1:]:
            one.api.change(bootstrap=[agents[0].api.peer])
        yield agents


def file_of(one: Agent) -> dict[str, Any]:
    try:
        return json.loads((one.api.folder / "app/leader").read_text())
    except FileNotFoundError:
        return {}


async def ask(one: Agent, path: str, body: Any = None) -> httpx.Response:
    transport = httpx.AsyncHTTPTransport(uds=str(one.api.folder / "app/agent.sock"))
    async with httpx.AsyncClient(transport=transport, timeout=35) as client:
        return await client.request("GET" if body is None else "POST", f"http://agent{path}", json=body)


def joined(agents: list[Agent]) -> bool:
    """All have stored that all vote."""
    files = [one.api.folder / "agent/state/vote" for one in agents]
    return all(file.exists() and stored_from_bytes(file.read_bytes()).voters == (3,) for file in files)


async def test_three_agents_have_one_leader_whom_the_apps_and_the_machine_see(tmp_path: Path) -> None:
    async with stateful(tmp_path) as agents:
        await until(lambda: joined(agents), 40)
        await until(lambda: sum(file_of(one).get("generation") == 1 for one in agents) == 1, 40)
        leader = next(one for one in agents if file_of(one)["role"] == "leader")
        token = file_of(leader)["token"]
        await until(lambda: leader.api.status["leader"] is not None, 10)
        assert "{generation}.{term}".format(**leader.api.status["leader"]) == token
        await until(lambda: {file_of(one).get("leader") for one in agents} == {leader.api.name}, 10)
        wish = {"workload": str(DB), "method": "leader", "leader_only": True}
        for one in agents:
            said = (await ask(one, "/v1/call", wish)).json()
            assert (said["pod"], said["body"]["token"]) == (leader.api.name, token), said
        seen = (await ask(leader, "/v1/peers")).json()["peers"]
        assert {(peer["pod"], peer["leader"]) for peer in seen} == {
            (one.api.name, one is leader) for one in agents
        }
        assert "magik_agent_leader 1\n" in (await ask(leader, "/metrics")).text
        leader.process.kill()
        others = [one for one in agents if one is not leader]
        await until(lambda: any(file_of(one)["role"] == "leader" for one in others), 40)
        new = next(file_of(one) for one in others if file_of(one)["role"] == "leader")
        assert new["term"] > int(token.partition(".")[2])


async def test_missing_replicas_are_asked_for_once_and_by_one(tmp_path: Path) -> None:
    often = ("--replica-check-interval-secs", "1")
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(pod(tmp_path, name, *often, replicas=4))
            for name in ("web-1", "web-2")
        ]
        await until(lambda: one.api.ready() and two.api.ready(), 30)
        two.api.change(bootstrap=[one.api.peer])
        await until(lambda: bool(one.api.heals + two.api.heals), 60)
        await trio.sleep(3)
        assert one.api.heals + two.api.heals == [{"missing": 2, "generation": 1}]
        first = one if one.api.heals else two
        assert first.api.peer.partition("@")[0] == min(a.api.peer.partition("@")[0] for a in (one, two))


async def test_replicas_are_told_the_zone_that_the_machine_names(tmp_path: Path) -> None:
    """Of a machine that names none they are told none."""
    for name in ("web-1", "web-2"):
        (tmp_path / name / "app").mkdir(parents=True)
    async with (
        pod(tmp_path, "web-1", zone="east") as east,
        pod(tmp_path, "web-2") as nowhere,
    ):
        await until(lambda: east.api.ready() and nowhere.api.ready(), 60)
        nowhere.api.change(bootstrap=[east.api.peer])
        await nowhere.said("replica", 60, pod="web-1", ready=True)
        await east.said("replica", 60, pod="web-2", ready=True)
        for one, other, zone in ((nowhere, "web-1", "east"), (east, "web-2", None)):
            peers = (await ask(one, "/v1/peers")).json()["peers"]
            assert [peer["caps"].get("zone") for peer in peers if peer["pod"] == other] == [zone]
