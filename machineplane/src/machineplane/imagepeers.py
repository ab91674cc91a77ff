"""Images from machine to machine: the mesh's calls, and what they mean to the store. Joins the two.

Both sides are bounded, and neither believes the other: what is asked for is checked here, what is sent by who asked.
In a fabric larger than a machine has connections, the index says whom else to ask, and is told what is here.
"""

import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, BinaryIO

import structlog
import trio
from attrs import frozen

from machineplane.runtime.images.errors import BadAnswer, ImageError, MachineUnreachable, PullFailed
from machineplane.runtime.images.handout import Handout, Held
from machineplane.runtime.images.names import is_digest
from machineplane.runtime.images.peers import Offer
from machineplane.runtime.images.sources import BlobStream
from magik_mesh import Call, CallRefused, MeshError, Node, RpcFailed
from magik_proto.identity import PeerId

FIND = "/magik/image/find/1.0.0"
BLOB = "/magik/image/blob/1.0.0"

FIND_TIMEOUT_S = 2.0
INDEX_S = 12.0  # for a lookup in the index (10 s at most) and for those whom it names; a guess
REACH_TIMEOUT_S = 5.0  # an answer of a machine to which a connection has to be made first; a guess
TOLD_READ_S = 5.0  # how often it is read what there is to tell; a guess
ENOUGH_S = 0.2  # after the first that has it: time for a few more, so that not all take it from one
OPEN_TIMEOUT_S = 15.0
READ_TIMEOUT_S = 30.0
SOURCES_MAX = 8
HANDED_OUT_MAX = 8  # blobs read for others at once
BUSY_WAIT_S = 5.0
NAME_MAX = 512  # characters of a name; a reference has at most 255 before tag and digest
_CHUNK = 256 * 1024
_ROLE = "run"

Holders = Callable[[str], Awaitable[Sequence[PeerId]]]
"""Which machines tell that they have the image of a digest or a complete name; nobody where that is not known."""


async def nobody(_: str) -> Sequence[PeerId]:
    """The holders where there is no index."""
    return ()


class ImagePeers:
    """Serves this machine's images to others, and is the runtime's ``Peers``."""

    def __init__(
        self,
        node: Node,
        handout: Handout,
        rng: random.Random,
        holders: Holders = nobody,
        *,
        busy_wait_s: float = BUSY_WAIT_S,
    ) -> None:
        self.told: tuple[str, ...] = ()  # digests and names for the index, while the fabric is large
        self._node = node
        self._handout = handout
        self._rng = rng
        self._holders = holders
        self._busy_wait_s = busy_wait_s
        self._reading = trio.CapacityLimiter(HANDED_OUT_MAX)
        self._log = structlog.get_logger(room="runtime")
        node.handle(FIND, self._on_find)
        node.handle(BLOB, self._on_blob)

    async def run(self) -> None:
        """Keep `told` true, until cancelled."""
        while True:
            if self._node.large:
                try:
                    self.told = await trio.to_thread.run_sync(self._handout.told)
                except (ImageError, OSError) as error:
                    self.told = ()
                    self._log.warning("images-not-told", error=str(error))
            await trio.sleep(TOLD_READ_S)

    # -- asking

    async def find_digest(self, digest: str) -> Sequence[Offer]:
        """See ``Peers``. In random order, so that many machines do not all take from the same one."""
        offers = await self._ask({"digest": digest}, digest, enough_s=ENOUGH_S)
        fitting = [offer for offer in offers if offer.digest == digest]
        self._rng.shuffle(fitting)
        return fitting[:SOURCES_MAX]

    async def find_name(self, ref: str) -> Sequence[Offer]:
        """See ``Peers``. Everybody is waited for: the newest counts."""
        return await self._ask({"name": ref}, ref, enough_s=INDEX_S)

    async def _ask(self, body: Mapping[str, str], ident: str, *, enough_s: float) -> list[Offer]:
        """Those with a connection, and at the same time whom the index names."""
        offers: list[Offer] = []
        asked: set[PeerId] = set()

        async def ask(peer: PeerId, timeout_s: float) -> None:
            offer = await self._ask_one(peer, body, timeout_s)
            if offer is not None:
                offers.append(offer)
                scope.deadline = min(scope.deadline, trio.current_time() + enough_s)

        async def ask_others() -> None:
            others = [peer for peer in await self._holders(ident) if peer not in asked]
            self._rng.shuffle(others)
            for peer in others[:SOURCES_MAX]:
                nursery.start_soon(ask, peer, REACH_TIMEOUT_S)

        with trio.move_on_after(INDEX_S) as scope:
            async with trio.open_nursery() as nursery:
                for info in self._node.peers():
                    if info.connected and _ROLE in info.roles:
                        asked.add(info.id)
                        nursery.start_soon(ask, info.id, FIND_TIMEOUT_S)
                nursery.start_soon(ask_others)
        return offers

    async def _ask_one(self, peer: PeerId, body: Mapping[str, str], timeout_s: float) -> Offer | None:
        try:
            answer = await self._node.call(peer, FIND, dict(body), timeout=timeout_s)
        except MeshError as error:
            self._log.debug("image-not-asked", peer=str(peer), error=str(error))
            return None
        fields = answer if isinstance(answer, Mapping) else {}
        digest, at = fields.get("digest"), fields.get("at")
        if not (isinstance(digest, str) and is_digest(digest) and isinstance(at, int)):
            return None
        return Offer(_Machine(self._node, peer), digest, at)

    # -- answering

    async def _on_find(self, call: Call) -> object:
        body = _body(call)
        digest, name = body.get("digest"), body.get("name")
        if isinstance(digest, str) and is_digest(digest):
            held = await trio.to_thread.run_sync(self._handout.by_digest, digest)
        elif isinstance(name, str) and len(name) <= NAME_MAX:
            held = await trio.to_thread.run_sync(self._handout.by_name, name)
        else:
            raise CallRefused("image.body", "a digest or a name is expected")
        return _held(held)

    async def _on_blob(self, call: Call) -> None:
        body = _body(call)
        digest, offset = body.get("digest"), body.get("offset")
        if not (isinstance(digest, str) and is_digest(digest)) or not isinstance(offset, int):
            raise CallRefused("image.body", "a digest and an offset are expected")
        async with self._turn():
            with await trio.to_thread.run_sync(self._open, digest) as file:
                size = os.fstat(file.fileno()).st_size
                if not 0 <= offset <= size:
                    raise CallRefused("image.offset", f"{digest} has {size} bytes")
                file.seek(offset)
                await call.reply({"size": size})
                await _send(file, call)

    def _open(self, digest: str) -> BinaryIO:
        path = self._handout.blob(digest)
        try:
            if path is not None:
                return path.open("rb")
        except FileNotFoundError:
            pass  # it went just now
        raise CallRefused("image.unknown", f"{digest} is not to be had here")

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        holder = object()
        with trio.move_on_after(self._busy_wait_s) as scope:
            await self._reading.acquire_on_behalf_of(holder)
        if scope.cancelled_caught:
            raise CallRefused("image.busy", "too many machines take images from here at present")
        try:
            yield
        finally:
            self._reading.release_on_behalf_of(holder)


