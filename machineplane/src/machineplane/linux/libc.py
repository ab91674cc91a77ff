"""The few system calls that Python's ``os`` lacks, by ctypes: namespaces, mounts, prctl, openat2.

Every function raises :class:`OSError` with the errno and the path or name it was about. Constants are from
``<sched.h>``, ``<sys/mount.h>``, ``<sys/prctl.h>`` and ``<linux/openat2.h>``.
"""

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19

MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36

_SYS_OPENAT2 = 437  # the same on all architectures
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def _check(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), what)


def unshare(flags: int) -> None:
    """Move the calling thread (for CLONE_NEWPID: its next children) into new namespaces."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def setns(fd: int, nstype: int = 0) -> None:
    """Join the namespace behind ``fd``; ``nstype`` 0 takes any kind."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(nstype)), f"setns(fd {fd})")


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """``mount(2)``; empty strings for ``fstype`` and ``data`` are passed as NULL."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            fstype.encode() or None,
            flags,
            os.fsencode(data) or None,
        ),
        target,
    )


def umount(target: str, flags: int = 0) -> None:
    """``umount2(2)``."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), target)


def prctl(option: int, argument: int = 0) -> None:
    """``prctl(2)`` with one integer argument."""
    _check(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), 0, 0, 0), f"prctl({option})")


def openat2(folder: int, path: str, flags: int, resolve: int) -> int:
    """``openat2(2)`` without a mode: a descriptor of ``path``, looked up from the folder that ``folder`` is open on."""
    how = b"".join(value.to_bytes(8, "little") for value in (flags | os.O_CLOEXEC, 0, resolve))
    fd = int(_libc.syscall(_SYS_OPENAT2, folder, os.fsencode(path), how, len(how)))
    if fd < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), path)
    return fd


def open_beneath(folder: int, path: str) -> int:
    """What is at ``path``, as O_PATH; OSError (EXDEV) if any link on the way leaves ``folder``."""
    return openat2(folder, path, os.O_PATH, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
