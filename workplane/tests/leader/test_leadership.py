"""Three replicas on real nodes: they elect, lose their leader, are cut off, forget, and refuse each other's namesakes."""

import json
from pathlib import Path
from uuid import UUID

import pytest
import trio
from pods_support import LEASE_S, stateful

from magik_mesh import RpcFailed
from magik_proto.leadership_types import Life, PreVote
from magik_proto.leadership_wire import to_value
from workplane.leadership import LEAD

STEP = to_value(PreVote(term=9, generation=1, since=0, settled=True), Life())


async def test_three_form_and_another_leads_within_three_leases(tmp_path: Path) -> None:
    async with stateful(tmp_path) as pods:
        first = await pods.formed()
        token = first.election.standing.token
        await pods.until(
            lambda: {p.election.view.leader for p in pods.pods.values()} == {first.name}, 3 * LEASE_S
        )
        await pods.stop(first.name)
        second = await pods.leader(3 * LEASE_S + 2)  # and what a loaded machine takes
        assert second.election.standing.token > token


async def test_who_is_cut_off_stops_and_the_others_go_on(tmp_path: Path) -> None:
    async with stateful(tmp_path) as pods:
        first = await pods.formed()
        token = first.election.standing.token
        pods.cut = {first.name}
        await pods.until(lambda: first.election.standing.token is None)
        second = await pods.leader(20)
        later = second.election.standing.token
        assert second is not first and later > token
        pods.cut = set(pods.pods)
        await pods.until(lambda: not pods.leaders())
        await trio.sleep(2 * LEASE_S)
        assert not pods.leaders(), "each alone is a minority"
        pods.cut = set()
        third = await pods.leader(20)
        assert third.election.standing.token > later


async def test_the_file_says_who_leads(tmp_path: Path) -> None:
    async with stateful(tmp_path) as pods:
        leader = await pods.formed()
        others = [p for p in pods.pods.values() if p is not leader]

        def said(name: str) -> dict[str, object]:
            return json.loads((tmp_path / name / "leader").read_text())

        await pods.until(lambda: said(leader.name)["role"] == "leader")
        await pods.until(lambda: all(said(p.name)["leader"] == leader.name for p in others))
        token = leader.election.standing.token
        assert said(leader.name)["token"] == f"{token.generation}.{token.term}"
        assert {said(p.name)["token"] for p in others} == {None}


async def test_a_replica_that_lost_its_storage_is_let_in_by_the_others(tmp_path: Path) -> None:
    async with stateful(tmp_path) as pods:
        leader = await pods.formed()
        lost = next(name for name in pods.pods if name != leader.name)
        await pods.stop(lost)
        (tmp_path / lost / "vote").unlink()
        await pods.start(lost)
        await pods.until(lambda: pods.voters(lost) == (3,))
        last = next(p for name, p in pods.pods.items() if name not in (lost, leader.name))
        pods.cut = {last.name}
        await trio.sleep(2 * LEASE_S)
        assert pods.leaders() == [leader], "two of three answer: the new life votes"


async def test_of_two_the_second_comes_back_without_its_storage(tmp_path: Path) -> None:
    async with stateful(tmp_path, size=2) as pods:
        token = (await pods.formed()).election.standing.token
        await pods.stop("web-1")
        (tmp_path / "web-1" / "vote").unlink()
        await pods.until(lambda: not pods.leaders())
        await pods.start("web-1", replicas=2)
        later = (await pods.leader(20)).election.standing.token
        assert later > token


async def test_a_founder_that_lost_its_storage_begins_nothing_anew(tmp_path: Path) -> None:
    async with stateful(tmp_path, size=1) as pods:
        await pods.leader(20)
        await pods.until(lambda: not (tmp_path / "web-0" / "founder").exists())
        await pods.stop("web-0")
        (tmp_path / "web-0" / "vote").unlink()
        await pods.start("web-0", replicas=1)
        await trio.sleep(3 * LEASE_S)
        assert not pods.leaders()


async def test_more_replicas_join(tmp_path: Path) -> None:
    async with stateful(tmp_path) as pods:
        leader = await pods.formed()
        for number in (3, 4):
            await pods.start(f"web-{number}", replicas=5)
        for pod in pods.pods.values():
            pod.election.changed(2, 5)
        await pods.until(lambda: leader.election.standing.token.generation == 2)
        pods.cut = {"web-3", "web-4"}
        await trio.sleep(2 * LEASE_S)
        assert pods.leaders() == [leader]


async def test_messages_of_others_are_refused(tmp_path: Path) -> None:
    async with stateful(tmp_path, size=2) as pods:
        door = pods.pods["web-0"].node.id
        replica = await pods.start("web-2")
        namesake = await pods.start("web-1", uid=UUID(int=7 << 64))
        stateless = await pods.start("tool-x1", kind="Deployment")
        twin = await pods.start("web-0")
        for stranger in (namesake, stateless, twin):
            with pytest.raises(RpcFailed, match="not-a-replica"):
                await stranger.node.call(door, LEAD, STEP)
        with pytest.raises(RpcFailed, match=r"leadership\.message"):
            await replica.node.call(door, LEAD, {"kind": "vote"})


async def test_a_storage_that_fails_ends_leadership_and_not_the_agent(tmp_path: Path) -> None:
    async with stateful(tmp_path, size=1) as pods:
        pod = await pods.leader(20)
        await pods.stop("web-0")
        (tmp_path / "web-0" / "vote").unlink()
        (tmp_path / "web-0" / "vote").mkdir()
        pod = await pods.start("web-0", replicas=1)
        await pods.until(lambda: pod.election.failed)
        assert pod.election.view.token is None
