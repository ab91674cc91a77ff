"""What is known of pods and their containers, for other rooms; and the same as Kubernetes' ``status`` object."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from attrs import evolve, field, frozen

CONTAINER_ID_SCHEME = "magik"


@frozen(kw_only=True)
class Termination:
    """How a container ended. Times in ms since the epoch (0: never started)."""

    id: str
    exit_code: int
    reason: str
    message: str = ""
    started_at: int = 0
    finished_at: int = 0


@frozen(kw_only=True)
class ContainerStatus:
    """One container of a pod; a ``sidecar`` is an init container that goes on running.

    ``state`` is waiting, running or terminated; times in ms since the epoch, 0 for none.
    """

    name: str
    image: str
    id: str = ""
    image_id: str = ""
    state: str = "waiting"
    reason: str = ""
    message: str = ""
    exit_code: int = 0
    pid: int = 0
    started_at: int = 0
    finished_at: int = 0
    restarts: int = 0
    ready: bool = False
    started: bool = False
    said_ready: bool | None = None  # by the pod's agent, of this run
    said_started: bool | None = None
    init: bool = False
    sidecar: bool = False
    last: Termination | None = None


@frozen(kw_only=True)
class AgentSaid:
    """The agent's last word of itself: its peer id (hex), its UDP port, and if it leads the lease's generation and term."""

    peer: str
    port: int
    leads: tuple[int, int] | None = None


@frozen(kw_only=True)
class PodStatus:
    """One pod. ``pod`` is the v1 Pod object it was run with; ``started_at`` in ms since the epoch."""

    uid: str
    name: str
    namespace: str
    pod: Mapping[str, Any]
    attachment: bytes = b""
    engine: str = "crun"
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    ip: str = ""
    started_at: int = 0
    containers: tuple[ContainerStatus, ...] = ()
    stopping: bool = False
    agent: AgentSaid | None = None
    agent_port: int = 0  # the machine's UDP port that leads to the agent; 0: none
    conditions_at: Mapping[str, int] = field(factory=dict)  # condition type -> when it last changed, ms

    @property
    def app_containers(self) -> tuple[ContainerStatus, ...]:
        """The containers of ``spec.containers``."""
        return tuple(container for container in self.containers if not container.init)

    @property
    def init_containers(self) -> tuple[ContainerStatus, ...]:
        """The containers of ``spec.initContainers``."""
        return tuple(container for container in self.containers if container.init)


@frozen
class PodGone:
    """A pod was stopped and nothing of it is left."""

    uid: str


def has_initialized(container: ContainerStatus) -> bool:
    """Whether an init container is no longer waited for: it has ended well, or, if a sidecar, has started once."""
    if container.sidecar:
        return container.started or container.last is not None or container.finished_at > 0
    return container.state == "terminated" and container.exit_code == 0


def conditions(status: PodStatus) -> dict[str, bool]:
    """Kubernetes' four pod conditions."""
    apps = status.app_containers
    running = bool(apps) and all(container.ready for container in apps)
    live = status.phase not in {"Succeeded", "Failed"}
    initialized = status.started_at > 0 and all(map(has_initialized, status.init_containers))
    return {
        "PodScheduled": True,
        "Initialized": initialized,
        "ContainersReady": running and live,
        "Ready": running and live,
    }


def with_conditions(status: PodStatus, before: PodStatus | None, now_ms: int) -> PodStatus:
    """``status`` with the time at which each condition took its present value."""
    old = conditions(before) if before else {}
    times = {
        name: before.conditions_at.get(name, now_ms) if before and old.get(name) == value else now_ms
        for name, value in conditions(status).items()
    }
    return evolve(status, conditions_at=times)


def rfc3339(ms: int) -> str | None:
    """Kubernetes' form of a time, to the second; none for 0."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if ms else None


def _present(**fields: object) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, "")}


def _container_id(raw: str) -> str:
    return f"{CONTAINER_ID_SCHEME}://{raw}" if raw else ""


def _terminated(end: Termination) -> dict[str, Any]:
    return {
        "terminated": {
            "exitCode": end.exit_code,
            **_present(
                reason=end.reason,
                message=end.message,
                startedAt=rfc3339(end.started_at),
                finishedAt=rfc3339(end.finished_at),
                containerID=_container_id(end.id),
            ),
        }
    }


def _state(container: ContainerStatus) -> dict[str, Any]:
    if container.state == "running":
        return {"running": _present(startedAt=rfc3339(container.started_at))}
    if container.state == "terminated":
        return _terminated(
            Termination(
                id=container.id,
                exit_code=container.exit_code,
                reason=container.reason,
                message=container.message,
                started_at=container.started_at,
                finished_at=container.finished_at,
            )
        )
    return {"waiting": _present(reason=container.reason, message=container.message)}


def _container_json(container: ContainerStatus) -> dict[str, Any]:
    return {
        "name": container.name,
        "image": container.image,
        "imageID": container.image_id,
        "ready": container.ready,
        "started": container.started,
        "restartCount": container.restarts,
        "state": _state(container),
        "lastState": _terminated(container.last) if container.last else {},
        **_present(containerID=_container_id(container.id)),
    }


def _conditions_json(status: PodStatus) -> list[dict[str, Any]]:
    return [
        {
            "type": name,
            "status": "True" if value else "False",
            "lastProbeTime": None,
            "lastTransitionTime": rfc3339(status.conditions_at.get(name, status.started_at)),
        }
        for name, value in conditions(status).items()
    ]


def pod_status_json(status: PodStatus) -> dict[str, Any]:
    """The ``status`` object of the v1 Pod."""
    init = [_container_json(container) for container in status.init_containers]
    return {
        "phase": status.phase,
        "conditions": _conditions_json(status),
        "qosClass": qos_class(status.pod),
        "containerStatuses": [_container_json(container) for container in status.app_containers],
        **({"initContainerStatuses": init} if init else {}),
        **({"podIPs": [{"ip": status.ip}]} if status.ip else {}),
        **_present(
            reason=status.reason,
            message=status.message,
            podIP=status.ip,
            startTime=rfc3339(status.started_at),
        ),
    }


def qos_class(pod: Mapping[str, Any]) -> str:
    """Guaranteed, Burstable or BestEffort, by Kubernetes' rule on requests and limits of cpu and memory."""
    spec = pod.get("spec")
    if not isinstance(spec, Mapping) or not all(isinstance(c, Mapping) for c in spec.get("containers") or []):
        return "BestEffort"  # a malformed pod, which is shown as failed
    resources = [
        c.get("resources") or {} for c in (spec.get("containers") or []) + (spec.get("initContainers") or [])
    ]
    amounts = [(r.get("requests") or {}, r.get("limits") or {}) for r in resources]
    if not any(values.get(name) for pair in amounts for values in pair for name in ("cpu", "memory")):
        return "BestEffort"
    guaranteed = all(
        limits.get(name) and requests.get(name, limits[name]) == limits[name]
        for requests, limits in amounts
        for name in ("cpu", "memory")
    )
    return "Guaranteed" if guaranteed else "Burstable"
