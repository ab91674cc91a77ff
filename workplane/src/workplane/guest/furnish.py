"""What the app's root gets of the guest's kernel: /proc, /sys, the devices, and the host name."""

import contextlib
import ctypes
import os
import socket
import stat
import sys
from collections.abc import Iterable
from typing import Final

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC = (
    1,
    2,
    4,
    8,
    0x1000,
    0x4000,
)  # <linux/mount.h>
_HIDDEN: Final = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC


def furnish(root: str, kept: Iterable[str] = (), *, privileged: bool = False) -> None:
    """Mount them; for a kernel of one's own. What fails is told on stderr, the guest's console.

    ``kept`` are paths of the app below /dev, files or folders, that stay in sight: volumes, the file for last words. For a
    ``privileged`` app /sys may be written to.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, name: str, kind: str, flags: int) -> None:
        if libc.mount(source.encode(), (root + name).encode(), kind.encode(), flags, None):
            print(f"init: {name}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)

    held = _held(root, kept)
    for name in ("/proc", "/sys", "/dev"):
        with contextlib.suppress(OSError):
            os.makedirs(root + name, exist_ok=True)
    mount("proc", "/proc", "proc", _HIDDEN)
    mount("sysfs", "/sys", "sysfs", _HIDDEN | (0 if privileged else _MS_RDONLY))
    mount("/dev", "/dev", "", _MS_BIND | _MS_REC)
    for path, fd in held:
        with contextlib.suppress(OSError):
            _make_like(root + path, fd)
        mount(f"/proc/self/fd/{fd}", path, "", _MS_BIND | _MS_REC)
        os.close(fd)
    with contextlib.suppress(OSError), open(root + "/etc/hostname") as file:
        socket.sethostname(file.read().strip())


def _held(root: str, kept: Iterable[str]) -> list[tuple[str, int]]:
    """The paths that are there, outermost first, each with a descriptor of what is there now."""
    found = []
    for path in sorted(kept):
        with contextlib.suppress(OSError):
            found.append((path, os.open(root + path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)))
    return found


def _make_like(path: str, fd: int) -> None:
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666))
