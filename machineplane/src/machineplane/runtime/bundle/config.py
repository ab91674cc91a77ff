"""The OCI configuration (runtime-spec 1.0) of a pod's infra container and of its own containers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from machineplane.runtime.bundle.env import arguments, environment
from machineplane.runtime.bundle.quantity import linux_resources
from machineplane.runtime.bundle.users import capabilities, process_user
from machineplane.runtime.bundle.volumes import volume_mounts, volumes
from machineplane.runtime.errors import PodSpecError
from machineplane.runtime.images.model import ImageConfig
from machineplane.runtime.status import qos_class

Json = dict[str, Any]

# What Docker hides and write-protects under /proc and /sys, from its documentation.
MASKED_PATHS = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
]
READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

NOBODY = 65534
_MAX_HOSTNAME = 63
_BEST_EFFORT_OOM_SCORE = 1000  # Kubernetes' value for pods that ask for nothing
_INFRA_MEMORY = 64 * 1024 * 1024
_INFRA_PIDS = 16


@frozen(kw_only=True)
class BundleContext:
    """What a configuration needs beside the container's spec. ``layers`` are the image's, lowest first."""

    pod: Mapping[str, Any]
    pod_dir: Path
    bundle: Path
    cgroup: str
    cgroup_mode: str
    image: ImageConfig
    layers: tuple[Path, ...]
    node_name: str = ""
    pod_ip: str = ""
    infra_pid: int = 0
    pids_limit: int = 4096


def hostname(pod: Mapping[str, Any]) -> str:
    """``spec.hostname``, else the pod's name, cut to what the kernel takes."""
    return str((pod.get("spec") or {}).get("hostname") or pod["metadata"]["name"])[:_MAX_HOSTNAME]


def _mount(destination: str, kind: str, source: str, *options: str) -> Json:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _system_mounts(pod_dir: Path) -> list[Json]:
    hidden = ("nosuid", "noexec", "nodev")
    return [
        _mount("/proc", "proc", "proc", *hidden),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ),
        _mount("/dev/mqueue", "mqueue", "mqueue", *hidden),
        _mount("/dev/shm", "bind", str(pod_dir / "shm"), "bind", "rw", "nosuid", "nodev", "noexec"),
        _mount("/sys", "sysfs", "sysfs", *hidden, "ro"),
    ]


def _file_mounts(container: Mapping[str, Any], pod_dir: Path) -> list[Json]:
    own = {mount.get("mountPath", "").rstrip("/") for mount in container.get("volumeMounts") or []}
    names = ("hosts", "resolv.conf", "hostname")
    return [
        _mount(f"/etc/{name}", "bind", str(pod_dir / "etc" / name), "bind", "rprivate", "rw")
        for name in names
        if f"/etc/{name}" not in own
    ]


def _linux(
    context: BundleContext, resources: Json, namespaces: list[Json], *, privileged: bool = False
) -> Json:
    linux: Json = {"namespaces": namespaces, "cgroupsPath": context.cgroup}
    if context.cgroup_mode != "none":
        linux["resources"] = resources
    if not privileged:
        linux |= {"maskedPaths": MASKED_PATHS, "readonlyPaths": READONLY_PATHS}
    return linux


def _working_directory(container: Mapping[str, Any], image: ImageConfig) -> str:
    path = str(container.get("workingDir") or image.working_dir or "/")
    if not path.startswith("/"):
        raise PodSpecError(f"the working directory {path!r} is not absolute")
    return path


def _process(container: Mapping[str, Any], context: BundleContext) -> Json:
    pod_security = (context.pod.get("spec") or {}).get("securityContext") or {}
    security = container.get("securityContext") or {}
    values = environment(
        container,
        context.image.env,
        context.pod,
        hostname=hostname(context.pod),
        pod_ip=context.pod_ip,
        node_name=context.node_name,
    )
    process: Json = {
        "terminal": False,
        "user": process_user(security, pod_security, context.image.user, context.layers),
        "args": arguments(container, context.image.entrypoint, context.image.cmd, values),
        "env": [f"{name}={value}" for name, value in values.items()],
        "cwd": _working_directory(container, context.image),
        "capabilities": capabilities(security, devices_filtered=context.cgroup_mode != "none"),
        "noNewPrivileges": security.get("allowPrivilegeEscalation") is False,
    }
    if qos_class(context.pod) == "BestEffort":
        process["oomScoreAdj"] = _BEST_EFFORT_OOM_SCORE
    return process


def container_config(container: Mapping[str, Any], context: BundleContext) -> Json:
    """The configuration of one of the pod's own containers, which joins the infra container's namespaces.

    Raises:
        PodSpecError: the spec and the image together do not make a runnable container; says why.
    """
    security = container.get("securityContext") or {}
    shared = {"network": "net", "ipc": "ipc", "uts": "uts"}
    namespaces: list[Json] = [{"type": "pid"}, {"type": "mount"}]
    namespaces += [
        {"type": kind, "path": f"/proc/{context.infra_pid}/ns/{name}"} for kind, name in shared.items()
    ]
    resources = linux_resources(
        container.get("resources") or {}, context.pids_limit, f"{container['name']}.resources"
    )
    mounts = _system_mounts(context.pod_dir) + _file_mounts(container, context.pod_dir)
    mounts += volume_mounts(container, context.pod_dir, volumes(context.pod["spec"]))
    return {
        "ociVersion": "1.0.2",
        "process": _process(container, context),
        "root": {
            "path": str(context.bundle / "rootfs"),
            "readonly": bool(security.get("readOnlyRootFilesystem")),
        },
        "mounts": mounts,
        "linux": _linux(context, resources, namespaces, privileged=bool(security.get("privileged"))),
    }


def infra_config(context: BundleContext) -> Json:
    """The configuration of the infra container, which makes the pod's network, IPC and host-name namespaces.

    It runs as nobody, without capabilities, on a read-only root.
    """
    fixed = {"limits": {"memory": str(_INFRA_MEMORY)}, "requests": {"cpu": "2m"}}
    linux = _linux(
        context,
        linux_resources(fixed, _INFRA_PIDS, "infra"),
        [{"type": kind} for kind in ("pid", "mount", "network", "ipc", "uts")],
    )
    # As other runtimes have it: any port may be bound, and ping needs no capability, inside the pod's network.
    linux["sysctl"] = {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647",
    }
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": NOBODY, "gid": NOBODY},
            "args": [*context.image.entrypoint, *context.image.cmd],
            "env": ["PATH=/"],
            "cwd": "/",
            "capabilities": {"bounding": [], "effective": [], "permitted": []},
            "noNewPrivileges": True,
        },
        "root": {"path": str(context.bundle / "rootfs"), "readonly": True},
        "hostname": hostname(context.pod),
        "mounts": _system_mounts(context.pod_dir),
        "linux": linux,
    }
