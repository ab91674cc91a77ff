"""Calls of libcrun, each in a forked child that ends after it (``create`` changes its caller for good)."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from machineplane.linux import libc
from machineplane.runtime import cgroups, slices
from machineplane.runtime.crun.binding import Context, LibcrunError, Library
from machineplane.runtime.shim import binds, rootfs
from machineplane.runtime.shim.wire import Message

_MAX_ERROR = 600
"""Characters of an error, so that an answer is written to its pipe in one piece (PIPE_BUF, 4096 bytes of JSON escapes)."""

_HIGHEST_FD = 2**31 - 1

EXEC_PREFIX = "exec.json"
"""A file beside a container's configuration: the words that come before those of whatever is put into it, a JSON list."""
_RESET_SIGNALS = (
    signal.SIGCHLD,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGPIPE,
    signal.SIGXFSZ,
)


class Tools(NamedTuple):
    """What every call needs: the library, how control groups are had, and libcrun's state directory for this pod."""

    library: Library
    groups: cgroups.Cgroups
    state_root: str

    def private(self, container_id: str) -> str:
        """The folder in memory that holds a container's configuration."""
        return os.path.join(os.path.dirname(self.state_root), container_id[:12])

    def context(
        self, container_id: str, bundle: str = "", *, pid_file: str = "", console_socket: str = ""
    ) -> Context:
        """A context for one call about one container."""
        context = Context(
            self.library.version,
            state_root=self.state_root,
            container_id=container_id,
            bundle=bundle,
            pid_file=pid_file or (os.path.join(self.private(container_id), "pid") if bundle else ""),
            console_socket=console_socket,
        )
        if self.groups.driver == slices.SYSTEMD:
            return context.by_systemd()
        return context.without_cgroups() if self.groups.mode == "none" else context


class Stdio(NamedTuple):
    """Descriptors that a container's first process gets as 0, 1 and 2."""

    stdin: int
    stdout: int
    stderr: int


class Call(NamedTuple):
    """A running child; its result comes as one JSON object on ``result_fd``, which then ends."""

    pid: int
    result_fd: int


def fork_call(action: Callable[[], Message], stdio: Stdio | None = None) -> Call:
    """Run ``action`` in a child with no descriptors but 0, 1, 2 (``stdio``, else /dev/null) and the result's."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(action, stdio, writer)
    os.close(writer)
    os.set_blocking(reader, False)
    return Call(pid, reader)


def _child(action: Callable[[], Message], stdio: Stdio | None, writer: int) -> None:
    status = 1
    try:
        _settle(stdio, writer)
        os.write(writer, json.dumps(_outcome(action)).encode())
        status = 0
    finally:
        os._exit(status)


def _settle(stdio: Stdio | None, writer: int) -> None:
    """Signals as a fresh program expects them (they pass into the container), and no descriptor to inherit."""
    signal.set_wakeup_fd(-1)
    for number in _RESET_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    null = os.open(os.devnull, os.O_RDWR)
    for target, source in enumerate(stdio or (null, null, null)):
        os.dup2(source, target)
    os.closerange(3, writer)
    os.closerange(writer + 1, _HIGHEST_FD)


def _outcome(action: Callable[[], Message]) -> Message:
    try:
        return {"ok": True, **action()}
    except (LibcrunError, rootfs.RootError, binds.BindError) as error:
        return {"ok": False, "error": str(error)[:_MAX_ERROR]}
    except OSError as error:
        text = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        return {"ok": False, "error": text[:_MAX_ERROR]}


class Making(NamedTuple):
    """What a container is made of: its folder, its image's layers (lowest first), and what to bind before it is made.

    ``console`` is the socket to which its terminal goes, if it has one.
    """

    bundle: str
    layers: list[str]
    binds: list[list[object]]
    console: str


def create(tools: Tools, container_id: str, making: Making) -> Message:
    """Mount the root file system and create the container; answers its first process's id."""
    private, bundle = tools.private(container_id), making.bundle
    with open(os.path.join(private, "config.json"), "rb") as file:
        configuration = file.read()
    rootfs.mount_overlay(making.layers, bundle)
    try:
        with _bound(private, making.binds):
            os.chdir(bundle)
            context = tools.context(container_id, bundle, console_socket=making.console)
            tools.library.create(context, configuration)
        with open(os.path.join(private, "pid")) as file:
            pid = int(file.read())
        rootfs.check_cwd(pid, json.loads(configuration)["process"]["cwd"])
    except (LibcrunError, rootfs.RootError, binds.BindError, OSError):
        with contextlib.suppress(LibcrunError):
            tools.library.delete(tools.context(container_id), container_id)
        with contextlib.suppress(OSError):
            libc.umount(os.path.join(bundle, "rootfs"), libc.MNT_DETACH)
        raise
    return {"pid": pid}


