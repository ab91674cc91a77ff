"""What this machine has for microVMs: a libkrun, a KVM that answers, and whether a guest boots with them.

The library is never loaded here: it is looked for by name, and the trial boot loads it in a process of its own.
"""

import fcntl
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from attrs import frozen

from machineplane.runtime.crun.locate import DEFAULT_PREFIX
from machineplane.runtime.images.store import machine_architecture
from machineplane.runtime.krun.binding import NAMES
from machineplane.runtime.krun.boot import BOOT_TIMEOUT_S, remembered_boot

KVM_DEVICE: Final = "/dev/kvm"
_KVM_GET_API_VERSION = 0xAE00  # <linux/kvm.h>: _IO(0xAE, 0x00)
_KVM_API_VERSION = 12  # the only version there has been since Linux 2.6.22; programs must refuse others
# The run-time linker's cache, as `ldconfig -p` prints it.
_CACHE_LINE = re.compile(r"^\s*(libkrun\.so[.0-9]*)\s.*=>\s*(\S+)$", re.MULTILINE)


@frozen
class KrunReport:
    """The library's path, and why no guest starts with it (empty if one does)."""

    library: str
    reason: str


def find_libkrun(prefix: Path = DEFAULT_PREFIX) -> str:
    """The path of a libkrun: below ``prefix``, else one that the run-time linker knows; empty if there is none."""
    for name in NAMES:
        if (prefix / name).is_file():
            return str(prefix / name)
    try:
        cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    known = dict(reversed(_CACHE_LINE.findall(cache)))  # of one name the first is the one the linker takes
    return next((known[name] for name in NAMES if name in known), "")


def probe_kvm(device: str = KVM_DEVICE) -> str:
    """Open KVM and ask for its version; empty if it answers as it must, else why not."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{device} cannot be opened: {error.strerror}"
    try:
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION)
    except OSError as error:
        return f"{device} does not answer as KVM: {error.strerror}"
    finally:
        os.close(fd)
    return (
        ""
        if version == _KVM_API_VERSION
        else f"{device} has the API version {version}, not {_KVM_API_VERSION}"
    )


def look_for_krun(
    memory: Path,
    configured: Path | None = None,
    *,
    find: Callable[[], str] = find_libkrun,
    kvm: Callable[[], str] = probe_kvm,
    timeout: float = BOOT_TIMEOUT_S,
) -> KrunReport:
    """Whether guests start here, by the trial boot that the file ``memory`` remembers. Blocks, up to ``timeout`` seconds.

    With a ``configured`` library its boot alone decides; else KVM is asked before, for it says more clearly what is missing.
    """
    library = str(configured) if configured else find()
    reasons = [] if library else ["no libkrun library found"]
    if not configured and (problem := kvm()):
        reasons.append(problem)
    if not reasons:
        try:
            reasons = [remembered_boot(library, machine_architecture(), memory, timeout)]
        except OSError as error:
            reasons = [f"no guest can be tried: {error}"]
    return KrunReport(library, "; ".join(reasons))
