"""The daemon's view of one shim: typed requests, and containers' exits that are never missed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from machineplane.runtime.errors import HelperLost
from machineplane.runtime.helper import HelperClient
from machineplane.runtime.shim.wire import Message


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


class ShimLink:
    """Requests to a shim; :meth:`listen` runs beside them."""

    def __init__(self, client: HelperClient) -> None:
        self._client = client
        self._exits: dict[str, Exit] = {}
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

    async def shutdown(self) -> None:
        """End the shim, which must have no containers, and wait until it is gone."""
        await self._client.request("shutdown")
        await self.lost.wait()
