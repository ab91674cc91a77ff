"""How a pod's health gets to its record and to the machine: with a machine that comes and goes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, field, frozen
from trio.testing import MockClock

from magik_proto.identity import Identity
from workplane.answers import Executed, State
from workplane.machine import Machine, MachineError
from workplane.standing import Standing

PROBE = {"exec": {"command": ["check"]}, "periodSeconds": 1, "failureThreshold": 1}


@define(eq=False)
class Script:
    """What the machine does, and was asked."""

    away: bool = False
    well: bool = True
    statuses: list[dict[str, Any]] = field(factory=list)
    restarts: list[str] = field(factory=list)


@frozen(eq=False)
class FakeMachine(Machine):
    """A machine of which only the calls of the pod's health matter."""

    url: str = ""
    token: str = ""
    script: Script = field(factory=Script)

    async def put_status(self, status: Any) -> None:
        await self._here()
        self.script.statuses.append(status)

    async def restart(self, container: str, reason: str) -> None:
        await self._here()
        self.script.restarts.append(container)

    async def execute(self, container: str, command: tuple[str, ...], timeout: float) -> Executed:
        await self._here()
        return Executed(0 if self.script.well else 1, "")

    async def _here(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.script.away:
            raise MachineError("the machine", "is away")


@define(eq=False)
class Pod:
    machine: Script
    probe: str = "livenessProbe"
    told: list[tuple[bool, bool]] = field(factory=list)
    standing: Standing = field(init=False)

    def __attrs_post_init__(self) -> None:
        spec = {"containers": [{"name": "app", self.probe: PROBE}]}
        peer = Identity.generate().peer_id
        self.standing = Standing(
            {"spec": spec},
            FakeMachine(script=self.machine),
            peer,
            4701,
            lambda *standing: self.told.append(standing),
        )

    def state(self, run: str | None, **fields: Any) -> None:
        containers = {} if run is None else {"app": run}
        self.standing.take(State(version=1, containers=containers, generation=1, replicas=1, **fields))


@asynccontextmanager
async def pod_of(probe: str = "livenessProbe", **machine: Any) -> AsyncIterator[Pod]:
    pod = Pod(Script(**machine), probe)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pod.standing.run)
        await trio.sleep(0.1)
        yield pod
        nursery.cancel_scope.cancel()


async def test_the_machine_is_told_the_newest_when_it_is_back(autojump_clock: MockClock) -> None:
    async with pod_of(away=True) as pod:
        pod.state("1")
        await trio.sleep(60)
        pod.state(None)
        await trio.sleep(60)
        pod.state("2")
        assert pod.machine.statuses == []
        pod.machine.away = False
        await trio.sleep(6)
        assert pod.machine.statuses[-1]["containers"] == {"app": {"ready": True, "started": True}}
        before = len(pod.machine.statuses)
        pod.standing.again()
        await trio.sleep(1)
        assert len(pod.machine.statuses) == before + 1
        await trio.sleep(60)
        assert len(pod.machine.statuses) == before + 1


async def test_a_restart_is_asked_for_until_it_is_taken_and_the_pod_is_not_well_meanwhile(
    autojump_clock: MockClock,
) -> None:
    async with pod_of() as pod:
        pod.state("1")
        assert pod.told[-1] == (True, True)
        pod.machine.well = False
        pod.machine.away = True  # exec fails too, and so does the probe
        await trio.sleep(30)
        assert pod.told[-1] == (False, False) and pod.machine.restarts == []
        pod.machine.away = False
        await trio.sleep(6)
        assert pod.machine.restarts == ["app"]
        pod.machine.well = True
        pod.state("2")
        await trio.sleep(5)
        assert pod.told[-1] == (True, True) and pod.machine.restarts == ["app"]


async def test_a_container_that_runs_anew_by_itself_is_not_restarted_again(
    autojump_clock: MockClock,
) -> None:
    async with pod_of() as pod:
        pod.state("1")
        pod.machine.well, pod.machine.away = False, True
        await trio.sleep(30)
        pod.machine.well, pod.machine.away = True, False
        pod.state("2")
        await trio.sleep(30)
        assert pod.machine.restarts == [] and pod.told[-1] == (True, True)


async def test_the_machine_hears_why_a_container_is_not_ready(autojump_clock: MockClock) -> None:
    async with pod_of(probe="readinessProbe", well=False) as pod:
        pod.state("1")
        await trio.sleep(20)
        (told,) = [s for s in pod.machine.statuses if "message" in s["containers"].get("app", {})]
        assert told["containers"]["app"] == {
            "ready": False,
            "started": True,
            "message": "Readiness probe failed: exit code 1",
        }
        pod.machine.well = True
        await trio.sleep(5)
        assert pod.machine.statuses[-1]["containers"]["app"] == {"ready": True, "started": True}


async def test_a_pod_that_is_being_stopped_is_not_ready(autojump_clock: MockClock) -> None:
    async with pod_of() as pod:
        pod.state("1")
        pod.state("1", terminating=True)
        assert pod.told[-1] == (False, True)


async def test_a_probe_that_cannot_be_keeps_the_pod_from_being_ready(autojump_clock: MockClock) -> None:
    told: list[tuple[bool, bool]] = []
    spec = {"containers": [{"name": "app", "readinessProbe": {"httpGet": {"port": 1, "host": "10.0.0.1"}}}]}
    standing = Standing({"spec": spec}, None, Identity.generate().peer_id, 1, lambda *pair: told.append(pair))
    standing.run_all("by hand")
    standing.take(State(version=1, containers={"app": "1"}, generation=1, replicas=1))
    assert told == [(False, False)]
