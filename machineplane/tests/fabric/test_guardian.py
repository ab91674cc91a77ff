"""Who acts for a workload, and what the one that acts does; on a fake clock, with tenders that are answered by the test."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio
import trio.lowlevel
from fabric_support import (
    FakeMachine,
    Wall,
    bare_pod,
    deployment,
    identity,
    mirror,
    new_foundings,
    new_view,
    record,
    stateful_set,
)
from trio.testing import wait_all_tasks_blocked

from machineplane.fabric.events import Events
from machineplane.fabric.follow import visible
from machineplane.fabric.founding import Foundings
from machineplane.fabric.guardian import START_GRACE_S, Guardian, Outcome, actor, guardians, keepers
from machineplane.fabric.holdings import Holdings
from machineplane.fabric.manifests import Manifest
from magik_proto.identity import PeerId
from magik_proto.messages import ResourceId
from magik_proto.records import Workload

WEB = ResourceId("default", "Deployment", "web")
PEERS = [identity(n).peer_id for n in range(1, 9)]


def test_all_machines_agree_on_the_guardians_whatever_order_they_know_each_other_in() -> None:
    assert guardians(WEB, PEERS) == guardians(WEB, reversed(PEERS))
    assert len(set(guardians(WEB, PEERS))) == 3


def test_a_guardian_that_leaves_changes_no_other_guardian() -> None:
    first, *rest = guardians(WEB, PEERS)
    assert guardians(WEB, [p for p in PEERS if p != first])[:2] == rest


def test_the_author_acts_while_it_lives_then_the_closest() -> None:
    workload = record(deployment(), identity(1))
    assert actor(workload, PEERS) == identity(1).peer_id
    others = [p for p in PEERS if p != identity(1).peer_id]
    assert actor(workload, others) == guardians(workload.resource, others)[0]


class World:
    """One guardian on a machine of its own, and a fabric that answers tenders as the test wants."""

    def __init__(self, foundings: Foundings | None = None) -> None:
        wall = Wall()
        self.machine = FakeMachine(1, wall)
        self.other = FakeMachine(2, wall)
        self.alive: list[PeerId] = [self.machine.id, self.other.id]
        self.view = new_view(self.machine.id, wall)
        self.holdings = Holdings()
        self.tenders: list[tuple[str, int]] = []
        self.ordinals: list[int] = []
        self.founders: list[int] = []
        self.retired: list[str] = []
        self.disposed: list[Workload] = []
        self.places = True
        self.foundings = foundings or new_foundings()
        self.roles: dict[PeerId, frozenset[str]] = {}
        self.events = Events(self.machine.table, wall, "m1")
        self.guardian = Guardian(
            view=self.view,
            table=self.machine.table,
            holdings=self.holdings,
            events=self.events,
            alive=lambda: tuple(self.alive),
            settle=self.settle,
            tender=self.tender,
            retire=self.retire,
            dispose=self.dispose,
            roles=lambda peer: self.roles.get(peer, frozenset({"run", "submit"})),
            foundings=self.foundings,
        )
        self.view.on_change = lambda group: self.guardian.wake(group.partition("/")[2])
        self.machine.table.on_change(lambda entry: mirror(self.view, self.machine))

    async def settle(self) -> None:
        mirror(self.view, self.other)

    async def tender(
        self, manifest: Manifest, replicas: int, taken: dict[PeerId, int], ordinals: tuple[int, ...]
    ) -> Outcome:
        self.tenders.append((manifest.record.resource.name, replicas))
        await trio.sleep(0.25)
        if not self.places:
            return Outcome({}, replicas, ("no machine made a bid",))
        self.ordinals += ordinals
        mark = self.guardian.founding(manifest.uid)
        self.founders += [n for n in ordinals if n == 0 and mark and mark.take()]
        for n in ordinals or [None] * replicas:
            labels = {} if n is None else {"apps.kubernetes.io/pod-index": str(n)}
            self.other.run(manifest.record, f"p{uuid4().hex[:6]}", labels=labels)
        if ordinals:
            mirror(self.view, self.other)  # as its table is followed
        return Outcome({self.other.id: replicas}, 0, ())

    async def retire(self, peer: PeerId, pod: str) -> None:
        self.retired.append(pod)
        self.other.table.remove(("pod", pod))

    async def dispose(self, workload: Workload) -> None:
        self.disposed.append(workload)


@pytest.fixture
def world() -> World:
    return World()


async def test_what_is_missing_is_tendered_once(world: World, autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        world.guardian.take(record(deployment(), world.machine.identity))
        await trio.sleep(60)
        assert world.tenders == [("web", 3)]
        nursery.cancel_scope.cancel()


async def test_a_lost_replica_comes_back(world: World, autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        world.guardian.take(record(deployment(), world.machine.identity))
        await trio.sleep(2)
        lost = world.other.table.entries("pod")
        world.other.table.remove(next(iter(lost)).key)
        mirror(world.view, world.other)
        await trio.sleep(2)
        assert world.tenders == [("web", 3), ("web", 1)]
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_placed_is_tried_again_with_growing_pauses_and_said(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.places = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        world.guardian.take(record(deployment(), world.machine.identity))
        await trio.sleep(60)
        assert 10 <= len(world.tenders) <= 20
        shown = world.view.rendered["Deployment", "default", "web"]["status"]["conditions"]
        assert any(c["reason"] == "FailedScheduling" for c in shown)
        world.places = True
        await trio.sleep(10)
        shown = world.view.rendered["Deployment", "default", "web"]["status"]["conditions"]
        assert not any(c["reason"] == "FailedScheduling" for c in shown)
        nursery.cancel_scope.cancel()


async def test_scaling_down_retires(world: World, autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        workload = record(deployment(), world.machine.identity)
        world.guardian.take(workload)
        await trio.sleep(2)
        smaller = record(
            deployment(replicas=1), world.machine.identity, uid=workload.uid, generation=2, stamp=9
        )
        world.guardian.hold(smaller)
        await trio.sleep(2)
        assert len(world.retired) == 2
        nursery.cancel_scope.cancel()


async def test_a_stateful_set_comes_up_in_order_rolls_and_is_counted(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        workload = record(stateful_set(), world.machine.identity)
        world.guardian.take(workload)
        await trio.sleep(5)
        assert world.tenders == [("db", 1)] * 3 and world.ordinals == [0, 1, 2]
        shown = world.view.rendered["StatefulSet", "default", "db"]["status"]
        assert (shown["replicas"], shown["readyReplicas"], shown["updatedReplicas"]) == (3, 3, 3)
        assert shown["currentRevision"] == shown["updateRevision"]
        newer = stateful_set()
        newer["spec"]["template"]["metadata"]["labels"]["v"] = "2"
        world.guardian.hold(record(newer, world.machine.identity, uid=workload.uid, generation=2, stamp=9))
        shown = world.view.rendered["StatefulSet", "default", "db"]["status"]
        assert (shown["currentReplicas"], shown["updatedReplicas"]) == (3, 0)
        assert shown["currentRevision"] != shown["updateRevision"]
        await trio.sleep(10)
        assert world.ordinals == [0, 1, 2, 2, 1, 0] and len(world.retired) == 3
        assert world.founders == [0]  # the first of them alone
        shown = world.view.rendered["StatefulSet", "default", "db"]["status"]
        assert shown["currentRevision"] == shown["updateRevision"] and shown["observedGeneration"] == 2
        nursery.cancel_scope.cancel()


async def test_an_ordinal_whose_name_a_bare_pod_has_waits_for_it_to_go(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    pod, wanted = record(bare_pod("db-1"), world.machine.identity), stateful_set()
    wanted["spec"]["podManagementPolicy"] = "Parallel"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        world.guardian.take(pod)
        await trio.sleep(2)
        world.guardian.take(record(wanted, world.machine.identity))
        await trio.sleep(20)
        assert sorted(world.ordinals) == [0, 2]
        shown = world.view.rendered["StatefulSet", "default", "db"]["status"]
        assert shown["replicas"] == 2
        told = [entry.value for entry in world.machine.table.entries("event")]
        assert any("pod db-1 already exists" in str(each) for each in told)
        world.holdings.release(pod.uid)
        world.machine.table.remove(("workload", str(pod.uid)))
        await trio.sleep(10)
        assert sorted(world.ordinals) == [0, 1, 2]
        nursery.cancel_scope.cancel()


async def test_only_who_made_a_stateful_set_has_it_founded(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        world.guardian.hold(record(stateful_set(), world.machine.identity))  # as of an earlier daemon
        await trio.sleep(START_GRACE_S + 5)
        assert 0 in world.ordinals and not world.founders
        nursery.cancel_scope.cancel()


async def test_a_daemon_that_ends_before_it_has_placed_a_set_founds_it_in_its_next_life(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    first, workload = World(Foundings(tmp_path)), record(stateful_set(), identity(1))
    first.guardian.take(workload)
    for founders in ([0], []):
        again = World(Foundings(tmp_path))  # the manifest comes back from those who guard it
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.guardian.run)
            again.guardian.hold(workload)
            await trio.sleep(START_GRACE_S + 5)
            assert 0 in again.ordinals and again.founders == founders, "once in all its lives"
            nursery.cancel_scope.cancel()


async def test_a_daemon_that_was_alone_founds_what_it_made_then(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.places = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        world.guardian.take(record(stateful_set(), world.machine.identity))
        await trio.sleep(3)
        nursery.start_soon(world.guardian.rejoin)
        await trio.sleep(START_GRACE_S / 2)
        world.places = True
        await trio.sleep(START_GRACE_S + 5)
        assert world.founders == [0]
        nursery.cancel_scope.cancel()


async def test_a_manifest_of_a_dead_author_is_acted_for_by_its_guardian(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """The other machine made it, and dies: this one is the only machine left, hence its guardian."""
    workload = record(deployment(), world.other.identity)
    world.other.hold(workload)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        mirror(world.view, world.other)
        await trio.sleep(START_GRACE_S + 1)
        assert world.holdings.get(workload.uid) == workload
        assert world.tenders == []
        world.alive = [world.machine.id]
        world.guardian.wake_all()
        await trio.sleep(2)
        assert world.tenders == [("web", 3)]
        nursery.cancel_scope.cancel()


async def test_a_daemon_that_comes_back_first_looks_what_others_run(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    """It is the author, and adopted nothing: before it knows the others' pods it must not tender anew."""
    workload = record(deployment(), world.machine.identity)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        await trio.lowlevel.checkpoint()
        world.guardian.hold(workload)
        await trio.sleep(START_GRACE_S / 2)
        for uid in ("p1", "p2", "p3"):
            world.other.run(workload, uid)
        mirror(world.view, world.other)
        await trio.sleep(60)
        assert world.tenders == []
        nursery.cancel_scope.cancel()


