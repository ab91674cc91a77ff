"""The zygote: a small single-threaded process, started before the daemon makes threads, that forks one shim per pod.

``python -m machineplane.runtime.zygote <socket fd> <cgroup driver> [<libcrun path> <version>]``. It lives in a mount
namespace of its own with control groups prepared, holds libcrun loaded, and ends when the daemon's end of its socket closes.
Shims go on.

The process that was started only keeps the one that forks: where that is killed, it makes another of itself.

Requests: ``shim`` (uid, pod_dir, socket) → pid; ``sweep`` (processes, cgroup) removes what a dead shim left; ``orphans``
(parent, pods_dir, known) what belongs to no known pod. Event ``restarted``: what was asked before may not be answered.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

from machineplane.linux import libc
from machineplane.runtime import cgroups, orphans, slices
from machineplane.runtime.crun.binding import LibcrunError, Library
from machineplane.runtime.shim import calls
from machineplane.runtime.shim.server import Shim
from machineplane.runtime.shim.state import PRIVATE, process_start, write_small
from machineplane.runtime.shim.wire import MAX_MESSAGE, Message, WireError, decode, encode

BACKLOG = 8
PRIVATE_BYTES = 64 * 1024 * 1024
"""Bytes of a pod's private file system, a guess: Secrets and ConfigMaps of 1 MiB each, twice while they change."""
MAX_NAMED = 100
"""Orphans that an answer names; the rest is removed as well."""

QUICK_S = 1.0
MAX_QUICK = 5
"""So many deaths of the forking child within a second each, one after the other, and no further one is made; guesses."""

SWEEP_TIMEOUT_S = 5.0
"""How long killed processes have to go before a sweep says what is left."""


class Zygote:
    """The loop of the zygote process."""

    def __init__(self, control: socket.socket, library: Library | None, groups: cgroups.Cgroups) -> None:
        self._control = control
        self._library = library
        self._groups = groups

    def run(self) -> None:
        """Serve until the daemon is gone."""
        while True:
            select.select([self._control], [], [])
            try:
                raw = self._control.recv(MAX_MESSAGE + 1)
                request = decode(raw) if raw else None
            except (OSError, WireError):
                request = None
            _reap()
            if request is None:
                return
            self._answer(request)

    def _answer(self, request: Message) -> None:
        try:
            chores = {"sweep": self._sweep, "orphans": self._orphans}
            if request["op"] in chores:
                self._in_child(request, chores[request["op"]])
                return
            answer: Message = {"ok": True, "pid": self._shim(request)}
        except (KeyError, TypeError, ValueError) as error:
            answer = {"ok": False, "error": f"malformed request: {error!r}"}
        except OSError as error:
            answer = {"ok": False, "error": str(error)}
        self._reply(request, answer)

    def _reply(self, request: Message, answer: Message) -> None:
        with contextlib.suppress(OSError):
            self._control.send(encode({"id": request.get("id"), **answer}))

    # -- shims

    def _shim(self, request: Message) -> int:
        if self._library is None:
            raise OSError("libcrun is not loaded")
        path = str(request["socket"])
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen(BACKLOG)
            pid = os.fork()
            if pid == 0:
                self._become_shim(listener, str(request["pod_dir"]))
            return pid

    def _become_shim(self, listener: socket.socket, pod_dir: str) -> None:
        """In the child: own session, mount namespace and log; then serve. Never returns."""
        assert self._library is not None
        status = 1
        try:
            self._control.close()
            os.setsid()
            os.chdir("/")
            _own_output(os.path.join(pod_dir, "shim.log"))
            _name("magik-shim")
            libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
            libc.unshare(libc.CLONE_NEWNS)
            libc.mount("none", "/", "", libc.MS_REC | libc.MS_SLAVE)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # it ends by `shutdown` only
            private = _private_folder(pod_dir)
            tools = calls.Tools(self._library, self._groups, os.path.join(private, "crun"))
            Shim(listener, pod_dir, tools).run()
            status = 0
        finally:
            if status:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
            os._exit(status)

    # -- what dead shims leave

    def _in_child(self, request: Message, chore: Callable[[Message], Message]) -> None:
        """Do what may take seconds in a child, so that others are served meanwhile."""
        if os.fork():
            return
        answer: Message = {"ok": False, "error": f"the {request['op']} failed"}
        try:
            answer = {"ok": True, **chore(request)}
        finally:
            self._reply(request, answer)
            os._exit(0)

    def _orphans(self, request: Message) -> Message:
        known = {str(uid) for uid in request["known"]}
        what, left = orphans.remove(self._groups, str(request["parent"]), str(request["pods_dir"]), known)
        return {"removed": what[:MAX_NAMED], "left": left[:MAX_NAMED]}

    def _sweep(self, request: Message) -> Message:
        group = str(request["cgroup"])
        known = {int(pid): int(start) for pid, start in request["processes"]}
        deadline = time.monotonic() + SWEEP_TIMEOUT_S
        targets: set[int] = set()
        while time.monotonic() < deadline:
            alive = {
                pid
                for pid, start in known.items()
                if start and process_start(pid) == start and orphans.running(pid)
            }
            targets = alive | cgroups.members(self._groups, group)
            for pid in targets:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not targets and cgroups.remove(self._groups, group):
                return {"left": []}
            time.sleep(0.02)
        return {"left": [*sorted(f"process {pid}" for pid in targets), f"cgroup {group}"]}


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _name(text: str) -> None:
    write_small("/proc/self/comm", text.encode())


