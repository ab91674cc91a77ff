"""The daemon's view of one shim: typed requests, and containers' exits that are never missed."""

import secrets
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from machineplane.runtime.bundle.volumes import Bind
from machineplane.runtime.errors import HelperError, HelperLost
from machineplane.runtime.helper import HelperClient
from machineplane.runtime.shim.wire import Message

HANGUP_S = 1.0
"""How long a process of :meth:`ShimLink.execute` has after SIGHUP; a guess: it is long for an orderly shell."""


@frozen(kw_only=True)
class Exit:
    """A container that has ended. Times in ms since the epoch."""

    id: str
    exit_code: int
    oom: bool
    started_at: int
    finished_at: int

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Exit":
        """From a shim's description of a container."""
        return cls(
            id=str(raw["id"]),
            exit_code=int(raw["exit_code"]),
            oom=bool(raw["oom"]),
            started_at=int(raw["started_at"]),
            finished_at=int(raw["finished_at"]),
        )


NEVER_RAN = -1
"""Stands for the exit code of a process that libcrun could not run, so that nobody waits for its end."""


class ShimLink:
    """Requests to a shim; :meth:`listen` runs beside them."""

    def __init__(self, client: HelperClient) -> None:
        self._client = client
        self._exits: dict[str, Exit] = {}
        self._execs: dict[int, int | None] = {}
        self._news = trio.Event()

    @property
    def lost(self) -> trio.Event:
        """Set when the connection is over."""
        return self._client.lost

    async def listen(self) -> None:
        """Take the shim's events until it is gone."""
        async for event in self._client.events:
            if event["event"] == "exit":
                self.note(Exit.parse(event["container"]))
            elif event["event"] == "exec-exit" and event["exec"] in self._execs:
                self._execs[event["exec"]] = int(event["exit_code"])
                self._wake()
        self._wake()

    def note(self, ended: Exit) -> None:
        """Remember that a container has ended."""
        self._exits[ended.id] = ended
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def wait_exit(self, container_id: str) -> Exit:
        """Wait for a container's end.

        Raises:
            HelperLost: the shim went away before.
        """
        while container_id not in self._exits:
            if self.lost.is_set():
                raise HelperLost("the shim is gone")
            await self._news.wait()
        return self._exits[container_id]

    async def containers(self) -> tuple[list[Message], int]:
        """All containers that the shim has, and how many it is making; notes those that have ended."""
        answer = await self._client.request("status")
        listed = list(answer["containers"])
        for container in listed:
            if container["status"] == "exited":
                self.note(Exit.parse(container))
        return listed, int(answer["creating"])

    async def pid(self) -> int:
        """The helper's process id."""
        return int((await self._client.request("status"))["pid"])

    async def tmpfs(self, path: Path, size: int) -> None:
        """Mount a file system in memory, for as long as the shim lives. ``size`` in bytes, 0 for the default."""
        await self._client.request("tmpfs", path=str(path), size=size)

    async def create(
        self,
        container_id: str,
        *,
        name: str,
        attempt: int,
        bundle: Path,
        layers: Sequence[Path],
        log: Path,
        cgroup: str,
        stdin: bool = False,
        binds: Mapping[Path, Bind] | None = None,
        console: str = "",
    ) -> int:
        """Create a container; answers its first process's id, which waits for :meth:`start`."""
        answer = await self._client.request(
            "create",
            container=container_id,
            name=name,
            attempt=attempt,
            bundle=str(bundle),
            layers=[str(layer) for layer in layers],
            log=str(log),
            cgroup=cgroup,
            stdin=stdin,
            binds=[[at.name, b.root, b.path, b.kind, b.make] for at, b in (binds or {}).items()],
            console=console,
        )
        return int(answer["pid"])

    async def start(self, container_id: str) -> int:
        """Let it run; answers when, in ms since the epoch."""
        return int((await self._client.request("start", container=container_id))["started_at"])

    async def kill(self, container_id: str, signal: int) -> None:
        """Send a signal to its first process; nothing happens if it has ended."""
        await self._client.request("kill", container=container_id, signal=signal)

    async def delete(self, container_id: str) -> None:
        """Remove what is left of a container that has ended."""
        await self._client.request("delete", container=container_id)
        self._exits.pop(container_id, None)

    @asynccontextmanager
    async def execute(
        self, container_id: str, args: Sequence[str], stdio: Sequence[int], console: str = ""
    ) -> AsyncIterator[int]:
        """Run one more process in a container with ``stdio`` as its 0, 1 and 2; answers a number for it.

        With ``console``, the path of a listening socket, it gets a terminal and the socket the terminal's other end.
        Leaving the context ends the process: by SIGHUP, and after :data:`HANGUP_S` by SIGKILL.

        Raises:
            HelperError: it cannot be run; the reason.
        """
        number = secrets.randbits(31)
        self._execs[number] = None
        try:
            await self._request_exec(
                number, container=container_id, args=list(args), console=console, fds=stdio
            )
            yield number
        finally:
            with trio.CancelScope(shield=True), suppress(HelperError):
                await self._end(number)
            del self._execs[number]

    @asynccontextmanager
    async def attached(self, container_id: str, stdout: int, stderr: int) -> AsyncIterator[None]:
        """Have a container's output, from now on, written to these pipes too, until the context ends.

        A pipe that is full is closed: the container never waits for it.

        Raises:
            HelperError: the container does not run, or too many are attached.
        """
        number = secrets.randbits(31)
        try:
            await self._client.request("attach", fds=(stdout, stderr), attach=number, container=container_id)
            yield
        finally:
            with trio.CancelScope(shield=True), suppress(HelperError):
                await self._client.request("detach", attach=number)

    async def end_input(self, container_id: str) -> None:
        """No more stdin will come for a container; one that has ended is fine."""
        with suppress(HelperError):
            await self._client.request("end-input", container=container_id)

    async def resize(self, container_id: str, width: int, height: int) -> None:
        """Tell a container's own terminal its size, in characters; one that has ended is fine."""
        with suppress(HelperError):
            await self._client.request("resize", container=container_id, width=width, height=height)

    async def _request_exec(self, number: int, **fields: Any) -> None:
        try:
            await self._client.request("exec", exec=number, **fields)
        except HelperError:
            self._execs[number] = NEVER_RAN
            raise

    async def _end(self, number: int) -> None:
        if self._execs[number] is not None or self.lost.is_set():
            return
        await self._client.request("exec-signal", exec=number, signal=signal.SIGHUP)
        with trio.move_on_after(HANGUP_S):
            await self.wait_executed(number)
            return
        await self._client.request("exec-signal", exec=number, signal=signal.SIGKILL)

    async def wait_executed(self, number: int) -> int:
        """Wait for the end of a process of :meth:`execute`; its exit code.

        Raises:
            HelperLost: the shim went away before.
        """
        while (code := self._execs[number]) is None:
            if self.lost.is_set():
                raise HelperLost("the shim is gone")
            await self._news.wait()
        return code

    async def shutdown(self) -> None:
        """End the shim, which must have no containers, and wait until it is gone."""
        await self._client.request("shutdown")
        await self.lost.wait()
