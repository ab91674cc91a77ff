"""The OCI configuration (runtime-spec 1.0) of a pod's infra container and of its own containers."""

import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from machineplane.runtime.bundle.env import Surroundings, arguments, environment, own_variables
from machineplane.runtime.bundle.fields import Place
from machineplane.runtime.bundle.hostpolicy import HostPolicy
from machineplane.runtime.bundle.objects import Lookup, nothing
from machineplane.runtime.bundle.quantity import linux_resources
from machineplane.runtime.bundle.seccomp import profile_of
from machineplane.runtime.bundle.sysctls import sysctls
from machineplane.runtime.bundle.users import capabilities, process_user
from machineplane.runtime.bundle.volumes import Bind, container_binds, volume_mounts, volumes
from machineplane.runtime.errors import PodSpecError
from machineplane.runtime.images.model import ImageConfig
from machineplane.runtime.slices import oci_path
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
_MAX_OPEN_FILES = 1024 * 1024  # as other runtimes have it; less where this process may not give so many
_BEST_EFFORT_OOM_SCORE = 1000  # Kubernetes' value for pods that ask for nothing
_INFRA_MEMORY = 64 * 1024 * 1024
_INFRA_PIDS = 16
# Guesses: an idle agent is meant to take 40 MiB, and each connection that it carries some more.
_AGENT_RESOURCES = {"limits": {"memory": str(160 * 1024 * 1024)}, "requests": {"cpu": "100m"}}
_AGENT_PIDS = 64
AGENT_FOLDER = "/run/magik/agent"
APP_FOLDER = "/run/magik/app"
CLUSTER_DOMAIN = "cluster.local"  # Kubernetes' default
TERMINATION_LOG = "/dev/termination-log"


@frozen(kw_only=True)
class BundleContext:
    """What a configuration needs beside the container's spec. ``layers`` are the image's, lowest first.

    ``private`` is the container's folder in the pod's file system in memory; ``agent``: whether the pod has an agent.
    """

    pod: Mapping[str, Any]
    pod_dir: Path
    bundle: Path
    private: Path
    cgroup: str
    cgroup_mode: str
    image: ImageConfig
    layers: tuple[Path, ...]
    place: Place = field(factory=Place)
    lookup: Lookup = nothing
    policy: HostPolicy = field(factory=HostPolicy)
    infra_pid: int = 0
    pids_limit: int = 4096
    agent: bool = False

    @property
    def spec(self) -> Mapping[str, Any]:
        """The pod's."""
        return self.pod.get("spec") or {}

    @property
    def security(self) -> Mapping[str, Any]:
        """The pod's security context."""
        return self.spec.get("securityContext") or {}


@frozen(kw_only=True)
class Bundle:
    """A container's configuration, and the paths to be looked up for its mounts: where to put it, and what.

    ``files`` by their names are to lie beside the configuration, in memory.
    """

    config: Json
    binds: Mapping[Path, Bind]
    files: Mapping[str, str] = field(factory=dict)


def hostname(pod: Mapping[str, Any]) -> str:
    """``spec.hostname``, else the pod's name, cut to what the kernel takes; with its domain if the spec says so."""
    spec = pod.get("spec") or {}
    short = str(spec.get("hostname") or pod["metadata"]["name"])[:_MAX_HOSTNAME].rstrip("-.")
    full = fqdn(pod)
    return full if spec.get("setHostnameAsFQDN") and full and len(full) <= _MAX_HOSTNAME + 1 else short


def fqdn(pod: Mapping[str, Any]) -> str:
    """The pod's name in the domain of its ``spec.subdomain``; empty without one."""
    spec, metadata = pod.get("spec") or {}, pod["metadata"]
    if not spec.get("subdomain"):
        return ""
    short = str(spec.get("hostname") or metadata["name"])[:_MAX_HOSTNAME]
    return f"{short}.{spec['subdomain']}.{metadata['namespace']}.svc.{CLUSTER_DOMAIN}"


