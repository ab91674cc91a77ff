"""The shim's event loop: serves the daemon, runs libcrun, reaps, pumps output. One thread, nothing blocks it."""

import contextlib
import os
import selectors
import signal
import socket
import struct
from collections.abc import Callable

from machineplane.linux import libc
from machineplane.runtime import cgroups
from machineplane.runtime.shim import calls, state, terminal
from machineplane.runtime.shim.execs import Execs, Refused
from machineplane.runtime.shim.pump import Pumps, TooManyTaps
from machineplane.runtime.shim.state import Container
from machineplane.runtime.shim.wire import MAX_MESSAGE, Message, WireError, decode, encode

MAX_CLIENTS = 8
"""Connections at a time; one more is closed at once. The daemon uses one."""

MAX_CONTAINERS = 64
"""Containers of a pod that a shim knows at a time, so that a status fits a message; ``create`` is refused beyond."""

MAX_UNCLAIMED = 64
"""Exit codes kept of processes that no container is known for yet; the oldest goes."""

IDLE_S = 60.0
"""How long a shim without containers waits for a daemon, a guess: then it ends."""

MAX_FDS = 3
"""Descriptors that come with one request; the kernel closes what is more."""

Reply = Callable[[Message], None]
Created = Callable[[Message], Message]

_CRASH: Message = {"ok": False, "error": "the helper that called libcrun ended without an answer"}


class RequestError(Exception):
    """A request that cannot be done; its text goes back to the daemon."""


