"""What this machine can do, looked at one by one: for `machineplane check`. Nothing is changed, save what is taken back."""

import ctypes
import platform
import re
import resource
import shutil
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from attrs import frozen

from machineplane.linux import nft
from machineplane.privileges import missing_privileges
from machineplane.runtime import EngineStatus, ImageError, ZygoteReport, slices
from machineplane.runtime.crun.locate import DEFAULT_PREFIX, find_libcrun, find_system_libcrun
from machineplane.runtime.images.agent import AGENT_REF, BAKED, Baked
from machineplane.runtime.images.refs import RefIndex
from machineplane.runtime.images.store import machine_architecture
from machineplane.runtime.krun.locate import probe_kvm

OK, WARN, MISSING = "ok", "warn", "missing"
MIN_KERNEL = (5, 6)  # the first with openat2, by which paths below volumes are opened
MIN_DISK = 2 << 30  # bytes, a guess: a few images
MIN_FILES = 4096  # a guess: some ten descriptors a pod, a few hundred connections
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
_STA_UNSYNC, _TIMEX_BYTES, _TIMEX_STATUS = 0x40, 256, 40  # <sys/timex.h>, on 64-bit machines
_GIB = 1 << 30


@frozen
class Finding:
    """One thing looked at. ``state`` is ok, warn (pods run, with less) or missing (none can); ``advice``: what to do."""

    name: str
    state: str
    detail: str
    advice: str = ""


def privileges(lacking: tuple[str, ...] | None = None) -> Finding:
    """Capabilities of this process."""
    lacking = missing_privileges() if lacking is None else lacking
    if lacking:
        return Finding("privileges", MISSING, f"{' and '.join(lacking)} lacking", "run it as root")
    return Finding("privileges", OK, "what namespaces, mounts and links need")


def kernel(release: str | None = None) -> Finding:
    """The kernel's version."""
    release = platform.release() if release is None else release
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < MIN_KERNEL:
        return Finding(
            "kernel", MISSING, release, f"Linux {MIN_KERNEL[0]}.{MIN_KERNEL[1]} or later is needed"
        )
    return Finding("kernel", OK, release)


def namespaces(folder: Path = Path("/proc/self/ns")) -> Finding:
    """Kinds of namespace that the kernel has."""
    lacking = [name for name in _NAMESPACES if not (folder / name).exists()]
    if lacking:
        return Finding(
            "namespaces", MISSING, f"none of the kinds {', '.join(lacking)}", "use a kernel built with them"
        )
    return Finding("namespaces", OK, ", ".join(_NAMESPACES))


def control_groups(report: ZygoteReport | None) -> Finding:
    """How limits are had, by what a zygote found."""
    if report is None:
        return Finding("cgroups", WARN, "not looked at: a helper cannot be started", "run it as root")
    if report.cgroups == "none":
        return Finding("cgroups", WARN, report.cgroups_reason, "boot with the unified hierarchy (cgroup v2)")
    words = {"v2": "v2, the unified hierarchy", "v1": "v1 controllers, mounted for the helpers alone"}
    return Finding("cgroups", OK, f"{words.get(report.cgroups, report.cgroups)}; {_driver(report)}")


def _driver(report: ZygoteReport) -> str:
    """Who makes control groups, and why."""
    if report.cgroup_driver == slices.SYSTEMD:
        return "made by systemd, as the daemon is told"
    library = str(report.libcrun.path) if report.libcrun else ""
    why = slices.unusable(report.cgroups == "v2", library)
    if not why:
        why = "--cgroup-driver systemd would work too"
    return f"made by libcrun ({why})"


def overlay(filesystems: str | None = None) -> Finding:
    """The file system of containers' roots."""
    text = Path("/proc/filesystems").read_text() if filesystems is None else filesystems
    if "overlay" in text.split():
        return Finding("overlayfs", OK, "known to the kernel")
    return Finding("overlayfs", MISSING, "not known to the kernel", "load it: modprobe overlay")


