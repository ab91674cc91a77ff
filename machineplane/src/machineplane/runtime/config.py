"""What the runtime room is told. Frozen, and validated when it is made."""

from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen, validators

from machineplane.runtime import slices
from machineplane.runtime.bundle.hostpolicy import HostPolicy
from machineplane.runtime.krun.boot import BOOT_TIMEOUT_S

MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path, from ``sockaddr_un`` without its closing zero."""
DEFAULT_GRACE_S = 30.0
"""Kubernetes' default ``terminationGracePeriodSeconds``."""

_UID_LENGTH = 36  # a UUID in text
_LONGEST_NUMBER = 999_999_999


def grace_of(spec: object, default: float = DEFAULT_GRACE_S) -> float:
    """Seconds that a pod's containers have to end, by its spec; ``default`` where that gives no number."""
    own = spec.get("terminationGracePeriodSeconds") if isinstance(spec, Mapping) else None
    return max(float(own), 0.0) if isinstance(own, int | float) else default


def _short_enough(instance: "RuntimeConfig", attribute: object, value: Path) -> None:
    longest = len(bytes(instance.console_path("u" * _UID_LENGTH, _LONGEST_NUMBER)))
    if longest > MAX_SOCKET_PATH:
        raise ValueError(
            f"the run directory {value} is too long by {longest - MAX_SOCKET_PATH} bytes; use a shorter one"
        )


def _clean_parent(instance: "RuntimeConfig", attribute: object, value: str) -> None:
    parts = value.strip("/").split("/")
    if not value.strip("/") or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"the cgroup parent {value!r} is not a path below the root")


def boot_memory(state_dir: Path) -> Path:
    """Where the trial boot of a microVM is remembered."""
    return state_dir / "krun.json"


@frozen(kw_only=True)
class RuntimeConfig:
    """Where the room keeps things and what it allows. Times are seconds, sizes bytes.

    ``state_dir`` must be on a file system that can carry overlay's upper layer (not itself an overlay).
    """

    state_dir: Path
    run_dir: Path = field(default=Path("/run/magik"), validator=_short_enough)
    cgroup_parent: str = field(default="magik", validator=_clean_parent)
    cgroup_driver: str = field(default=slices.CGROUPFS, validator=validators.in_(slices.DRIVERS))
    default_engine: str = "crun"
    node_name: str = ""
    pause_image: str = "localhost/magik/pause:latest"
    agent_image: str = "localhost/magik/workplane:latest"
    registries: Path | None = None  # the file of --registry-config
    host_ip: str = ""
    policy: HostPolicy = field(factory=HostPolicy)
    grace_s: float = DEFAULT_GRACE_S
    krun_library: Path | None = (
        None  # a libkrun of which only the trial boot is asked; else one is looked for
    )
    krun_boot_s: float = BOOT_TIMEOUT_S  # how long the trial boot may take
    pids_limit: int = 4096  # per container, a guess; Kubernetes leaves it to the machine

    @property
    def pods_dir(self) -> Path:
        """One folder for each pod."""
        return self.state_dir / "pods"

    @property
    def boot_memory(self) -> Path:
        """What the trial boot of a microVM said."""
        return boot_memory(self.state_dir)

    def pod_dir(self, uid: str) -> Path:
        """Everything that is kept of one pod, save its socket."""
        return self.pods_dir / uid

    def socket_path(self, uid: str) -> Path:
        """Where a pod's shim listens."""
        return self.run_dir / "pods" / f"{uid}.sock"

    def console_path(self, uid: str, number: int) -> Path:
        """Where the daemon waits for a terminal from inside a pod."""
        return self.run_dir / "pods" / f"{uid}.tty{number}"

    def pod_cgroup(self, uid: str) -> str:
        """The control group that holds a pod's containers, relative to the hierarchy's root."""
        if self.cgroup_driver == slices.SYSTEMD:
            return slices.pod_path(self.cgroup_parent, uid)
        return f"{self.pods_cgroup}/{uid}"

    def container_cgroup(self, uid: str, container_id: str) -> str:
        """The control group of one container of a pod, likewise."""
        pod, short = self.pod_cgroup(uid), container_id[:12]
        return slices.container_path(pod, short) if self.cgroup_driver == slices.SYSTEMD else f"{pod}/{short}"

    @property
    def pods_cgroup(self) -> str:
        """The control group right below which those of pods are, likewise."""
        if self.cgroup_driver == slices.SYSTEMD:
            return slices.path_of(slices.slice_of(self.cgroup_parent))
        return f"/{self.cgroup_parent.strip('/')}"
