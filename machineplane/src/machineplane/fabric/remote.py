"""What machines ask of each other beside tables: guard this manifest, stop that pod, show its log."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import structlog
import trio

from machineplane.fabric.guardian import guardians, keepers
from machineplane.fabric.holdings import HoldingsFull
from machineplane.fabric.manifests import Manifest
from magik_mesh import Call, CallRefused, MeshError, Node
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.messages import decode_as, encode_message
from magik_proto.records import Workload
from magik_proto.signing import verify

HOLD = "/magik/fabric/hold/1.0.0"
RETIRE = "/magik/pod/retire/1.0.0"
LOGS = "/magik/pod/logs/1.0.0"
LOOK = "/magik/fabric/look/1.0.0"

HOLD_TIMEOUT_S = (
    2.0  # guess: an API call waits for this at most; who was too slow learns of the manifest by following
)
BRIEF_MAX = 200_000  # bytes of a manifest for which no connection is taken into use
RETIRE_TIMEOUT_S = 5.0
LOOK_TIMEOUT_S = 5.0
_READ_BYTES = 65_536

LogQuery = Mapping[str, Any]
Keepers = Callable[[Workload], Awaitable[list[PeerId]]]
OpenLog = Callable[[LogQuery], AbstractAsyncContextManager[AsyncIterator[bytes]]]


class LogUnavailable(Exception):
    """There is no such log; the text says why."""


class Remote:
    """Both ends of these calls."""

    def __init__(
        self,
        node: Node,
        *,
        guard: Callable[[Workload], bool],
        stop: Callable[[str, int | None], None],
        open_log: OpenLog,
        look: Callable[[UUID], bool],
    ) -> None:
        self._node = node
        self._guard = guard
        self.keepers: Keepers | None = None  # in a large fabric
        self._stop = stop
        self._open_log = open_log
        self._look = look
        self._log = structlog.get_logger(room="fabric")
        node.handle(HOLD, self._on_hold, brief=True)
        node.handle(RETIRE, self._on_retire, brief=True)
        node.handle(LOGS, self._on_logs)
        node.handle(LOOK, self._on_look, brief=True)

    async def spread(self, workload: Workload, before: Workload | None = None) -> int:
        """Give a manifest to its guardians, and to the author of the one before it; how many took it.

        Those that cannot be reached are left to `Guardian`.
        """
        others = {*await self._guardians(workload), *([before.author] if before else [])} - {self._node.id}
        taken: list[PeerId] = []

        async def give(peer: PeerId) -> None:
            if await self.give(peer, workload):
                taken.append(peer)

        async with trio.open_nursery() as nursery:
            for peer in others:
                nursery.start_soon(give, peer)
        return len(taken)

    async def _guardians(self, workload: Workload) -> list[PeerId]:
        if self._node.large and self.keepers is not None:
            return await self.keepers(workload)
        alive = [self._node.id, *(info.id for info in self._node.peers() if info.connected)]
        return guardians(workload.resource, keepers(workload, alive, self._node.roles))

    async def give(self, peer: PeerId, workload: Workload) -> bool:
        """Have a machine guard a manifest; whether it does."""
        data = encode_message(workload)
        call = self._node.ask if len(data) <= BRIEF_MAX else self._node.call
        try:
            await call(peer, HOLD, data, timeout=HOLD_TIMEOUT_S)
        except MeshError as error:
            self._log.info("manifest-not-taken", peer=str(peer), error=str(error))
            return False
        return True

    async def retire(self, peer: PeerId, pod: str, grace_s: int | None = None) -> None:
        """Ask a machine to stop a pod. A machine that cannot be reached keeps it until it is asked again."""
        if peer == self._node.id:
            self._stop(pod, grace_s)
            return
        body = {"uid": pod} if grace_s is None else {"uid": pod, "grace": grace_s}
        try:
            await self._node.ask(peer, RETIRE, body, timeout=RETIRE_TIMEOUT_S)
        except MeshError as error:
            self._log.info("retire-lost", peer=str(peer), pod=pod, error=str(error))

    async def look(self, peer: PeerId, uid: UUID) -> bool:
        """Have a machine look at a workload that it acts for; whether it is disposed of. Raises MeshError."""
        if peer == self._node.id:
            return self._look(uid)
        answer = await self._node.ask(peer, LOOK, {"uid": uid.bytes}, timeout=LOOK_TIMEOUT_S)
        return isinstance(answer, Mapping) and answer.get("disposed") is True

    async def ask_actor(self, workload: Workload, actor: PeerId) -> bool:
        """Have who acts for a workload look at it; whether it is disposed of. Raises MeshError where nobody answers.

        ``actor`` is who acts by the list of live machines; in a large fabric that says nothing, and who acts is the author
        or the first guardian that lives.
        """
        peers = [actor]
        if self._node.large and self.keepers is not None:
            peers = list(dict.fromkeys((workload.author, *await self.keepers(workload))))
        *first, last = peers
        for peer in first:
            with suppress(MeshError):
                return await self.look(peer, workload.uid)
        return await self.look(last, workload.uid)

    async def _on_look(self, call: Call) -> object:
        _require(call, "run")
        raw = call.body.get("uid") if isinstance(call.body, Mapping) else None
        if not isinstance(raw, bytes) or len(raw) != 16:
            raise CallRefused("look.body", "the uid of a workload, 16 bytes, is expected")
        return {"disposed": self._look(UUID(bytes=raw))}

    @asynccontextmanager
    async def logs(self, peer: PeerId, query: LogQuery) -> AsyncIterator[AsyncIterator[bytes]]:
        """A log of a pod, wherever it runs. Raises LogUnavailable."""
        if peer == self._node.id:
            async with self._open_log(query) as chunks:
                yield chunks
            return
        try:
            async with self._node.open_call(peer, LOGS, dict(query), timeout=10.0) as (_, stream):
                yield _chunks(stream)
        except MeshError as error:
            raise LogUnavailable(str(error)) from error

    async def _on_hold(self, call: Call) -> object:
        _require(call, "submit")
        try:
            workload = decode_as(Workload, call.body if isinstance(call.body, bytes) else b"")
            verify(workload)
            Manifest.of(workload)
            return {"news": self._guard(workload)}
        except RemoteProtocolError as error:
            raise CallRefused(error.rule, error.detail) from error
        except ValueError as error:
            raise CallRefused("hold.manifest", str(error)) from error
        except HoldingsFull as error:
            raise CallRefused("hold.full", str(error)) from error

    async def _on_retire(self, call: Call) -> object:
        _require(call, "submit")
        body = call.body if isinstance(call.body, Mapping) else {}
        uid, grace = body.get("uid"), body.get("grace")
        if not isinstance(uid, str) or not (grace is None or (isinstance(grace, int) and grace >= 0)):
            raise CallRefused("retire.body", "uid and, if at all, a grace of so many seconds are expected")
        self._stop(uid, grace)
        return {}

    async def _on_logs(self, call: Call) -> None:
        query = call.body if isinstance(call.body, Mapping) else {}
        try:
            async with self._open_log({str(k): v for k, v in query.items()}) as chunks:
                await call.reply({})
                async for chunk in chunks:
                    await call.stream.send_all(chunk)
        except LogUnavailable as error:
            raise CallRefused("logs", str(error)) from error


def _require(call: Call, role: str) -> None:
    if role not in call.roles:
        raise CallRefused("membership.role", f"{call.peer} has no role {role!r}")


async def _chunks(stream: trio.abc.ReceiveStream) -> AsyncIterator[bytes]:
    while data := await stream.receive_some(_READ_BYTES):
        yield bytes(data)
