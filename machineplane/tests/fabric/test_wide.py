"""A fabric of more machines than one has connections: real mesh nodes on an in-memory network, with the rooms that
read, find and guard; a machine's pods are entries of its table, and tenders are answered by the test."""

import logging
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from uuid import uuid4

import pytest
import structlog
import trio
from fabric_support import FakeMachine, deployment, new_foundings, record
from trio.testing import MockClock

from machineplane.fabric import outlook
from machineplane.fabric.disposals import Disposals
from machineplane.fabric.events import Events
from machineplane.fabric.follow import Follower
from machineplane.fabric.guardian import Guardian, Outcome
from machineplane.fabric.holdings import Holdings
from machineplane.fabric.manifests import Manifest
from machineplane.fabric.objects import render
from machineplane.fabric.remote import Remote
from machineplane.fabric.scope import OF
from machineplane.fabric.table import Table
from machineplane.fabric.tombstones import Tombstones
from machineplane.fabric.view import View
from machineplane.fabric.wide import Wide
from magik_mesh import MeshLimits, Node
from magik_mesh.testing import EPOCH_MS, MemoryFabric, config_of, identity_of, peers_of, until
from magik_proto.clock import HybridClock
from magik_proto.dht_kinds import holding_kind
from magik_proto.identity import PeerId
from magik_proto.messages import Disposal
from magik_proto.records import Workload, canonical_json

MACHINES = 9
CONNECTIONS = 3
FEW = MeshLimits(known_peers=16)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A debug line a call would take a third of the time."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    yield
    structlog.reset_defaults()


def wall() -> int:
    return EPOCH_MS + int(trio.current_time() * 1000)


class Member(FakeMachine):
    """One machine: its mesh node, its table, and what guards and reads. Its pods are what it was awarded."""

    def __init__(self, number: int, node: Node, others: "list[Member]", nursery: trio.Nursery) -> None:
        self.identity = identity_of(number)
        self.id = node.id
        self.name = f"m{number}"
        self.node = node
        self.others = others
        self.tenders: list[int] = []
        self.looks = 0
        self.nursery = nursery
        self.dead = False
        clock = HybridClock(wall)
        self.table = Table(clock.now)
        self.view = View(node.id, clock)
        self.view.render = partial(render, self.view)
        self.holdings = Holdings()
        self.follower = Follower(node, self.table, self.view)
        self.disposals = Disposals(
            identity=self.identity,
            wall=wall,
            holdings=self.holdings,
            table=self.table,
            view=self.view,
            stop=self.stop_workload,
            publish=self.publish,
            roles=node.roles,
        )
        self.tombstones = Tombstones(node, self.disposals.remembered, self.disposals.learn)
        self.disposals.tell = lambda peer, message: nursery.start_soon(self.tombstones.tell, peer, message)
        self.guardian = Guardian(
            view=self.view,
            table=self.table,
            holdings=self.holdings,
            events=Events(self.table, wall, self.name),
            alive=lambda: (node.id, *peers_of(node)),
            settle=self.follower.settle,
            tender=self.tender,
            retire=lambda peer, pod: self.remote.retire(peer, pod),
            dispose=self.disposals.dispose,
            roles=node.roles,
            foundings=new_foundings(),
        )
        self.view.on_change = self.changed
        self.remote = Remote(
            node,
            guard=self.guardian.guard,
            stop=self.stop_pod,
            open_log=lambda query: pytest.fail("no logs"),
            look=self.look,
        )
        self.wide = Wide(
            node=node,
            identity=self.identity,
            wall=wall,
            rng=random.Random(number),
            table=self.table,
            view=self.view,
            holdings=self.holdings,
            follower=self.follower,
            guardian=self.guardian,
            remote=self.remote,
        )
        obj = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "uid": str(node.id)}}
        self.table.put(
            ("node", str(node.id)), {"json": canonical_json(obj), OF: f"{self.name}/Node/{self.name}"}
        )
        for task in (self.follower.run, self.guardian.run, self.wide.run):
            nursery.start_soon(task)

    def changed(self, group: str) -> None:
        kind, _, ident = group.partition("/")
        if kind == "workload":
            self.guardian.wake(ident)

    def look(self, uid: object) -> bool:
        self.looks += 1
        return False

    def stop_pod(self, uid: str, grace_s: int | None) -> None:
        self.table.remove(("pod", uid))

    def stop_workload(self, uid: object) -> None:
        for entry in self.table.entries("pod"):
            if (entry.value or {})["workload"] == str(uid):
                self.table.remove(entry.key)

    async def publish(self, disposal: Disposal) -> None:
        """Gossip is another room's: here nobody hears of it but by reading."""

    async def tender(
        self, manifest: Manifest, replicas: int, taken: dict[PeerId, int], ordinals: tuple[int, ...]
    ) -> Outcome:
        self.tenders.append(replicas)
        await trio.sleep(0.25)
        placed: dict[PeerId, int] = {}
        free = [m for m in self.others if not m.dead and m is not self and m.id not in taken]
        for member in free[:replicas]:
            member.guardian.hold(manifest.record)
            member.run(manifest.record, uuid4().hex[:5])
            placed[member.id] = 1
        return Outcome(placed, replicas - len(placed), ())

    def pods(self) -> dict[str, str]:
        """Names of the pods in the view, and on which machines they are."""
        return {
            name: obj["spec"]["nodeName"]
            for (kind, _, name), obj in self.view.rendered.items()
            if kind == "Pod"
        }

    async def seen(self, kind: str, name: str) -> bool:
        space = None if kind == "Node" else "default"
        await self.wide.outlook.one(kind, space, name)
        return (kind, space or "", name) in self.view.rendered