@contextlib.contextmanager
def _bound(private: str, wanted: list[list[object]]) -> Iterator[None]:
    """The container's own mounts are copies of these, which are gone again when it is made."""
    with contextlib.ExitStack() as stack:
        for name, root, path, kind, make in wanted:
            target = os.path.join(private, str(name))
            binds.bind(str(root), str(path), str(kind), bool(make), target)
            stack.callback(libc.umount, target, libc.MNT_DETACH)
        yield


def start(tools: Tools, container_id: str) -> Message:
    """Let a created container run."""
    tools.library.start(tools.context(container_id), container_id)
    return {}


def execute(tools: Tools, container_id: str, number: int, args: list[str], console: str) -> Message:
    """Run one more process in a container, as the container's own but for its arguments; answers its id.

    With ``console``, the path of a socket on which somebody listens, it gets a terminal, whose other end goes there.
    """
    private = tools.private(container_id)
    with open(os.path.join(private, "config.json"), "rb") as file:
        process = json.load(file)["process"]
    process |= {"args": [*_exec_prefix(private), *args], "terminal": bool(console)}
    if console and not any(item.startswith("TERM=") for item in process["env"]):
        process["env"].append("TERM=xterm")  # as Kubernetes has it
    path, pid_file = (os.path.join(private, f"exec-{number}.{kind}") for kind in ("json", "pid"))
    try:
        with open(path, "w") as file:
            json.dump(process, file)
        context = tools.context(container_id, pid_file=pid_file, console_socket=console)
        _execute(tools, context, container_id, path, args[0])
        with open(pid_file) as file:
            return {"pid": int(file.read())}
    finally:
        for left in (path, pid_file):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(left)


def _exec_prefix(private: str) -> list[str]:
    try:
        with open(os.path.join(private, EXEC_PREFIX), "rb") as file:
            return [str(word) for word in json.load(file)]
    except FileNotFoundError:
        return []


def _execute(tools: Tools, context: Context, container_id: str, path: str, program: str) -> None:
    try:
        tools.library.execute(context, container_id, path)
    except LibcrunError as error:
        if error.message:
            raise
        # 1.8.1 says nothing at all where the program cannot be executed.
        raise LibcrunError(
            "exec", error.status, f"{program} cannot be run: is it there, and executable?"
        ) from error


def delete(tools: Tools, container_id: str, bundle: str, cgroup: str) -> Message:
    """Remove a container that has ended: libcrun's state, its control groups, its root file system's mount."""
    with contextlib.suppress(LibcrunError):  # its state may be gone already; what matters is checked below
        tools.library.delete(tools.context(container_id), container_id)
    with contextlib.suppress(OSError):
        libc.umount(os.path.join(bundle, "rootfs"), libc.MNT_DETACH)
    if cgroup and not cgroups.remove(tools.groups, cgroup):
        return {"left": cgroup}
    return {}


def report_crash(text: str) -> None:
    """One line on the shim's own log."""
    print(text, file=sys.stderr, flush=True)
