"""How the pod stands: what health finds goes into the own record and to the machine, and restarts are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog
import trio

from magik_proto.identity import PeerId
from workplane.answers import State
from workplane.checks import Result
from workplane.health import Health
from workplane.machine import Machine, MachineError, patiently
from workplane.probes import Changed, Output, ProbeError

Told = Callable[[bool, bool], None]
"""Hears whether the pod is ready, and healthy."""


class Standing:
    """The pod's health and those who hear of it. `machine` is None where nobody runs the containers for the agent."""

    def __init__(
        self, pod: Mapping[str, Any], machine: Machine | None, peer: PeerId, port: int, told: Told
    ) -> None:
        self._pod = pod
        self._machine = machine
        self._agent = {"peer": str(peer), "port": port}
        self._told = told
        self._log = structlog.get_logger(part="health")
        self._containers: dict[str, Changed] = {}
        self._messages: dict[str, str] = {}
        self._leader: Mapping[str, int] | None = None
        self._running: dict[str, str] = {}
        self._failing: dict[str, trio.CancelScope] = {}
        self._news = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._terminating = False
        self.restarts = 0
        self.health = self._make_health(pod)

    @property
    def ready(self) -> bool:
        """Whether the pod may be sent traffic: not any more once it is being stopped."""
        return self.health is not None and self.health.ready and not self._terminating

    @property
    def healthy(self) -> bool:
        """Whether all its containers run, have started, and none is about to be restarted."""
        return self.health is not None and self.health.started and not self._failing

    def take(self, state: State) -> None:
        """The machine says which containers run."""
        self._terminating = state.terminating
        for name in sorted(self._running.keys() - state.containers.keys()):
            del self._running[name]
            self._settled(name)
            if self.health is not None:
                self.health.stopped(name)
        for name, run in state.containers.items():
            self._runs(name, run)
        self._told(self.ready, self.healthy)

    def run_all(self, run: str) -> None:
        """All containers run: there is nobody to say which."""
        for container in self._pod["spec"]["containers"]:
            self._runs(container["name"], run)

    def lead(self, leader: Mapping[str, int] | None) -> None:
        """The own token as a leader, to be shown by the machine; None while this replica does not lead."""
        self._leader = leader
        self._news.set()

    def again(self) -> None:
        """Tell the machine everything: it may have forgotten."""
        self._news.set()

    async def run(self) -> None:
        """Probe, and tell, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self.health is not None:
                nursery.start_soon(self.health.run)
            if self._machine is not None:
                nursery.start_soon(self._report, self._machine)
            await trio.sleep_forever()

    def _runs(self, name: str, run: str) -> None:
        if self._running.get(name) != run:
            self._running[name] = run
            self._settled(name)
            if self.health is not None:
                self.health.running(name, run)

    def _make_health(self, pod: Mapping[str, Any]) -> Health | None:
        try:
            return Health(pod, self._execute, self._hear, self._failed)
        except ProbeError as error:
            self._log.error("pod-never-ready", error=str(error), advice="correct the probe in the manifest")
            return None

    async def _execute(self, container: str, command: tuple[str, ...], timeout: float) -> Result:
        if self._machine is None:
            return Result(False, "no machine runs the command: exec probes need one")
        try:
            done = await self._machine.execute(container, command, timeout)
        except MachineError as error:
            return Result(False, str(error))
        return Result(done.exit_code == 0, done.output or f"exit code {done.exit_code}")

    def _hear(self, name: str, output: Output) -> None:
        if isinstance(output, Changed):
            self._containers[name] = output
            if output.ready:
                self._messages.pop(name, None)
            self._news.set()
        else:
            self._log.warning("restart", container=name, reason=output.reason)
            self._ask_restart(name, output.reason)
        self._told(self.ready, self.healthy)

    def _failed(self, name: str, message: str) -> None:
        """For the machine to show; the same once more is no news."""
        if self._messages.get(name) != message:
            self._messages[name] = message
            self._news.set()

    def _ask_restart(self, name: str, reason: str) -> None:
        self.restarts += 1
        self._settled(name)
        scope = self._failing[name] = trio.CancelScope()
        if self._machine is not None and self._nursery is not None:
            self._nursery.start_soon(self._restart, self._machine, name, reason, scope)

    def _settled(self, name: str) -> None:
        """The container runs anew, or not at all: nothing is left to ask for."""
        scope = self._failing.pop(name, None)
        if scope is not None:
            scope.cancel()

    async def _restart(self, machine: Machine, name: str, reason: str, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await patiently(lambda: machine.restart(name, reason), unless=404)
            except MachineError as error:
                self._log.error("restart-refused", container=name, error=str(error))

    async def _report(self, machine: Machine) -> None:
        while True:
            self._news = trio.Event()
            await patiently(lambda: machine.put_status(self._status()))
            await self._news.wait()

    def _status(self) -> dict[str, Any]:
        containers: dict[str, dict[str, Any]] = {
            name: {"ready": standing.ready, "started": standing.started}
            for name, standing in sorted(self._containers.items())
        }
        for name, message in self._messages.items():
            if name in containers:
                containers[name]["message"] = message
        return {"containers": containers, "agent": self._agent, "leader": self._leader}