async def test_a_machine_that_was_alone_first_hears_what_was_deleted_meanwhile(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    world.alive = [world.machine.id]
    workload = record(deployment(), world.machine.identity)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        world.guardian.take(workload)
        await trio.sleep(20)
        assert world.tenders == [("web", 3)]
        world.alive.append(world.other.id)
        nursery.start_soon(world.guardian.rejoin)
        await trio.sleep(0.1)
        for entry in world.other.table.entries("pod"):
            world.other.table.remove(entry.key)  # as its disposal made there
        mirror(world.view, world.other)
        await trio.sleep(START_GRACE_S / 2)
        assert world.tenders == [("web", 3)], "it does not bring back what may be gone for good"
        await trio.sleep(START_GRACE_S)
        assert world.tenders == [("web", 3)] * 2, "nobody has said so: it is wanted"
        nursery.cancel_scope.cancel()


async def test_the_younger_of_two_namesakes_is_disposed_of(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    older = record(
        bare_pod() | {"metadata": {**bare_pod()["metadata"], "creationTimestamp": "A"}}, world.other.identity
    )
    younger = record(
        bare_pod() | {"metadata": {**bare_pod()["metadata"], "creationTimestamp": "B"}},
        world.machine.identity,
    )
    world.other.hold(older)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        mirror(world.view, world.other)
        world.guardian.take(younger)
        await trio.sleep(2)
        assert younger in world.disposed and older not in world.disposed
        nursery.cancel_scope.cancel()


async def test_what_runs_no_pods_is_held_and_not_tendered(world: World) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        world.guardian.take(record(namespace, world.machine.identity))
        await wait_all_tasks_blocked()
        assert world.tenders == []
        assert ("Namespace", "", "team") in world.view.rendered
        nursery.cancel_scope.cancel()


async def test_a_service_is_shown_as_it_was_made_and_not_tendered(world: World) -> None:
    metadata = {"name": "web", "namespace": "default"}
    spec = {"selector": {"app": "web"}, "ports": [{"port": 80}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.guardian.run)
        world.guardian.take(record(service, world.machine.identity))
        await wait_all_tasks_blocked()
        assert world.tenders == [] and world.view.rendered["Service", "default", "web"]["spec"] == spec
        nursery.cancel_scope.cancel()


def _secret() -> dict[str, Any]:
    metadata = {"name": "key", "namespace": "default"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"k": "AA=="}}


async def test_a_secret_is_guarded_and_shown_only_where_the_api_is_served(world: World) -> None:
    secret = record(_secret(), world.machine.identity)
    alive = [world.machine.id, world.other.id]
    only_runs = {world.other.id: frozenset({"run"})}
    roles = lambda peer: only_runs.get(peer, frozenset({"run", "submit"}))  # noqa: E731
    assert keepers(secret, alive, roles) == [world.machine.id]
    assert keepers(record(bare_pod(), world.machine.identity), alive, roles) == alive
    world.guardian.hold(secret)
    world.guardian.hold(record(bare_pod(), world.machine.identity))
    delta = world.machine.table.since(0, 0)
    shown = [entry.key for entry in visible(delta, frozenset({"run"})).entries]
    assert len(delta.entries) == 2 and len(shown) == 1 and shown[0][1] != str(secret.uid)
    assert visible(delta, frozenset({"run", "submit"})) == delta
