"""What this machine has: processors, memory and disk as its kernel tells them, within the daemon's own limits."""

import os
import platform
from pathlib import Path

from magik_proto.placement import Capacity

PODS_MAX = 110  # what Kubernetes documents as a node's usual limit
RESERVED_MEMORY_BYTES = 128 * 1024 * 1024  # for the daemon, its helpers and the kernel; a guess

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}


def architecture() -> str:
    """The machine's architecture by Go's name, as ``kubernetes.io/arch`` has it."""
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


def read_capacity(state_dir: Path) -> Capacity:
    """All of the machine that pods may use: processors this process may run on, memory, free disk under ``state_dir``."""
    disk = os.statvfs(state_dir)
    return Capacity(
        cpu_millis=1000 * len(os.sched_getaffinity(0)),
        memory_bytes=max(0, _total_memory() - RESERVED_MEMORY_BYTES),
        storage_bytes=disk.f_bavail * disk.f_frsize,
        pods=PODS_MAX,
    )


def _total_memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(total, *_cgroup_limits(), total)


def _cgroup_limits() -> tuple[int, ...]:
    """The memory limit that the daemon itself is under, for cgroup v2 and v1; none where it is unlimited."""
    found = []
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return tuple(found)