def state_folder(state_dir: Path, mountinfo: str | None = None) -> Finding:
    """Whether containers' writable layers can lie in the state directory, and how much room it has."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    kind = file_system_of(state_dir, text)
    there = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    free = shutil.disk_usage(there).free
    detail = f"{state_dir} on {kind}, {free / _GIB:.1f} GiB free"
    if kind in ("overlay", "nfs", "nfs4"):
        return Finding(
            "disk", MISSING, detail, "give a --state-dir on a local file system such as ext4 or xfs"
        )
    if free < MIN_DISK:
        return Finding("disk", WARN, detail, f"make room: {MIN_DISK >> 30} GiB at least")
    return Finding("disk", OK, detail)


def file_system_of(path: Path, mountinfo: str) -> str:
    """The kind of file system that a path lies on, by the text of /proc/<pid>/mountinfo; of mounts at one place the last."""
    best, kind = -1, "?"
    for line in mountinfo.splitlines():
        words, _, rest = line.partition(" - ")
        point = words.split(" ")[4].replace("\\040", " ")
        if path.is_relative_to(point) and len(point) >= best:
            best, kind = len(point), rest.split(" ")[0]
    return kind


def seccomp(status: str | None = None) -> Finding:
    """Filters of system calls."""
    text = Path("/proc/self/status").read_text() if status is None else status
    if "Seccomp:" in text:
        return Finding("seccomp", OK, "filters are known to the kernel")
    return Finding("seccomp", MISSING, "not built into the kernel", "use a kernel with CONFIG_SECCOMP_FILTER")


def libcrun() -> Finding:
    """The library that runs containers."""
    found = find_libcrun(DEFAULT_PREFIX) or find_system_libcrun()
    if found is None:
        build = "python3 -m machineplane.runtime.libcrun_build"
        return Finding("libcrun", MISSING, "no shared library found", f"build one: {build}")
    return Finding("libcrun", OK, f"{found.version} at {found.path}")


def engine(status: EngineStatus) -> Finding:
    """One engine, as it judges itself; pods that name another are run by others."""
    name, said = f"engine {status.name}", status.reason
    if status.available:
        return Finding(
            name, OK, " ".join(filter(None, (status.version, f"({said})" if said else ""))) or "works"
        )
    needed = status.name == "crun"
    advice = "see libcrun and privileges" if needed else "pods that name it run on other machines"
    return Finding(name, MISSING if needed else WARN, said, advice)


def agent_image(state_dir: Path, folder: Path = BAKED) -> Finding:
    """The image of pods' agents, in the store or as it came with this installation."""
    baked = Baked.find(machine_architecture(), folder)
    if baked is not None:
        return Finding("agent image", OK, f"{AGENT_REF} came with this installation: {baked.digest[:19]}")
    try:
        entry = RefIndex(state_dir / "images").all().get(AGENT_REF)
    except (ImageError, OSError):  # another user's, or damaged, which the daemon says
        entry = None
    if entry is not None:
        return Finding("agent image", OK, f"{AGENT_REF} is in the store: {entry.digest[:19]}")
    return Finding(
        "agent image",
        WARN,
        "did not come with this installation: pods run without probes, names and traffic",
        "install a wheel that has it, or bake it: nox -s workplane-image",
    )


def kvm(problem: str | None = None) -> Finding:
    """Virtual machines by hardware; whether a guest boots is the engine's own judgement."""
    problem = probe_kvm() if problem is None else problem
    if problem:
        return Finding("kvm", WARN, problem, "microVMs need it: switch virtualisation on, or nest it")
    return Finding("kvm", OK, "/dev/kvm answers")


def nftables() -> Finding:
    """Filters and masquerading of the pods' network."""
    try:
        nft.check()
        nft.run("list tables")
    except nft.NftUnavailable as error:
        return Finding(
            "nftables", MISSING, str(error).partition(": install")[0], "apt-get install libnftables1"
        )
    except nft.NftError as error:
        return Finding("nftables", MISSING, str(error), "a kernel with nf_tables, and root, are needed")
    return Finding("nftables", OK, "library and kernel answer")


def open_files(limit: int | None = None) -> Finding:
    """How many descriptors the daemon may have."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1] if limit is None else limit
    if 0 <= limit < MIN_FILES:
        return Finding(
            "open files", WARN, f"at most {limit}", f"raise it: LimitNOFILE={MIN_FILES} in the unit"
        )
    return Finding("open files", OK, f"at most {limit}" if limit >= 0 else "no limit")


def port(number: int, *, udp: bool, serving: bool, what: str) -> Finding:
    """Whether a port is free; taken is right where the daemon is ``serving``. 0 is any free one."""
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    label = f"{number}/{'udp' if udp else 'tcp'} for {what}"
    with socket.socket(socket.AF_INET, kind) as sock:
        if not udp:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", number))
        except OSError as error:
            if serving:
                return Finding("port", OK, f"{label}: taken, by the daemon that runs")
            return Finding("port", WARN, f"{label}: {error.strerror}", "give the daemon another one")
    return Finding("port", OK, f"{label}: {'any free one' if number == 0 else 'free'}")


def clock(synchronised: bool | None = None) -> Finding:
    """Whether something keeps the clock right: messages of clocks that are 30 s off are refused."""
    good = clock_synchronised() if synchronised is None else synchronised
    if good:
        return Finding("clock", OK, "kept right, says the kernel")
    advice = "messages are refused at 30 s: apt-get install chrony, unless the host keeps it"
    return Finding("clock", WARN, "nothing keeps it right, as far as the kernel knows", advice)


def clock_synchronised() -> bool:
    """What adjtimex(2) says."""
    buffer = ctypes.create_string_buffer(_TIMEX_BYTES)
    if ctypes.CDLL(None).adjtimex(buffer) < 0:
        return False
    return not int.from_bytes(buffer.raw[_TIMEX_STATUS : _TIMEX_STATUS + 4], "little") & _STA_UNSYNC


def everything(
    state_dir: Path,
    *,
    report: ZygoteReport | None,
    engines: Iterable[EngineStatus],
    ports: Iterable[tuple[int, bool, str]],
    serving: bool,
) -> list[Finding]:
    """All findings, in the order in which they are shown."""
    plain: list[Callable[[], Finding]] = [privileges, kernel, namespaces]
    found = [look() for look in plain]
    found += [control_groups(report), overlay(), state_folder(state_dir), seccomp(), libcrun()]
    found += [engine(status) for status in engines]
    found += [agent_image(state_dir), kvm(), nftables(), open_files(), clock()]
    return found + [port(n, udp=udp, serving=serving, what=what) for n, udp, what in ports]