def _mount(destination: str, kind: str, source: str, *options: str) -> Json:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _system_mounts(pod_dir: Path, *, privileged: bool = False) -> list[Json]:
    hidden = ("nosuid", "noexec", "nodev")
    terminals = ("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5")
    return [
        _mount("/proc", "proc", "proc", *hidden),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", *terminals),
        _mount("/dev/mqueue", "mqueue", "mqueue", *hidden),
        _mount("/dev/shm", "bind", str(pod_dir / "shm"), "bind", "rw", "nosuid", "nodev", "noexec"),
        _mount("/sys", "sysfs", "sysfs", *hidden, *(() if privileged else ("ro",))),
    ]


def _file_mounts(container: Mapping[str, Any], context: BundleContext, *, read_only: bool) -> list[Json]:
    own = {mount.get("mountPath", "").rstrip("/") for mount in container.get("volumeMounts") or []}
    access = "ro" if read_only else "rw"
    etc = context.pod_dir / "etc"
    files = {f"/etc/{name}": (etc / name, access) for name in ("hosts", "resolv.conf", "hostname")}
    message = str(container.get("terminationMessagePath") or TERMINATION_LOG)
    files[message] = (termination_log(context.bundle), "rw")
    mounts = [
        _mount(path, "bind", str(source), "bind", "rprivate", how)
        for path, (source, how) in files.items()
        if path not in own
    ]
    if context.agent and APP_FOLDER not in own:
        mounts.append(_agents_mount(context, APP_FOLDER, "ro"))
    return mounts


def _agents_mount(context: BundleContext, destination: str, access: str) -> Json:
    """One of the two folders of a pod's agent."""
    source = context.pod_dir / destination.rpartition("/")[2]
    options = ("bind", "rprivate", "nosuid", "nodev", "noexec", access)
    return _mount(destination, "bind", str(source), *options)


def termination_log(bundle: Path) -> Path:
    """The file that a container may write its last words to."""
    return bundle / "termination-log"


def _linux(context: BundleContext, resources: Json, namespaces: list[Json], *, masked: bool = True) -> Json:
    linux: Json = {"namespaces": namespaces, "cgroupsPath": oci_path(context.cgroup)}
    if context.cgroup_mode != "none":
        linux["resources"] = resources
    if masked:
        linux |= {"maskedPaths": MASKED_PATHS, "readonlyPaths": READONLY_PATHS}
    return linux


def _working_directory(container: Mapping[str, Any], image: ImageConfig) -> str:
    path = str(container.get("workingDir") or image.working_dir or "/")
    if not path.startswith("/"):
        raise PodSpecError(f"the working directory {path!r} is not absolute")
    return path


def _open_files() -> Json:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_OPEN_FILES)
    return {"type": "RLIMIT_NOFILE", "hard": limit, "soft": limit}


def _process(container: Mapping[str, Any], context: BundleContext, own: Mapping[str, str]) -> Json:
    security = container.get("securityContext") or {}
    values = environment(own, context.image.env, hostname(context.pod))
    process: Json = {
        "terminal": bool(container.get("tty")),
        "user": process_user(security, context.security, context.image.user, context.layers),
        "args": arguments(container, context.image.entrypoint, context.image.cmd, own),
        "env": [f"{name}={value}" for name, value in values.items()],
        "cwd": _working_directory(container, context.image),
        "capabilities": capabilities(security, devices_filtered=context.cgroup_mode != "none"),
        "noNewPrivileges": security.get("allowPrivilegeEscalation") is False,
        "rlimits": [_open_files()],
    }
    if container.get("tty") and "TERM" not in values:
        process["env"].append("TERM=xterm")
    if qos_class(context.pod) == "BestEffort":
        process["oomScoreAdj"] = _BEST_EFFORT_OOM_SCORE
    return process