def _private_folder(pod_dir: str) -> str:
    """A file system in memory for what must not be on disk, in this process's own mount namespace."""
    private = os.path.join(pod_dir, PRIVATE)
    with contextlib.suppress(FileExistsError):
        os.mkdir(private, 0o700)
    flags = libc.MS_NOSUID | libc.MS_NODEV
    libc.mount("tmpfs", private, "tmpfs", flags, f"mode=0700,size={PRIVATE_BYTES}")
    return private


def _own_output(path: str) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)


def _load(arguments: list[str]) -> tuple[Library | None, str]:
    """The library, or why it cannot be loaded.

    Comes before all else: libcrun's constructor runs this very program once more from a sealed copy in memory, so that
    no container can write to it through /proc/<pid>/exe (CVE-2019-5736).
    """
    if not arguments:
        return None, ""
    path, version = arguments
    try:
        return Library(path, tuple(int(part) for part in version.split("."))), ""
    except (OSError, LibcrunError) as problem:
        return None, str(problem)


def _prepare(driver: str, library: str) -> tuple[cgroups.Cgroups, str]:
    """Own mount namespace and control groups; and what went wrong with them."""
    try:
        libc.unshare(libc.CLONE_NEWNS)
        libc.mount("none", "/", "", libc.MS_REC | libc.MS_SLAVE)
        groups = cgroups.prepare()
        if driver != slices.SYSTEMD:
            return groups, ""
        problem = slices.unusable(groups.mode == "v2", library)
        if problem:
            return groups, f"cgroup driver systemd: {problem}"
        return groups._replace(driver=driver), ""
    except OSError as error:
        return cgroups.Cgroups(
            "none", ""
        ), f"no mount namespace can be made ({error.strerror}); is this root?"


def _keep(control: socket.socket, library: Library | None, groups: cgroups.Cgroups) -> int:
    """Serve in a child, and in another one where that was killed (for lack of memory, or by hand), until the daemon goes."""
    quick = 0
    while quick < MAX_QUICK:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            Zygote(control, library, groups).run()
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            return 0
        quick = quick + 1 if time.monotonic() - began < QUICK_S else 0
        with contextlib.suppress(OSError):
            control.send(encode({"event": "restarted"}))
    return 1


def main() -> None:
    """Entry of the process."""
    library, load_error = _load(sys.argv[3:])
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    _name("magik-zygote")
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the terminal's ^C is for the daemon, whose end ends this process
    groups, error = _prepare(sys.argv[2], "".join(sys.argv[3:4]))
    hello: Message = {
        "event": "hello",
        "cgroups": groups.mode,
        "cgroups_reason": groups.reason,
        "cgroup_driver": groups.driver,
        "error": error or load_error,
    }
    control.send(encode(hello))
    gc.collect()
    gc.freeze()  # what is there now stays shared between all shims
    sys.exit(_keep(control, library, groups))


if __name__ == "__main__":
    main()