async def _send(file: BinaryIO, call: Call) -> None:
    """The rest of the file; a caller that takes nothing for long is left."""
    while chunk := await trio.to_thread.run_sync(file.read, _CHUNK):
        with trio.move_on_after(READ_TIMEOUT_S) as scope:
            await call.stream.send_all(chunk)
        if scope.cancelled_caught:
            call.stream.reset(0)
            return


def _body(call: Call) -> Mapping[str, Any]:
    if _ROLE not in call.roles:
        raise CallRefused("membership.role", f"{call.peer} has no role {_ROLE!r}")
    return call.body if isinstance(call.body, Mapping) else {}


def _held(held: Held | None) -> dict[str, object]:
    return {} if held is None else {"digest": held.digest, "at": held.at}


@frozen
class _Machine:
    """A ``Source``: another machine. Its name in errors is the first digits of its identity."""

    _node: Node
    _peer: PeerId

    @property
    def subject(self) -> str:
        return f"machine {str(self._peer)[:16]}"

    @asynccontextmanager
    async def blob(self, digest: str, offset: int) -> AsyncIterator[BlobStream]:
        """See ``Source``."""
        body = {"digest": digest, "offset": offset}
        try:
            async with (
                self._node.open_call(self._peer, BLOB, body, timeout=OPEN_TIMEOUT_S) as (_, stream),
                aclosing(self._chunks(stream)) as chunks,
            ):
                yield BlobStream(offset, chunks)
        except RpcFailed as error:
            raise PullFailed(self.subject, f"gives no {digest} ({error.message or error.code})") from error
        except MeshError as error:
            raise MachineUnreachable(self.subject, f"cannot be reached ({error})") from error

    async def _chunks(self, stream: trio.abc.ReceiveStream) -> AsyncGenerator[bytes]:
        while True:
            try:
                with trio.fail_after(READ_TIMEOUT_S):
                    data = await stream.receive_some(_CHUNK)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
                raise MachineUnreachable(self.subject, f"broke off ({error or 'silence'})") from error
            if not data:
                return
            yield bytes(data)

    async def document(self, digest: str, limit: int) -> bytes:
        """See ``Source``."""
        data = bytearray()
        async with self.blob(digest, 0) as stream:
            async for chunk in stream.chunks:
                data += chunk
                if len(data) > limit:
                    raise BadAnswer(self.subject, f"sends a document of more than {limit} bytes")
        return bytes(data)