def container_bundle(container: Mapping[str, Any], context: BundleContext) -> Bundle:
    """The configuration of one of the pod's own containers, which joins the infra container's namespaces.

    Raises:
        PodSpecError: the spec and the image together do not make a runnable container; says why.
        MissingReference: what it refers to is not there.
    """
    around = Surroundings(pod=context.pod, place=context.place, lookup=context.lookup)
    own = own_variables(container, around)
    security = container.get("securityContext") or {}
    privileged, read_only = bool(security.get("privileged")), bool(security.get("readOnlyRootFilesystem"))
    known = volumes(context.spec)
    binds = container_binds(container, context.pod_dir, known, own, context.policy)
    places = {index: context.private / f"bind-{index}" for index in binds}
    mounts = _system_mounts(context.pod_dir, privileged=privileged)
    mounts += _file_mounts(container, context, read_only=read_only)
    mounts += volume_mounts(container, context.pod_dir, known, places)
    process = _process(container, context, own)
    config: Json = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": str(context.bundle / "rootfs"), "readonly": read_only},
        "mounts": mounts,
        "linux": _container_linux(container, context, process["capabilities"]["bounding"]),
    }
    return Bundle(config=config, binds={places[index]: bind for index, bind in binds.items()})


def _container_linux(container: Mapping[str, Any], context: BundleContext, granted: list[str]) -> Json:
    security = container.get("securityContext") or {}
    namespaces = _joined(context)
    resources = linux_resources(
        container.get("resources") or {}, context.pids_limit, f"{container['name']}.resources"
    )
    if security.get("privileged"):
        resources["devices"] = [{"allow": True, "access": "rwm"}]
    masked = not security.get("privileged") and security.get("procMount") != "Unmasked"
    linux = _linux(context, resources, namespaces, masked=masked)
    seccomp = profile_of(security, context.security, granted, context.policy.seccomp_dir)
    return linux | ({"seccomp": seccomp} if seccomp is not None else {})


def _joined(context: BundleContext) -> list[Json]:
    """The namespaces of a container beside the infra container, which holds those that they share."""
    shared = {"network": "net", "ipc": "ipc", "uts": "uts"}
    own: list[Json] = [{"type": "pid"}, {"type": "mount"}]
    return own + [
        {"type": kind, "path": f"/proc/{context.infra_pid}/ns/{name}"} for kind, name in shared.items()
    ]


def agent_config(context: BundleContext, variables: Mapping[str, str]) -> Json:
    """The configuration of the pod's agent: nobody, without capabilities, on a read-only root, beside the infra container.

    Of the pod it sees the network and its own two folders; the resolver is the machine's.
    """
    etc = context.pod_dir / "etc"
    files = {
        "/etc/resolv.conf": etc / "agent-resolv.conf",
        "/etc/hosts": etc / "hosts",
        "/etc/hostname": etc / "hostname",
    }
    mounts = _system_mounts(context.pod_dir)
    mounts += [_mount(path, "bind", str(source), "bind", "rprivate", "ro") for path, source in files.items()]
    mounts += [_agents_mount(context, folder, "rw") for folder in (AGENT_FOLDER, APP_FOLDER)]
    linux = _linux(context, linux_resources(_AGENT_RESOURCES, _AGENT_PIDS, "agent"), _joined(context))
    linux["seccomp"] = profile_of({}, {}, (), None)
    values = environment(variables, context.image.env, hostname(context.pod))
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": NOBODY, "gid": NOBODY},
            "args": [*context.image.entrypoint, *context.image.cmd],
            "env": [f"{name}={value}" for name, value in values.items()],
            "cwd": context.image.working_dir or "/",
            "capabilities": {"bounding": [], "effective": [], "permitted": []},
            "noNewPrivileges": True,
            "rlimits": [_open_files()],
        },
        "root": {"path": str(context.bundle / "rootfs"), "readonly": True},
        "mounts": mounts,
        "linux": linux,
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
    linux["sysctl"] = sysctls(context.security)
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
