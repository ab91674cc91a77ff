"""Keeping the probes of a pod's containers: drives `workplane.probes` by `workplane.checks`.

Each container has a task that waits until a probe is due, or until the machine says that the container runs anew; each check
runs beside it, so that a slow one holds up no other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import trio
from attrs import define, field

from workplane.checks import Result, carry_out
from workplane.probes import ContainerProbes, Kind, Output, Probe, probes_of

Execute = Callable[[str, tuple[str, ...], float], Awaitable[Result]]
"""Runs a command in the container of a name, in as many seconds at most."""
Tell = Callable[[str, Output], None]
"""Hears what became of the container of a name."""

MESSAGE_LENGTH: Final = 200
"""Characters of a check's message that are passed on: an app's answer may be anything."""


@define
class _Container:
    name: str
    probes: ContainerProbes
    run: object = None
    moved: trio.Event = field(factory=trio.Event)

    def wake(self) -> None:
        self.moved.set()
        self.moved = trio.Event()


class Health:
    """All containers of a pod. Tell it which of them run; it tells `tell` which are started, ready, or to be restarted."""

    def __init__(
        self,
        pod: Mapping[str, Any],
        execute: Execute,
        tell: Tell,
        failed: Callable[[str, str], None] = lambda name, message: None,
    ) -> None:
        """``pod`` is the v1 Pod; ``failed`` hears of each check that was not well. Raises `workplane.probes.ProbeError`."""
        self._failed = failed
        self.counts: dict[
            tuple[str, str, bool], int
        ] = {}  # checks by container, probe, and whether it was well
        self._execute = execute
        self._tell = tell
        spec = pod["spec"]
        kept = [*(c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always")]
        self._containers = {
            container["name"]: _Container(container["name"], ContainerProbes(probes_of(container)))
            for container in (*kept, *spec["containers"])
        }

    @property
    def ready(self) -> bool:
        """Whether every container is started and ready: only then the pod gets traffic."""
        return all(container.probes.standing.ready for container in self._containers.values())

    @property
    def started(self) -> bool:
        """Whether every container runs and has started."""
        return all(container.probes.standing.started for container in self._containers.values())

    def running(self, name: str, run: object) -> None:
        """A container runs; ``run`` names this start of it (its id). Of a name that is not the pod's nothing is kept."""
        container = self._containers.get(name)
        if container is not None:
            container.run = run
            self._say(container, container.probes.running(run, trio.current_time()))
            container.wake()

    def stopped(self, name: str) -> None:
        """A container runs no more."""
        container = self._containers.get(name)
        if container is not None:
            container.run = None
            self._say(container, container.probes.stopped())
            container.wake()

    async def run(self) -> None:
        """Probe until cancelled."""
        async with trio.open_nursery() as nursery:
            for container in self._containers.values():
                nursery.start_soon(self._keep, container, nursery)

    async def _keep(self, container: _Container, nursery: trio.Nursery) -> None:
        while True:
            moved, due_at = container.moved, container.probes.next_timeout()
            with trio.move_on_at(float("inf") if due_at is None else due_at):
                await moved.wait()
            for kind, probe in container.probes.due(trio.current_time()):
                nursery.start_soon(self._ask, container, container.run, kind, probe)

    async def _ask(self, container: _Container, run: object, kind: Kind, probe: Probe) -> None:
        async def execute(command: tuple[str, ...], timeout: float) -> Result:
            return await self._execute(container.name, command, timeout)

        result = await carry_out(probe, execute)
        counted = (container.name, kind.value.removesuffix("Probe"), result.well)
        self.counts[counted] = self.counts.get(counted, 0) + 1
        message = result.message[:MESSAGE_LENGTH]
        if not result.well and run == container.run:
            self._failed(container.name, f"{counted[1].capitalize()} probe failed: {message}")
        self._say(container, container.probes.result(kind, run, result.well, message, trio.current_time()))
        container.wake()

    def _say(self, container: _Container, outputs: list[Output]) -> None:
        for output in outputs:
            self._tell(container.name, output)
