"""What a pod's agent has done to its own pod."""

import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import trio
from attrs import evolve, field, frozen

from machineplane.runtime.bundle.supported import all_containers
from machineplane.runtime.changes import PodEvent
from machineplane.runtime.ending import ask_to_end
from machineplane.runtime.errors import HelperError, HelperLost, PodNotFound, SessionUnavailable
from machineplane.runtime.execs import running_container
from machineplane.runtime.live import LivePod
from machineplane.runtime.status import AgentSaid
from machineplane.runtime.worker import PodWorker


@frozen
class ContainerSaid:
    """Whether a container is ready and started, and what its last failing probe said."""

    ready: bool
    started: bool
    message: str = ""


@frozen(kw_only=True)
class Words:
    """Containers by name, and the agent itself."""

    containers: Mapping[str, ContainerSaid] = field(factory=dict)
    agent: AgentSaid | None = None


def report(worker: PodWorker, words: Words) -> None:
    """Note what the agent says. Of containers that are not the pod's, or do not run, nothing is kept."""
    book = worker.book
    for status in book.status.containers:
        said = words.containers.get(status.name)
        if said is None or status.state != "running":
            continue
        fresh = book.update_container(status.name, said_ready=said.ready, said_started=said.started)
        if (
            said.message
            and not fresh.ready
            and (status.said_ready, status.said_started)
            != (
                said.ready,
                said.started,
            )
        ):
            _event(worker, "Warning", "Unhealthy", said.message)
    if words.agent is not None:
        book.update_status(agent=words.agent)
    worker.reported()


def claim_key(worker: PodWorker, key: str) -> bool:
    """Bind this run of the agent to a key; false where it has another one."""
    agent = worker.book.record.agent
    if agent is None:
        raise PodNotFound(f"the pod {worker.book.status.name} has no agent")
    if not agent.key:
        worker.book.update(agent=evolve(agent, key=key))
    return agent.key in ("", key)


def begin_restart(worker: PodWorker, name: str, reason: str) -> Callable[[], Awaitable[None]]:
    """Tell of a container that is not alive; the task that ends it.

    Raises:
        SessionUnavailable: no such container, it does not run, or the pod's helper is gone.
    """
    container_id = running_container(worker, name)
    try:
        live = worker.live
    except HelperLost as error:
        raise SessionUnavailable(str(error)) from error
    spec = next(container for container, _ in all_containers(live.pod) if container["name"] == name)

    async def nothing() -> None:
        return

    async def end() -> None:
        try:
            await _end(live, spec, container_id)
        finally:
            worker.being_restarted.discard(container_id)

    if container_id in worker.being_restarted or worker.book.status.stopping:
        return nothing
    worker.being_restarted.add(container_id)
    _event(worker, "Warning", "Unhealthy", reason)
    _event(worker, "Normal", "Killing", f"Container {name} failed its probe, and is restarted")
    return end


async def _end(live: LivePod, spec: Mapping[str, Any], container_id: str) -> None:
    with suppress(HelperError):  # it, or its helper, is gone meanwhile
        with trio.move_on_after(_grace(live, spec)):
            await ask_to_end(live, spec, container_id)
            await live.link.wait_exit(container_id)
            return
        await live.link.kill(container_id, signal.SIGKILL)


def _grace(live: LivePod, spec: Mapping[str, Any]) -> float:
    """Seconds: the probe's own, else the pod's."""
    for probe in (spec.get("livenessProbe") or {}, spec.get("startupProbe") or {}, live.pod["spec"]):
        if isinstance(grace := probe.get("terminationGracePeriodSeconds"), int | float):
            return max(float(grace), 0.0)
    return live.services.config.grace_s


def _event(worker: PodWorker, kind: str, reason: str, message: str) -> None:
    worker.publish(PodEvent(worker.uid, kind, reason, message))
