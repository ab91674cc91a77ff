"""How machines show each other their tables: one stream per pair and direction, deltas as they come.

A machine follows every machine it is connected to (so at most the mesh's ``max_connections``). The stream carries frames,
each a `Delta`; while nothing changes it carries nothing. A read that must see what was acknowledged elsewhere asks each
machine for its table's version first and waits, for at most ``BARRIER_S``, until the mirror has it.
"""

from collections.abc import AsyncIterator, Iterator, Mapping

import structlog
import trio
from attrs import evolve

from machineplane.fabric.table import SECRET, Delta, Entry, Table
from machineplane.fabric.view import View
from magik_mesh import Call, MeshError, Node, PeerDown, PeerUp
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.rpc import FrameDecoder, encode_frame

FOLLOW = "/magik/fabric/follow/1.0.0"
VERSION = "/magik/fabric/version/1.0.0"

BARRIER_S = 1.0  # guess: a machine that is slower than this is shown as it was a moment ago
REFOLLOW_S = 1.0
SIZE_S = 1.0  # between looks at the fabric's size
# How long the pods of a machine that fell silent still count: its daemon may only be restarting, and its pods run on.
# With the mesh's 10 s of silence before it, a replica is tendered again well within 30 s. A guess.
ABSENCE_GRACE_S = 5.0
CHUNK_BYTES = 4 * 1024 * 1024  # a frame may be 16 MiB
_READ_BYTES = 65_536


