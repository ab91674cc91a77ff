"""From an award to rows in the table and back, with a runtime that does what the test says."""

import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
import trio
from attrs import evolve, frozen
from fabric_support import FakeMachine, Wall, deployment, record, stateful_set
from trio.testing import wait_all_tasks_blocked

from machineplane.fabric.events import Events
from machineplane.fabric.pods import Attachment, DeployError, Marks, PodKeeper
from magik_proto.messages import Award
from magik_proto.records import Workload


@frozen
class State:
    uid: str
    pod: dict[str, Any]
    attachment: bytes
    phase: str = "Running"
    reason: str = ""
    message: str = ""


class FakeRuntime:
    """Runs nothing; a pod is in the phase that the test wants, and stopping waits until the test lets it."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.phase = "Running"
        self.graces: list[float | None] = []
        self.may_stop = trio.Event()
        self.marked = Marks()

    async def run_pod(self, pod: dict[str, Any], attachment: bytes, *, engine: str, records: bytes) -> State:
        await trio.sleep(0.1)
        uid = pod["metadata"]["uid"]
        self.states[uid] = State(uid, pod, attachment, self.phase, "StartError", "no such program")
        return self.states[uid]

    async def stop_pod(self, uid: str, grace_s: float | None = None) -> None:
        self.graces.append(grace_s)
        await self.may_stop.wait()
        self.states.pop(uid, None)

    def pods(self) -> list[State]:
        return list(self.states.values())

    def marks(self, state: State) -> Marks:
        return self.marked

    def status(self, state: State) -> dict[str, Any]:
        running = {"running": {"startedAt": "2027-01-15T08:00:00Z"}}
        return {
            "phase": state.phase,
            "containerStatuses": [{"name": "c", "state": running, "restartCount": 0}],
        }


class Bench:
    def __init__(self, nursery: trio.Nursery, runtime: FakeRuntime) -> None:
        self.machine = FakeMachine(1, Wall())
        self.runtime = runtime
        self.keeper = PodKeeper(
            runtime=runtime,
            table=self.machine.table,
            events=Events(self.machine.table, Wall(), "m1"),
            own=self.machine.id,
            node_name="m1",
            address="192.0.2.1",
            wall=Wall(),
            nursery=nursery,
            rng=random.Random(1),
        )

    def shown(self) -> dict[str, dict[str, Any]]:
        """Pod objects in the table, by name."""
        values = [entry.value for entry in self.machine.table.entries("pod")]
        pods = [json.loads(value["json"]) for value in values if value]  # type: ignore[arg-type]
        return {pod["metadata"]["name"]: pod for pod in pods}

    def said(self) -> list[tuple[str, str]]:
        """Kind and reason of the events in the table."""
        values = [entry.value for entry in self.machine.table.entries("event")]
        events = [json.loads(value["json"]) for value in values if value]  # type: ignore[arg-type]
        return [(event["involvedObject"]["kind"], event["reason"]) for event in events]


@pytest.fixture
async def bench(nursery: trio.Nursery) -> Bench:
    return Bench(nursery, FakeRuntime())


def award_of(workload: Workload, replicas: int) -> Award:
    return Award(
        tender_id=uuid4(),
        owner_identity=workload.author,
        owner_pubkey=workload.author.raw,
        winner=workload.author,
        resource=workload.resource,
        uid=workload.uid,
        generation=workload.generation,
        replicas=replicas,
        manifest_digest=workload.digest,
        sealed_digest=bytes(32),
        timestamp=1,
        nonce=1,
    )


async def test_an_award_becomes_pods_in_the_table(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    workload = record(deployment(), bench.machine.identity)
    names = await bench.keeper.deploy(workload, award_of(workload, 2), b"receipt", "crun")
    shown = bench.shown()
    assert sorted(shown) == sorted(names) and len(names) == 2
    for pod in shown.values():
        assert pod["status"]["phase"] == "Running" and pod["status"]["hostIP"] == "192.0.2.1"
        assert pod["spec"]["nodeName"] == "m1"
        assert pod["metadata"]["labels"]["magik.name"] == "web" and pod["metadata"]["labels"]["app"] == "web"
    assert len(bench.keeper.settled()) == 2
    assert ("Pod", "Scheduled") in bench.said() and ("Pod", "Started") in bench.said()


async def test_a_stateful_set_s_pods_are_named_by_their_awarded_ordinals(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    workload = record(stateful_set(), bench.machine.identity)
    award = evolve(award_of(workload, 2), ordinals=(0, 2))
    assert await bench.keeper.deploy(workload, award, b"", "crun") == ["db-0", "db-2"]
    pod = bench.shown()["db-2"]
    assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == ("db-2", "dbs")
    labels = pod["metadata"]["labels"]
    assert labels["statefulset.kubernetes.io/pod-name"] == "db-2"
    assert labels["apps.kubernetes.io/pod-index"] == "2"
    assert labels["controller-revision-hash"].startswith("db-") and "pod-template-hash" not in labels
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("StatefulSet", "db", str(workload.uid))
    again = evolve(award_of(workload, 2), ordinals=(1, 2))
    with pytest.raises(DeployError, match="ordinal 2 has a pod on this machine"):
        await bench.keeper.deploy(workload, again, b"", "crun")
    with pytest.raises(DeployError, match="names no ordinals"):
        await bench.keeper.deploy(workload, award_of(workload, 1), b"", "crun")
    assert sorted(bench.shown()) == ["db-0", "db-2"]


async def test_the_same_state_again_is_told_once(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    workload = record(deployment(), bench.machine.identity)
    await bench.keeper.deploy(workload, award_of(workload, 1), b"", "crun")
    told = bench.said()
    for state in bench.runtime.pods():
        bench.keeper.report(state)
    assert bench.said() == told


async def test_what_the_runtime_says_of_a_pod_becomes_an_event_of_it(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    workload = record(deployment(), bench.machine.identity)
    await bench.keeper.deploy(workload, award_of(workload, 1), b"", "crun")
    (state,) = bench.runtime.pods()
    bench.keeper.tell(state.uid, "Normal", "Pulling", "Pulling image")
    assert ("Pod", "Pulling") in bench.said()
    told = bench.said()
    bench.keeper.tell("not here", "Normal", "Pulled", "?")
    assert bench.said() == told


@pytest.mark.parametrize(("reason", "told"), [("ErrImagePull", False), ("CreateContainerConfigError", True)])
async def test_states_of_images_are_told_by_the_runtime_alone(
    reason: str, told: bool, bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    waiting = {"waiting": {"reason": reason, "message": "why"}}
    bench.runtime.status = lambda state: {  # type: ignore[method-assign]
        "phase": "Pending",
        "containerStatuses": [{"name": "c", "state": waiting, "restartCount": 0}],
    }
    workload = record(deployment(), bench.machine.identity)
    await bench.keeper.deploy(workload, award_of(workload, 1), b"", "crun")
    assert (("Pod", "Failed") in bench.said()) is told


async def test_pods_are_pending_while_they_start(
    bench: Bench, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    workload = record(deployment(), bench.machine.identity)
    nursery.start_soon(bench.keeper.deploy, workload, award_of(workload, 1), b"", "crun")
    await wait_all_tasks_blocked()
    (pod,) = bench.shown().values()
    assert pod["status"]["phase"] == "Pending"
    assert bench.keeper.settled() == []


async def test_an_award_of_which_a_pod_fails_is_given_back_whole(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    bench.runtime.phase = "Failed"
    bench.runtime.may_stop.set()
    workload = record(deployment(), bench.machine.identity)
    with pytest.raises(DeployError, match="no such program") as failed:
        await bench.keeper.deploy(workload, award_of(workload, 2), b"", "crun")
    assert failed.value.begun
    await wait_all_tasks_blocked()
    assert bench.shown() == {} and bench.keeper.settled() == []


async def test_of_an_award_that_the_machine_cannot_even_begin_nothing_ran(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cannot_keep(*args: object, **kwargs: object) -> None:
        raise DeployError("the disk is full")

    monkeypatch.setattr(bench.runtime, "run_pod", cannot_keep)
    workload = record(deployment(), bench.machine.identity)
    with pytest.raises(DeployError, match="the disk is full") as failed:
        await bench.keeper.deploy(workload, award_of(workload, 2), b"", "crun")
    assert not failed.value.begun and bench.shown() == {}


async def test_a_pod_that_is_stopped_shows_as_ending_until_it_is_gone(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    workload = record(deployment(), bench.machine.identity)
    await bench.keeper.deploy(workload, award_of(workload, 1), b"", "crun")
    bench.keeper.stop_workload(workload.uid)
    await wait_all_tasks_blocked()
    (pod,) = bench.shown().values()
    assert pod["metadata"]["deletionTimestamp"] and bench.runtime.graces == [30]
    bench.keeper.stop(pod["metadata"]["uid"])
    await wait_all_tasks_blocked()
    assert bench.runtime.graces == [30]  # not longer than before: nothing new
    bench.keeper.stop(pod["metadata"]["uid"], 0)
    await wait_all_tasks_blocked()
    assert bench.runtime.graces == [30, 0]
    bench.runtime.may_stop.set()
    await wait_all_tasks_blocked()
    assert bench.shown() == {}


async def test_a_new_daemon_finds_the_manifests_in_its_pods(
    bench: Bench, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    workload = record(deployment(), bench.machine.identity)
    await bench.keeper.deploy(workload, award_of(workload, 2), b"receipt", "crun")
    reborn = Bench(nursery, bench.runtime)
    assert reborn.keeper.adopt() == [workload, workload]
    assert reborn.shown().keys() == bench.shown().keys()
    assert len(reborn.keeper.of_workload(workload.uid)) == 2 and len(reborn.keeper.settled()) == 2


async def test_a_pod_whose_origin_cannot_be_read_is_stopped(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    workload = record(deployment(), bench.machine.identity)
    await bench.keeper.deploy(workload, award_of(workload, 1), b"", "crun")
    (uid, state) = next(iter(bench.runtime.states.items()))
    bench.runtime.states[uid] = evolve(state, attachment=b"\xff")
    bench.runtime.may_stop.set()
    async with opened() as nursery:
        reborn = Bench(nursery, bench.runtime)
        assert reborn.keeper.adopt() == []
    assert bench.runtime.graces == [0]


@asynccontextmanager
async def opened() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery


def test_an_attachment_comes_back_as_it_was() -> None:
    workload = record(deployment(), FakeMachine(1, Wall()).identity)
    attachment = Attachment(workload, "0123456789", "crun", b"receipt")
    assert Attachment.from_bytes(attachment.to_bytes()) == attachment