async def live(number: int, node: Node, members: list[Member], task_status: trio.TaskStatus[None]) -> None:
    async with trio.open_nursery() as nursery:
        members.append(Member(number, node, members, nursery))
        task_status.started()


@asynccontextmanager
async def many() -> AsyncIterator[tuple[MemoryFabric, list[Member]]]:
    fabric = MemoryFabric()
    members: list[Member] = []
    try:
        async with AsyncExitStack() as stack:
            lives = await stack.enter_async_context(trio.open_nursery())
            for seed in range(1, MACHINES + 1):
                config = config_of(seed, max_connections=CONNECTIONS, limits=FEW, kinds=(holding_kind(),))
                node = await stack.enter_async_context(fabric.open(config))
                await lives.start(live, seed, node, members)
            await until(lambda: all(m.node.large for m in members), 120)
            await trio.sleep(10)
            yield fabric, members
            lives.cancel_scope.cancel()
    except BaseExceptionGroup as group:  # what a test raises comes out wrapped by each nursery
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


def cut(fabric: MemoryFabric, member: Member) -> None:
    """As when power fails: it does nothing more either."""
    member.dead = True
    member.nursery.cancel_scope.cancel()
    fabric.cut(member.node)


def stranger_to(members: list[Member], member: Member) -> Member:
    return next(m for m in reversed(members) if m is not member and m.id not in peers_of(member.node))


def apply(member: Member, replicas: int = 3, name: str = "web", **given: object) -> Workload:
    made = record(deployment(name, replicas), member.identity, **given)  # type: ignore[arg-type]
    member.guardian.take(made)
    return made


async def test_any_machine_lists_all_machines_and_all_pods(autojump_clock: MockClock) -> None:
    async with many() as (_, members):
        workload = record(deployment(), members[0].identity)
        for number, member in enumerate(members):
            member.run(workload, f"p{number}")
        for reader in (members[0], members[5], members[-1]):
            assert await reader.wide.outlook.all_of("Node", None) == ""
            nodes = {key[2] for key in reader.view.rendered if key[0] == "Node"}
            assert nodes == {member.name for member in members}
            assert await reader.wide.outlook.all_of("Pod", "default") == ""
            assert len(reader.pods()) == MACHINES


async def test_a_list_says_of_how_many_machines_it_may_lack_objects(autojump_clock: MockClock) -> None:
    async with many() as (fabric, members):
        reader = members[0]
        assert await reader.wide.outlook.all_of("Node", None) == ""
        cut(fabric, stranger_to(members, reader))
        assert f"1 of {MACHINES} machines did not answer" in await reader.wide.outlook.all_of("Node", None)
        for _ in range(2):
            await trio.sleep(15)
            await reader.wide.outlook.all_of("Node", None)
        assert await reader.wide.outlook.all_of("Node", None) == "", "it is lost, and known to be"
        nodes = [o for k, o in reader.view.rendered.items() if k[0] == "Node"]
        ready = [c["status"] for o in nodes for c in o.get("status", {}).get("conditions", [])]
        assert len(nodes) == MACHINES and ready == ["Unknown"]


