"""Which system calls a container may make.

``RuntimeDefault`` is a list of what is refused (EPERM), everything else being allowed: calls that change the machine rather
than the process, that make or enter namespaces, or that have no use in a container but have a record of kernel faults.
A call of such a group is allowed again where the container has the capability that the kernel would ask for anyway.
Calls younger than the list are allowed; a list of the allowed would be ten times as long and as slow to load.
"""

import json
import platform
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from machineplane.runtime.errors import PodSpecError

Json = dict[str, Any]

EPERM, ENOSYS = 1, 38  # <asm-generic/errno-base.h>, <asm-generic/errno.h>
_MAX_PROFILE = 1024 * 1024

# capability that lifts the refusal -> calls (man-pages: syscalls(2), capabilities(7)). "" is never lifted.
_REFUSED: Mapping[str, tuple[str, ...]] = {
    "": (
        "add_key",
        "keyctl",
        "request_key",  # keys are not in any namespace
        "userfaultfd",
        "io_uring_setup",
        "io_uring_enter",
        "io_uring_register",  # a second way into the kernel, past this filter
        "kexec_file_load",
        "kexec_load",
        "nfsservctl",
        "uselib",
        "ustat",
        "vm86",
        "vm86old",
        "_sysctl",
        "get_kernel_syms",
        "query_module",
        "create_module",
        "sysfs",
        "vserver",
        "afs_syscall",
        "tuxcall",
        "security",
        "name_to_handle_at",
    ),
    "SYS_ADMIN": (
        "bpf",
        "fanotify_init",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "lookup_dcookie",
        "mount",
        "mount_setattr",
        "move_mount",
        "open_tree",
        "perf_event_open",
        "pivot_root",
        "quotactl",
        "quotactl_fd",
        "setdomainname",
        "sethostname",
        "setns",
        "swapoff",
        "swapon",
        "syslog",
        "umount",
        "umount2",
        "unshare",
    ),
    "DAC_READ_SEARCH": ("open_by_handle_at",),
    "SYS_BOOT": ("reboot",),
    "SYS_MODULE": ("delete_module", "finit_module", "init_module"),
    "SYS_NICE": ("mbind", "migrate_pages", "move_pages", "set_mempolicy", "set_mempolicy_home_node"),
    "SYS_PACCT": ("acct",),
    "SYS_PTRACE": ("kcmp",),
    "SYS_RAWIO": ("ioperm", "iopl"),
    "SYS_TIME": (
        "clock_adjtime",
        "clock_adjtime64",
        "clock_settime",
        "clock_settime64",
        "settimeofday",
        "stime",
    ),
    "SYS_TTY_CONFIG": ("vhangup",),
}
# <linux/sched.h>: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NEW_NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_AF_VSOCK = 40  # <linux/socket.h>: reaches the hypervisor from any namespace
_ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}


def _refuse(names: Collection[str], errno: int = EPERM, *arguments: Json) -> Json:
    rule: Json = {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": errno}
    return rule | ({"args": list(arguments)} if arguments else {})


def default_profile(granted: Collection[str]) -> Json:
    """The OCI ``linux.seccomp`` of ``RuntimeDefault`` for a container with these capabilities (``CAP_…``)."""
    names = [
        name for need, calls in _REFUSED.items() if not need or f"CAP_{need}" not in granted for name in calls
    ]
    rules = [_refuse(names)]
    rules.append(_refuse(["socket"], EPERM, {"index": 0, "value": _AF_VSOCK, "op": "SCMP_CMP_EQ"}))
    if "CAP_SYS_ADMIN" not in granted:
        # clone3 has its flags in memory, where no filter sees them: without it, programs fall back to clone.
        rules.append(_refuse(["clone3"], ENOSYS))
        rules += [
            _refuse(
                ["clone"], EPERM, {"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}
            )
            for flag in _NEW_NAMESPACES
        ]
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": _ARCHITECTURES.get(platform.machine(), []),
        "syscalls": rules,
    }


def check_seccomp(security: Mapping[str, Any], where: str, folder: Path | None, *, anything: bool) -> None:
    """Refuse unknown kinds of profile, and ``Localhost`` ones that this machine does not have.

    Raises:
        PodSpecError: names the field.
    """
    wanted = security.get("seccompProfile") or {}
    kind = wanted.get("type", "RuntimeDefault")
    if kind not in ("RuntimeDefault", "Unconfined", "Localhost"):
        raise PodSpecError(
            f"{where}.seccompProfile.type {kind!r} is none of RuntimeDefault, Unconfined, Localhost"
        )
    if kind == "Localhost" and not anything:
        _local_profile(wanted, f"{where}.seccompProfile.localhostProfile", folder)


def _local_profile(wanted: Mapping[str, Any], where: str, folder: Path | None) -> Json:
    name = str(wanted.get("localhostProfile") or "")
    if not name or name.startswith("/") or ".." in name.split("/"):
        raise PodSpecError(f"{where} {name!r} is not a relative path without '..'")
    try:
        raw = ((folder or Path("/nonexistent")) / name).read_bytes()[:_MAX_PROFILE]
        profile = json.loads(raw)
    except (OSError, ValueError) as error:
        raise PodSpecError(f"{where} {name!r} cannot be read in {folder} of this machine: {error}") from error
    if not isinstance(profile, dict) or "defaultAction" not in profile:
        raise PodSpecError(f"{where} {name!r} is not a seccomp profile: it has no defaultAction")
    return profile


def profile_of(
    security: Mapping[str, Any],
    pod_security: Mapping[str, Any],
    granted: Collection[str],
    folder: Path | None,
) -> Json | None:
    """The OCI ``linux.seccomp`` of a container; none if it is unconfined.

    Without a word of the spec it is ``RuntimeDefault``, save for privileged containers.

    Raises:
        PodSpecError: a ``Localhost`` profile that is not there.
    """
    wanted = security.get("seccompProfile") or pod_security.get("seccompProfile") or {}
    kind = wanted.get("type", "RuntimeDefault")
    if security.get("privileged") or kind == "Unconfined":
        return None
    if kind == "Localhost":
        return _local_profile(wanted, "seccompProfile.localhostProfile", folder)
    return default_profile(granted)