class Client:
    """One connection of the daemon."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, message: Message) -> bool:
        """Send without waiting; false if the peer does not take it (it is then dropped, and may ask again)."""
        try:
            self.sock.send(encode(message))
        except (OSError, WireError):
            return False
        return True


class Shim:
    """All containers of one pod."""

    def __init__(self, listener: socket.socket, pod_dir: str, tools: calls.Tools) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = listener
        self._pod_dir = pod_dir
        self._tools = tools
        self._containers: dict[str, Container] = {}
        self._creating: set[str] = set()
        self._oom_kills = 0
        self._calls: dict[int, tuple[calls.Call, Reply]] = {}
        self._unclaimed: dict[int, int] = {}  # also in the hands of `_execs`
        self._clients: set[Client] = set()
        self._pumps = Pumps(self._selector)
        self._execs = Execs(tools, self._call, self._unclaimed)
        self._done = False
        self._wake_reader, self._wake_writer = os.pipe()

    # -- life

    def run(self) -> None:
        """Serve until ``shutdown`` has been answered."""
        for fd in (self._wake_reader, self._wake_writer):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, self._reap)
        self._save()
        while not self._done:
            ready = self._selector.select(IDLE_S if self._idle() else None)
            self._done = not ready and self._idle()
            for key, _ in ready:
                # An earlier event of this round may have closed the descriptor, and even given its number away.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()

    def _idle(self) -> bool:
        """Nothing runs and nobody is there: the daemon that asked for this shim died before it could use it."""
        return not (self._containers or self._creating or self._clients)

    def _save(self) -> None:
        try:
            state.save(os.path.join(self._pod_dir, "shim.json"), list(self._containers.values()))
        except OSError as error:  # a full disk: the daemon still learns everything over the socket
            calls.report_crash(f"the state file cannot be written: {error}")

    def _set(self, container: Container) -> None:
        self._containers[container.id] = container
        self._save()

    # -- the daemon's connections

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if len(self._clients) >= MAX_CLIENTS or uid != os.getuid():
                sock.close()
                return
            sock.setblocking(False)
            client = Client(sock)
            self._clients.add(client)
            self._selector.register(sock, selectors.EVENT_READ, lambda: self._receive(client))

    def _drop(self, client: Client) -> None:
        if client in self._clients:
            self._clients.remove(client)
            self._selector.unregister(client.sock)
            client.sock.close()
            self._execs.forget(client)
            self._pumps.forget(client)

    def _receive(self, client: Client) -> None:
        fds: list[int] = []
        try:
            raw, fds, _, _ = socket.recv_fds(client.sock, MAX_MESSAGE + 1, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
            message = decode(raw) if raw else None
        except BlockingIOError:
            return
        except (OSError, WireError):
            message = None
        try:
            if message is None:
                self._drop(client)
            else:
                self._take(client, message, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _take(self, client: Client, message: Message, fds: list[int]) -> None:
        number = message.get("id")

        def reply(answer: Message) -> None:
            if client in self._clients and not client.send({"id": number, **answer}):
                self._drop(client)

        def tell(event: Message) -> None:
            if client in self._clients and not client.send(event):
                self._drop(client)

        with_fds: dict[str, Callable[[Message, Reply], None]] = {
            "exec": lambda *_: self._exec(client, message, fds, tell, reply),
            "attach": lambda *_: self._attach(client, message, fds, reply),
        }
        self._handle(message, reply, with_fds)

    def _handle(
        self, message: Message, reply: Reply, with_fds: dict[str, Callable[[Message, Reply], None]]
    ) -> None:
        operations: dict[str, Callable[[Message, Reply], None]] = {
            "status": self._status,
            "tmpfs": self._tmpfs,
            "create": self._create,
            "start": self._start,
            "kill": self._kill,
            "delete": self._delete,
            "exec-signal": self._exec_signal,
            "detach": self._detach,
            "resize": self._resize,
            "end-input": self._end_input,
            **with_fds,
            "shutdown": self._shutdown,
        }
        try:
            operations[message["op"]](message, reply)
        except (RequestError, Refused, TooManyTaps) as error:
            reply({"ok": False, "error": str(error)})
        except (KeyError, TypeError, ValueError) as error:
            reply({"ok": False, "error": f"malformed request: {error!r}"})
        except OSError as error:
            reply({"ok": False, "error": str(error)})

    def _tell(self, event: Message) -> None:
        for client in list(self._clients):
            if not client.send(event):
                self._drop(client)

    # -- operations

    def _find(self, message: Message) -> Container:
        try:
            return self._containers[message["container"]]
        except KeyError as error:
            raise RequestError(f"no container {message.get('container')!r}") from error

    def _status(self, message: Message, reply: Reply) -> None:
        listed = [container.as_json() for container in self._containers.values()]
        reply({"ok": True, "pid": os.getpid(), "creating": len(self._creating), "containers": listed})

    def _tmpfs(self, message: Message, reply: Reply) -> None:
        """A file system in memory over a folder, whose mode and owners it takes."""
        path, size = str(message["path"]), f",size={int(message['size'])}" if message.get("size") else ""
        found = os.stat(path)
        options = f"mode={found.st_mode & 0o7777:o},uid={found.st_uid},gid={found.st_gid}{size}"
        libc.mount("tmpfs", path, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, options)
        reply({"ok": True})

    def _create(self, message: Message, reply: Reply) -> None:
        container_id, bundle = str(message["container"]), str(message["bundle"])
        layers = [str(layer) for layer in message["layers"]]
        container = Container(
            id=container_id,
            name=str(message["name"]),
            attempt=int(message["attempt"]),
            status="created",
            pid=0,
            pid_start=0,
            bundle=bundle,
            log=str(message["log"]),
            cgroup=str(message["cgroup"]),
            created_at=state.now_ms(),
        )
        if container_id in self._containers or container_id in self._creating:
            raise RequestError(f"the container {container_id} is there already")
        if len(self._containers) + len(self._creating) >= MAX_CONTAINERS:
            raise RequestError(f"this pod has {MAX_CONTAINERS} containers already")
        making = calls.Making(bundle, layers, list(message["binds"]), str(message["console"]))
        fifo = os.path.join(bundle, "stdin") if message.get("stdin") else ""
        begin = self._with_terminal if making.console else self._with_pipes
        stdio, created = begin(container_id, container.log, fifo, making.console)
        self._creating.add(container_id)

        def finish(answer: Message) -> None:
            self._creating.discard(container_id)
            answer = created(answer)
            if answer.get("ok"):
                pid = int(answer["pid"])
                self._set(container._replace(pid=pid, pid_start=state.process_start(pid)))
                self._claim(pid)
            else:
                self._pumps.close(container_id)
                cgroups.remove(self._tools.groups, container.cgroup)
            reply(answer)

        try:
            self._call(lambda: calls.create(self._tools, container_id, making), finish, stdio)
        finally:
            for fd in stdio or ():
                os.close(fd)

    def _with_pipes(
        self, container_id: str, log: str, fifo: str, _: str
    ) -> tuple[calls.Stdio | None, Created]:
        return self._pumps.open(container_id, log, fifo), lambda answer: answer

    def _with_terminal(
        self, container_id: str, log: str, fifo: str, console: str
    ) -> tuple[calls.Stdio | None, Created]:
        """libcrun sends the terminal's other end to a socket; it is there when the call has been answered."""
        listener = terminal.listen(console)
        stdin = self._pumps.open_terminal(container_id, log, fifo)

        def created(answer: Message) -> Message:
            try:
                master = terminal.take(listener)
            except terminal.TerminalError as error:
                if stdin >= 0:
                    os.close(stdin)
                return answer if not answer.get("ok") else {"ok": False, "error": str(error)}
            self._pumps.take_terminal(container_id, master, stdin)
            return answer

        return None, created

    def _start(self, message: Message, reply: Reply) -> None:
        container = self._find(message)
        if container.status != "created":
            raise RequestError(f"the container {container.id} is {container.status}, not created")

        def finish(answer: Message) -> None:
            current = self._containers.get(container.id)
            if answer.get("ok") and current is not None:
                status = "running" if current.status == "created" else current.status
                self._set(current._replace(status=status))
                answer = {**answer, "started_at": started}
            reply(answer)

        started = state.now_ms()
        self._set(
            container._replace(started_at=started)
        )  # now: a short program ends before the call has answered
        self._call(lambda: calls.start(self._tools, container.id), finish)

    def _kill(self, message: Message, reply: Reply) -> None:
        """Signal a container's first process: a child of ours that we have not reaped, so its id is surely its own."""
        container = self._find(message)
        if container.status != "exited":
            os.kill(container.pid, int(message["signal"]))
        reply({"ok": True})

    def _delete(self, message: Message, reply: Reply) -> None:
        container = self._find(message)
        if container.status != "exited":
            raise RequestError(f"the container {container.id} is {container.status}; stop it first")

        def finish(answer: Message) -> None:
            if answer.get("ok") and self._containers.pop(container.id, None):
                self._save()
            reply(answer)

        tools = self._tools
        self._call(lambda: calls.delete(tools, container.id, container.bundle, container.cgroup), finish)

    def _exec(self, client: Client, message: Message, fds: list[int], tell: Reply, reply: Reply) -> None:
        if len(fds) != len(calls.Stdio._fields):
            raise RequestError("an exec comes with three descriptors")
        self._execs.start(self._find(message), message, calls.Stdio(*fds), client, tell, reply)

    def _exec_signal(self, message: Message, reply: Reply) -> None:
        self._execs.signal(int(message["exec"]), int(message["signal"]))
        reply({"ok": True})

    def _attach(self, client: Client, message: Message, fds: list[int], reply: Reply) -> None:
        container = self._find(message)
        if container.status != "running" or len(fds) != 2:
            raise RequestError(
                f"the container is {container.status}, or not two descriptors came with the request"
            )
        self._pumps.attach(int(message["attach"]), client, container.id, *fds)
        reply({"ok": True})

    def _detach(self, message: Message, reply: Reply) -> None:
        self._pumps.detach(int(message["attach"]))
        reply({"ok": True})

    def _resize(self, message: Message, reply: Reply) -> None:
        self._pumps.resize(self._find(message).id, int(message["width"]), int(message["height"]))
        reply({"ok": True})

    def _end_input(self, message: Message, reply: Reply) -> None:
        self._pumps.end_input(self._find(message).id)
        reply({"ok": True})

    def _shutdown(self, message: Message, reply: Reply) -> None:
        if self._containers or self._creating:
            raise RequestError("containers are left; delete them first")
        reply({"ok": True})
        self._done = True

    # -- children

    def _call(self, action: Callable[[], Message], finish: Reply, stdio: calls.Stdio | None = None) -> None:
        call = calls.fork_call(action, stdio)
        self._calls[call.result_fd] = (call, finish)
        self._selector.register(call.result_fd, selectors.EVENT_READ, lambda: self._result(call.result_fd))

    def _result(self, fd: int) -> None:
        """An answer comes in one write. The end of the pipe says nothing: a container's first process may hold it."""
        call, finish = self._calls[fd]
        try:
            raw = os.read(fd, MAX_MESSAGE)
        except BlockingIOError:
            return
        self._forget(call)
        finish(decode(raw) if raw else _CRASH)

    def _forget(self, call: calls.Call) -> None:
        del self._calls[call.result_fd]
        self._selector.unregister(call.result_fd)
        os.close(call.result_fd)

    def _call_ended(self, pid: int) -> bool:
        """If ``pid`` made a call: see that it is answered, even if it crashed."""
        found = next(((call, finish) for call, finish in self._calls.values() if call.pid == pid), None)
        if found is None:
            return False
        call, finish = found
        self._result(call.result_fd)
        if call.result_fd in self._calls:
            self._forget(call)
            finish(_CRASH)
        return True

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if self._call_ended(pid) or self._execs.claim(pid, status):
                    continue
                self._unclaimed[pid] = status
                self._claim(pid)
                while len(self._unclaimed) > MAX_UNCLAIMED:
                    del self._unclaimed[next(iter(self._unclaimed))]

    def _claim(self, pid: int) -> None:
        """If ``pid`` has ended and is a container's first process, that container has exited."""
        owner = next((c for c in self._containers.values() if c.pid == pid and c.status != "exited"), None)
        if owner is None or pid not in self._unclaimed:
            return
        code = os.waitstatus_to_exitcode(self._unclaimed.pop(pid))
        self._pumps.close(owner.id)
        oom, self._oom_kills = cgroups.out_of_memory(
            self._tools.groups, owner.cgroup, killed=code == -signal.SIGKILL, before=self._oom_kills
        )
        ended = owner._replace(
            status="exited",
            finished_at=state.now_ms(),
            exit_code=code if code >= 0 else 128 - code,
            oom=oom,
        )
        self._set(ended)
        self._tell({"event": "exit", "container": ended.as_json()})
