"""Pure rules: when a container is restarted, after how long, and what phase its pod is in."""

from collections.abc import Collection, Mapping
from typing import Any

from attrs import evolve

from machineplane.runtime.status import ContainerStatus, PodStatus, has_initialized

# Kubernetes' numbers: the first restart at once, then 10 s doubling to 5 min, forgotten after 10 min of running.
FIRST_BACKOFF_S = 10.0
MAX_BACKOFF_S = 300.0
RESET_AFTER_S = 600.0


def restart_policy(status: PodStatus, container: ContainerStatus) -> str:
    """Always, OnFailure or Never; an init container that has done its work is not run again, a sidecar always."""
    if container.sidecar:
        return "Always"
    policy = str(status.pod["spec"].get("restartPolicy") or "Always")
    return "OnFailure" if container.init and policy == "Always" else policy


def should_restart(status: PodStatus, container: ContainerStatus) -> bool:
    """Whether a terminated container is to be run again."""
    policy = restart_policy(status, container)
    return policy == "Always" or (policy == "OnFailure" and container.exit_code != 0)


def next_backoff(previous: float | None, ran_s: float) -> float:
    """Seconds to wait before the next restart: ``previous`` was the last wait (none: never restarted)."""
    if previous is None or ran_s >= RESET_AFTER_S:
        return 0.0
    return min(previous * 2, MAX_BACKOFF_S) if previous else FIRST_BACKOFF_S


def probes_of(pod: Mapping[str, Any], name: str) -> frozenset[str]:
    """Which probes a container of this name has: readinessProbe, startupProbe, livenessProbe."""
    spec = pod.get("spec") or {}
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        if container.get("name") == name:
            return frozenset(key for key in container if key.endswith("Probe") and container[key])
    return frozenset()


def with_standing(container: ContainerStatus, probes: Collection[str]) -> ContainerStatus:
    """Whether a container is started and ready: if it runs, and, where it has ``probes`` for it, its agent has said so."""
    started = container.state == "running" and ("startupProbe" not in probes or bool(container.said_started))
    ready = started and ("readinessProbe" not in probes or bool(container.said_ready))
    return evolve(container, started=started, ready=ready)


def _finished(status: PodStatus, container: ContainerStatus) -> bool:
    return container.state == "terminated" and not should_restart(status, container)


def phase(status: PodStatus) -> str:
    """Kubernetes' pod phase by the containers' states."""
    init, apps = status.init_containers, status.app_containers
    if any(_finished(status, c) and c.exit_code != 0 for c in init):
        return "Failed"
    if not all(map(has_initialized, init)):
        return "Pending"
    if apps and all(_finished(status, c) for c in apps):
        return "Succeeded" if all(c.exit_code == 0 for c in apps) else "Failed"
    waiting_first = [c for c in apps if c.state == "waiting" and c.last is None]
    return "Pending" if waiting_first or not apps else "Running"
