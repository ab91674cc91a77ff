"""The probes of a pod under way: containers that start, fail, hang and are restarted, under a clock that jumps."""

from typing import Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from workplane.checks import Result
from workplane.health import Health
from workplane.probes import Changed, Output, Restart

COMMAND = {"exec": {"command": ["check"]}, "periodSeconds": 10, "timeoutSeconds": 2}


class Pod:
    """A pod whose containers' exec probes answer as the test says; ``hang`` answers nothing."""

    def __init__(self, **containers: dict[str, Any]) -> None:
        self.well = dict.fromkeys(containers, True)
        self.hang: set[str] = set()
        self.asked: list[tuple[str, float]] = []
        self.said: list[tuple[str, Output]] = []
        spec = {"containers": [{"name": name, **probes} for name, probes in containers.items()]}
        self.health = Health(
            {"spec": spec}, self.execute, lambda name, output: self.said.append((name, output))
        )

    async def execute(self, name: str, command: tuple[str, ...], timeout: float) -> Result:
        self.asked.append((name, trio.current_time()))
        if name in self.hang:
            await trio.sleep_forever()
        return Result(self.well[name], "" if self.well[name] else "exit code 1")


async def test_a_pod_is_ready_when_all_its_containers_are(autojump_clock: MockClock) -> None:
    pod = Pod(app={"readinessProbe": COMMAND}, side={})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pod.health.run)
        pod.health.running("app", "a")
        await trio.sleep(1)
        assert not pod.health.ready
        pod.health.running("side", "s")
        assert pod.health.ready and pod.health.started
        pod.health.running("unheard of", "x")
        pod.health.stopped("side")
        assert not pod.health.ready
        nursery.cancel_scope.cancel()
    assert ("app", Changed(started=True, ready=True)) in pod.said
    assert pod.said[-1] == ("side", Changed(started=False, ready=False))


async def test_probes_keep_their_period_whatever_others_do(autojump_clock: MockClock) -> None:
    pod = Pod(slow={"livenessProbe": COMMAND}, app={"livenessProbe": {**COMMAND, "periodSeconds": 3}})
    pod.hang.add("slow")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pod.health.run)
        pod.health.running("slow", 1)
        pod.health.running("app", 1)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert [at for name, at in pod.asked if name == "app"] == [0, 3, 6, 9]


async def test_a_container_that_hangs_is_restarted_and_probed_anew(autojump_clock: MockClock) -> None:
    pod = Pod(app={"livenessProbe": {**COMMAND, "failureThreshold": 2, "initialDelaySeconds": 5}})
    pod.hang.add("app")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pod.health.run)
        pod.health.running("app", "first")
        await trio.sleep(60)
        # Asked at 5; given up at 7, asked again 10 later, given up at 19.
        assert [at for _, at in pod.asked] == [5, 17]
        assert ("app", Restart("liveness probe failed: no answer within 2 s")) in pod.said
        pod.hang.clear()
        pod.health.running("app", "second")
        await trio.sleep(6)
        assert pod.asked[-1] == ("app", 65) and pod.health.ready
        nursery.cancel_scope.cancel()


async def test_the_end_of_a_run_is_no_verdict_on_the_next(autojump_clock: MockClock) -> None:
    pod = Pod(app={"readinessProbe": {**COMMAND, "timeoutSeconds": 8}})
    pod.hang.add("app")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pod.health.run)
        pod.health.running("app", 1)
        await wait_all_tasks_blocked()
        pod.health.stopped("app")
        pod.hang.clear()
        pod.health.running("app", 2)
        await trio.sleep(9)
        assert pod.health.ready
        nursery.cancel_scope.cancel()
