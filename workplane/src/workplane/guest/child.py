"""From a fork of the init to the program that was asked for: its root, its rights, its limits, its folder."""

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import signal
import termios
from collections.abc import Mapping
from typing import Any

from magik_proto.capabilities import CAPABILITIES

NOT_FOUND, NOT_RUN = 127, 126  # as shells have it
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38  # <linux/prctl.h>
_LAST_CAPABILITY = 63
_HIGHEST_FD = 2**31 - 1
_ERROR_FD = 3
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def start(
    process: Mapping[str, Any], root: str, stdio: tuple[int, int, int], *, terminal: bool
) -> tuple[int, str]:
    """Fork and run it: its id and nothing, or the code and the reason that nothing runs.

    ``stdio`` are its descriptors, which the caller closes.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(process, root, stdio, writer, terminal=terminal)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        problem = told.read()
    if not problem:
        return pid, ""
    os.waitpid(pid, 0)
    code, text = json.loads(problem)
    return code, text


def _become(
    process: Mapping[str, Any], root: str, stdio: tuple[int, int, int], writer: int, *, terminal: bool
) -> None:
    program = str(process["args"][0])
    code, text = NOT_RUN, f"{program} cannot be run"
    try:
        _settle(stdio, writer, terminal=terminal)
        _enter(process, root)
        environment = dict(item.split("=", 1) for item in process.get("env") or ())
        environment.setdefault("PATH", _DEFAULT_PATH)
        os.execvpe(program, process["args"], environment)
    except FileNotFoundError as error:
        code, text = NOT_FOUND, f"{error.filename or program}: {error.strerror}"
    except OSError as error:
        text = f"{error.filename or program}: {error.strerror}"
    except Exception as error:  # noqa: BLE001 - told to who asked; this process ends here
        text = f"{program}: {error!r}"
    finally:
        with contextlib.suppress(OSError):
            os.write(_ERROR_FD, json.dumps([code, text]).encode())
        os._exit(code)


def _settle(stdio: tuple[int, int, int], writer: int, *, terminal: bool) -> None:
    """Descriptors 0, 1 and 2, and one that closes when the program runs; a session of its own; plain signals."""
    signal.set_wakeup_fd(-1)
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (*stdio, writer)]
    for target, fd in enumerate(high):
        os.dup2(fd, target, inheritable=target != _ERROR_FD)
    os.closerange(_ERROR_FD + 1, _HIGHEST_FD)
    os.setsid()
    if terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _enter(process: Mapping[str, Any], root: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    user, cwd = process.get("user") or {}, str(process.get("cwd") or "/")
    os.chroot(root)
    os.chdir("/")
    os.umask(int(user.get("umask", 0o022)))
    with contextlib.suppress(OSError):  # as other runtimes have it: a folder that is not there is made
        os.makedirs(cwd, exist_ok=True)
    for limit in process.get("rlimits") or ():
        resource.setrlimit(getattr(resource, limit["type"]), (limit["soft"], limit["hard"]))
    _bound(libc, (process.get("capabilities") or {}).get("bounding"))
    os.setgroups(user.get("additionalGids") or ())
    os.setresgid(*[int(user.get("gid", 0))] * 3)
    os.setresuid(*[int(user.get("uid", 0))] * 3)
    if process.get("noNewPrivileges"):
        _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
    os.chdir(cwd)


def _bound(libc: ctypes.CDLL, granted: list[str] | None) -> None:
    """No program that it becomes will ever have others. A kernel knows fewer than all: the first unknown one ends it."""
    if granted is None:
        return
    kept = {CAPABILITIES.index(name.removeprefix("CAP_")) for name in granted}
    for number in range(_LAST_CAPABILITY + 1):
        if number not in kept and libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0):
            if ctypes.get_errno() == 22:  # EINVAL
                return
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "capabilities")


def _prctl(libc: ctypes.CDLL, option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "prctl")