async def test_one_object_is_found_by_its_name_and_a_manifest_lies_with_its_guardians(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlook, "YOUNG_S", 5.0)
    async with many() as (_, members):
        author = members[0]
        workload = apply(author)
        await author.remote.spread(workload)
        await until(lambda: len(author.pods()) == 3, 20)
        holders = [m for m in members if m.holdings.get(workload.uid)]
        assert 4 <= len(holders) <= 7, "its author, three guardians, three that run it"
        await trio.sleep(3)  # the index is told, and has been trusted since the fabric was ready
        for reader in members:
            assert await reader.seen("Deployment", "web")
            assert len(reader.pods()) == 3
            assert not await reader.seen("Deployment", "other")
        (name, *_) = author.pods()
        assert await members[7].seen("Pod", name)
        assert await members[3].seen("Node", "m8") and not await members[3].seen("Node", "m99")


async def test_a_replica_on_a_machine_that_is_not_connected_is_healed(autojump_clock: MockClock) -> None:
    async with many() as (fabric, members):
        author = members[0]
        workload = apply(author)
        await author.remote.spread(workload)
        await until(lambda: len(author.pods()) == 3, 20)
        await trio.sleep(15)
        assert author.tenders == [3], "what runs is not tendered again"
        victim = next(m for m in members if m.table.entries("pod") and m.id not in peers_of(author.node))
        cut(fabric, victim)
        await until(lambda: author.tenders == [3, 1], 30)
        await trio.sleep(30)
        assert author.tenders == [3, 1] and len(author.pods()) == 3
        assert [m for m in members if m is not author and m.tenders] == []


async def test_after_its_author_a_guardian_acts_and_one_alone(autojump_clock: MockClock) -> None:
    async with many() as (fabric, members):
        author = members[0]
        workload = apply(author)
        await author.remote.spread(workload)
        await until(lambda: len(author.pods()) == 3, 20)
        await trio.sleep(15)
        cut(fabric, author)
        await trio.sleep(40)
        assert [m for m in members[1:] if m.tenders] == [], "its pods run, and are seen to run"
        victim = next(m for m in members[1:] if m.table.entries("pod"))
        cut(fabric, victim)
        await until(lambda: any(m.tenders for m in members[1:]), 60)
        await trio.sleep(30)
        acting = [m for m in members[1:] if m.tenders]
        assert len(acting) == 1 and acting[0].tenders == [1]


async def test_who_changes_a_workload_elsewhere_is_its_author_from_then_on(autojump_clock: MockClock) -> None:
    async with many() as (_, members):
        author = members[1]  # no guardian of it
        editor = stranger_to(members, author)
        before = apply(author)
        await author.remote.spread(before)
        await until(lambda: len(author.pods()) == 3, 20)
        await editor.seen("Deployment", "web")
        after = record(deployment(replicas=1), editor.identity, uid=before.uid, generation=2, stamp=9)
        editor.guardian.take(after)
        await editor.remote.spread(after, before)
        await trio.sleep(30)
        await editor.wide.outlook.all_of("Pod", None)
        assert len(editor.pods()) == 1 and author.tenders == [3] and editor.tenders == []


async def test_who_missed_a_delete_is_told_when_it_is_read(autojump_clock: MockClock) -> None:
    async with many() as (_, members):
        author = members[0]
        workload = apply(author)
        await author.remote.spread(workload)
        await until(lambda: len(author.pods()) == 3, 20)
        await author.disposals.dispose(workload)
        await author.wide.outlook.all_of("Pod", None)
        await trio.sleep(5)
        assert [m.name for m in members if m.table.entries("pod")] == []


async def test_who_acts_is_found_by_machines_that_are_not_connected_with_it(
    autojump_clock: MockClock,
) -> None:
    async with many() as (fabric, members):
        author = members[0]
        workload = apply(author)
        await author.remote.spread(workload)
        asking = stranger_to(members, author)
        await asking.remote.ask_actor(workload, asking.id)
        assert [m.name for m in members if m.looks] == [author.name]
        cut(fabric, author)
        await asking.remote.ask_actor(workload, asking.id)
        (acting,) = [m for m in members if m.looks and m is not author]
        near = await asking.wide.index.nearest("workload", str(workload.resource))
        assert acting.id == next(peer for peer in near if peer != author.id)