class Follower:
    """Serves the own table and mirrors those of the connected peers into the view."""

    def __init__(self, node: Node, table: Table, view: View) -> None:
        self._node = node
        self._table = table
        self._view = view
        self._following: dict[PeerId, trio.CancelScope] = {}
        self._absent: dict[PeerId, trio.CancelScope] = {}
        self._moved = trio.Event()  # the own table or a mirror has changed
        self._log = structlog.get_logger(room="fabric")
        table.on_change(self._own_change)
        node.handle(FOLLOW, self._serve)
        node.handle(VERSION, self._version)

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """The machines whose tables are being followed, self left out."""
        return tuple(self._following)

    async def run(self) -> None:
        """Follow peers as they come and drop them as they go; ends only when cancelled.

        In a large fabric nobody is followed (see `reader`): a stream would hold a connection for good.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._mind_size, nursery)
            async for event in self._node.subscribe_peers():
                match event:
                    case PeerUp(info=info):
                        self._arrive(info.id, nursery)
                    case PeerDown(id=peer):
                        self._leave(peer, nursery)

    async def _mind_size(self, nursery: trio.Nursery) -> None:
        """The fabric has become larger than a machine has connections, or small again."""
        large = False
        while True:
            await trio.sleep(SIZE_S)
            if self._node.large == large:
                continue
            large = self._node.large
            self._log.info("fabric-is-large" if large else "fabric-is-small")
            for peer in self.peers if large else ():
                self._following.pop(peer).cancel()
            for info in () if large else self._node.peers():
                if info.connected:
                    self._arrive(info.id, nursery)

    def _arrive(self, peer: PeerId, nursery: trio.Nursery) -> None:
        if absence := self._absent.pop(peer, None):
            absence.cancel()
        if self._node.large:
            return
        if peer not in self._following:
            self._following[peer] = trio.CancelScope()
            nursery.start_soon(self._follow, peer, self._following[peer])

    def _leave(self, peer: PeerId, nursery: trio.Nursery) -> None:
        if scope := self._following.pop(peer, None):
            scope.cancel()
        if self._node.large:
            return
        if peer not in self._absent:
            self._absent[peer] = trio.CancelScope()
            nursery.start_soon(self._drop_later, peer, self._absent[peer])

    async def _drop_later(self, peer: PeerId, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep(ABSENCE_GRACE_S)
            self._absent.pop(peer, None)
            if self._node.large:
                return  # who is not connected may well be alive
            self._log.warning("machine-lost", peer=str(peer))
            self._view.drop(peer)
            self._wake()

    async def settle(self, timeout: float = BARRIER_S) -> None:
        """Return when the view has all that the connected machines knew at the call, or after ``timeout`` seconds."""
        with trio.move_on_after(timeout):
            async with trio.open_nursery() as nursery:
                for peer in self.peers:
                    nursery.start_soon(self._catch_up, peer)

    async def _catch_up(self, peer: PeerId) -> None:
        try:
            body = await self._node.call(peer, VERSION, {}, timeout=BARRIER_S)
        except MeshError:
            return  # it is going; `run` will hear of it
        if not isinstance(body, Mapping):
            return
        epoch, stamp = body.get("epoch"), body.get("stamp")
        while isinstance(stamp, int) and peer in self._following:
            mirror = self._view.mirrors.get(peer)
            if mirror is not None and mirror.epoch == epoch and mirror.stamp >= stamp:
                return
            await self._moved.wait()

    def _own_change(self, entry: Entry) -> None:
        mirror = self._view.mirrors[self._view.own]
        self._view.apply(self._view.own, self._table.since(mirror.epoch, mirror.stamp))
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def _version(self, call: Call) -> object:
        return {"epoch": self._table.epoch, "stamp": self._table.version}

    async def _serve(self, call: Call) -> None:
        body = call.body if isinstance(call.body, Mapping) else {}
        epoch, stamp = body.get("epoch"), body.get("stamp")
        if not isinstance(epoch, int) or not isinstance(stamp, int):
            raise RemoteProtocolError("follow.body", "epoch and stamp are missing")
        await call.reply({})
        sent = None
        while True:
            moved = self._moved
            if sent != self._table.version:
                for delta in chunks(visible(self._table.since(epoch, stamp), call.roles)):
                    await call.stream.send_all(encode_frame(delta.to_wire()))
                    epoch, stamp = delta.epoch, delta.stamp
                sent = self._table.version if stamp >= self._table.version else None
            if sent is not None:
                await moved.wait()

    async def _follow(self, peer: PeerId, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                try:
                    await self._read(peer)
                except (MeshError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    self._log.debug("follow-broke", peer=str(peer), error=str(error))
                except (RemoteProtocolError, ValueError) as error:
                    self._log.warning("follow-malformed", peer=str(peer), error=str(error))
                await trio.sleep(REFOLLOW_S)

    async def _read(self, peer: PeerId) -> None:
        mirror = self._view.mirrors.get(peer)
        where = {"epoch": mirror.epoch if mirror else 0, "stamp": mirror.stamp if mirror else 0}
        async with self._node.open_call(peer, FOLLOW, where, timeout=10.0) as (_, stream):
            async for value in frames(stream):
                self._view.apply(peer, Delta.from_wire(value))
                self._wake()


async def frames(stream: trio.abc.ReceiveStream) -> AsyncIterator[object]:
    """The values of length-prefixed frames until the stream ends. Raises RemoteProtocolError on malformed ones."""
    decoder = FrameDecoder()
    while data := await stream.receive_some(_READ_BYTES):
        for value in decoder.feed(bytes(data)):
            yield value


def visible(delta: Delta, roles: frozenset[str]) -> Delta:
    """What a follower may see: a machine that may only run pods gets Secrets with its awards, and no others."""
    if "submit" in roles:
        return delta
    entries = tuple(entry for entry in delta.entries if not (entry.value or {}).get(SECRET))
    return evolve(delta, entries=entries)


def chunks(delta: Delta, limit: int = CHUNK_BYTES) -> Iterator[Delta]:
    """The delta in parts whose entries take about ``limit`` bytes; each part joins on to the one before."""
    part: list[Entry] = []
    size, since, reset = 0, delta.since, delta.reset
    for entry in delta.entries:
        weight = 256 + sum(len(v) for v in (entry.value or {}).values() if isinstance(v, bytes))
        if part and size + weight > limit:
            yield Delta(delta.epoch, since, part[-1].stamp, reset, tuple(part))
            since, reset, part, size = part[-1].stamp, False, [], 0
        part.append(entry)
        size += weight
    yield Delta(delta.epoch, since, delta.stamp, reset, tuple(part))
