"""Finding replicas and being found: the own record told to the plane, those of others taken into the catalog.

News travels three ways: a record that changes is gossiped in its namespace; who connects exchanges records; and every
heartbeat each record goes into the hash table, from which the workloads that somebody uses are read again and again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import structlog
import trio

from magik_mesh import Accept, Call, CallRefused, Judgement, MeshError, Node, PeerDown, PeerUp, Verdict
from magik_mesh.clock import SystemClock, unit_random
from magik_proto import signing
from magik_proto.credentials import Revocations
from magik_proto.dht_kinds import service_key
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import BootstrapPeer, PeerId
from magik_proto.passes import PodIdentity
from magik_proto.records import ServiceRecord
from magik_proto.replay import ReplayFilter
from magik_proto.wire import decode_as, encode_message
from workplane.belief import Beliefs
from workplane.catalog import Catalog
from workplane.follows import Follows
from workplane.ownrecord import Caps, OwnRecord

EXCHANGE: Final = "/workplane/record/1.0.0"
TOPIC: Final = "magik-services/"
CALL_S: Final = 5.0
"""For an exchange of records, or a search in the table. A guess."""
CHANGES_S: Final = 0.1
"""Between two announcements of changes: a leader that comes and goes floods nobody. A guess."""
WITHDRAW_S: Final = 1.0
"""For the last record to be told. A guess; the others hear it by gossip within a round trip."""
MAX_REPLAY: Final = 10_000
"""Gossiped records that are remembered for 300 s, a tenth of it of one signer; they tell of changes only, so that is plenty.
At it: refused. A guess."""
MAX_GONE: Final = 1_024
"""Peers of which it is remembered when they went. At it the one that went first is forgotten. A guess."""
_BLAMED: Final = ("codec.", "message.", "signature.")
"""What no honest agent hands on; clocks, passes and revocations are seen differently by honest ones."""

OnRecord = Callable[[ServiceRecord], None]


class Discovery:
    """Made before the node's first await (it registers handlers); `run` it until the end, then `withdraw`."""

    def __init__(
        self,
        node: Node,
        own: OwnRecord,
        catalog: Catalog,
        beliefs: Beliefs,
        wall: Callable[[], int],
        *,
        heartbeat_s: float,
    ) -> None:
        self._node = node
        self._own = own
        self._catalog = catalog
        self._beliefs = beliefs
        self._wall = wall
        self._heartbeat = heartbeat_s
        self._follows = Follows(fresh_s=heartbeat_s)
        self._asking: dict[str, trio.Event] = {}
        self._listeners: list[OnRecord] = []
        self._bootstrap: tuple[BootstrapPeer, ...] = ()
        self._replay = ReplayFilter(wall(), MAX_REPLAY, MAX_REPLAY // 10)
        self._changed = trio.Event()
        self._used = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._announcing = trio.CancelScope()
        self._log = structlog.get_logger(part="discovery")
        self.topic = TOPIC + own.resource.namespace
        self._gone: OrderedDict[PeerId, int] = OrderedDict()
        self.announced = 0
        self.refused = 0
        node.handle(EXCHANGE, self._on_exchange)
        node.subscribe(self.topic, self._judge)
        node.on_revocations(self._on_revocations)
        self._follows.use(str(own.resource), -math.inf, pinned=True)

    # -- for the other parts

    def change(
        self, *, ready: bool | None = None, healthy: bool | None = None, caps: Caps | None = None
    ) -> None:
        """Something is true of this replica: told at once if it is news. After `withdraw` nothing is."""
        if not self._announcing.cancel_called and self._own.change(ready=ready, healthy=healthy, caps=caps):
            self._changed.set()

    def on_record(self, listener: OnRecord) -> None:
        """Call `listener` with each record that is news: new, or newer than its signer's before."""
        self._listeners.append(listener)

    def identify(self, peer: PeerId) -> PodIdentity | None:
        """Who a connected peer proved to be by its pass; None without one."""
        return self._beliefs.identify(peer, self._node.shown(peer))

    def introduce(self, peers: Iterable[BootstrapPeer]) -> None:
        """The machine knows of these agents: dialled now, and again while nobody is connected."""
        self._bootstrap = tuple(peers)
        for peer in self._bootstrap:
            self._node.introduce(peer)

    async def follow(self, workload_id: str) -> None:
        """Return when the table has been asked for a workload lately; it is kept up to date while it is used.

        Lately is within two heartbeats. Needs `run`.
        """
        if not self._follows.use(workload_id, trio.current_time()):
            await trio.lowlevel.checkpoint()
            return
        asked = self._asking.get(workload_id)
        if asked is None:
            asked = self._start_asking(workload_id)
        await asked.wait()

    # -- tasks

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce, listen and follow until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._announce)
            nursery.start_soon(self._meet)
            nursery.start_soon(self._refresh)
            task_status.started()

    async def withdraw(self) -> None:
        """Tell a last record, of a replica that is neither ready nor healthy: by call to whoever is connected, too.

        Gossip that stands in an outbox at the end is lost.
        """
        self._announcing.cancel()
        self._own.change(ready=False, healthy=False)
        record = self._own.sign()
        with trio.move_on_after(WITHDRAW_S):
            async with trio.open_nursery() as nursery:
                await self._tell(nursery, record, gossip=True)
                for peer in self._node.peers():
                    if peer.connected:
                        nursery.start_soon(self._exchange, peer.id)

    async def _announce(self) -> None:
        gossip = True
        with self._announcing:
            async with trio.open_nursery() as nursery:
                while True:
                    self._changed = trio.Event()
                    await self._tell(nursery, self._own.sign(), gossip=gossip)
                    await trio.sleep(CHANGES_S)
                    with trio.move_on_after(
                        self._heartbeat * (0.8 + 0.2 * unit_random(SystemClock())) - CHANGES_S
                    ) as beat:
                        await self._changed.wait()
                    gossip = not beat.cancelled_caught

    async def _tell(self, nursery: trio.Nursery, record: ServiceRecord, *, gossip: bool) -> None:
        self._take([record])
        if gossip:
            await self._node.publish(self.topic, encode_message(record))
        nursery.start_soon(self._put, record)

    async def _put(self, record: ServiceRecord) -> None:
        with trio.move_on_after(self._heartbeat):
            done = await self._node.put(record)
            self.announced += 1
            if done.refused:
                self._log.debug("record-refused", kept_by=done.stored, refused=done.refused)

    async def _meet(self) -> None:
        """Exchange records with everybody who connects."""
        while True:
            async with trio.open_nursery() as nursery:
                async for event in self._node.subscribe_peers():
                    match event:
                        case PeerUp(info):
                            self._gone.pop(info.id, None)
                            if self._node.id < info.id:
                                nursery.start_soon(self._exchange, info.id)
                        case PeerDown(peer, reason) if reason.startswith(("goodbye", "lost", "refused")):
                            self._lose(peer)
            await trio.lowlevel.checkpoint()

    def _lose(self, peer: PeerId) -> None:
        """Its records go, and what the table still has of it is not taken for news."""
        self._gone[peer] = self._wall()
        self._gone.move_to_end(peer)
        if len(self._gone) > MAX_GONE:
            self._gone.popitem(last=False)
        self._forget(lambda record: record.peer_id == peer)

    async def _exchange(self, peer: PeerId) -> None:
        try:
            answer = await self._node.call(peer, EXCHANGE, self._greeting(), timeout=CALL_S)
            self._hear(peer, answer)
        except (MeshError, RemoteProtocolError) as error:
            self._log.debug("exchange-failed", peer=str(peer), error=str(error))

    async def _on_exchange(self, call: Call) -> Any:
        try:
            self._hear(call.peer, call.body)
        except RemoteProtocolError as error:
            raise CallRefused(error.rule, error.detail) from error
        return self._greeting()

    def _greeting(self) -> dict[str, bytes]:
        return {"record": encode_message(self._own.sign())}

    def _hear(self, peer: PeerId, body: object) -> None:
        record = self._read(body.get("record") if isinstance(body, dict) else None)
        if record.peer_id != peer:
            raise RemoteProtocolError("record.other-pod", f"{peer} tells the record of {record.peer_id}")
        self._take([record])

    async def _refresh(self) -> None:
        """Ask the table for what is followed, and forget what is over."""
        while True:
            self._used = trio.Event()
            now = trio.current_time()
            for workload_id in self._follows.due(now):
                if workload_id not in self._asking:
                    self._start_asking(workload_id)
            self._catalog.expire(self._wall())
            self._seek_company()
            due = self._follows.next_timeout()
            with trio.move_on_at(now + self._heartbeat if due is None else max(due, now + CHANGES_S)):
                await self._used.wait()

    def _seek_company(self) -> None:
        if not any(peer.connected for peer in self._node.peers()):
            for peer in self._bootstrap:
                self._node.introduce(peer)

    def _start_asking(self, workload_id: str) -> trio.Event:
        if self._nursery is None:
            raise RuntimeError("Discovery.run has to be started first")
        asked = self._asking[workload_id] = trio.Event()
        self._follows.asked(workload_id, trio.current_time())
        self._nursery.start_soon(self._ask, workload_id, asked)
        self._used.set()
        return asked

    async def _ask(self, workload_id: str, asked: trio.Event) -> None:
        try:
            with trio.move_on_after(CALL_S):
                found = await self._node.records("service", service_key(workload_id))
                self._take(record for record in found if isinstance(record, ServiceRecord))
        finally:
            del self._asking[workload_id]
            self._follows.answered(workload_id, trio.current_time())
            asked.set()

    # -- records of others

    async def _judge(self, source: PeerId, payload: bytes) -> Judgement:
        """The validator of the namespace's topic."""
        await trio.lowlevel.checkpoint()
        try:
            record = self._read(payload)
            if record.namespace != self._own.resource.namespace:
                raise RemoteProtocolError(
                    "signature.namespace", f"a record of {record.workload_id} in {self.topic}"
                )
            self._replay.check(record.signer, record.replay_id, record.nonce, record.ts, self._wall())
        except RemoteProtocolError as error:
            self.refused += 1
            self._log.debug("record-refused", source=str(source), error=str(error))
            return Verdict.REJECT if error.rule.startswith(_BLAMED) else Verdict.IGNORE
        self._take([record])
        return Accept(record.signer)

    def _read(self, payload: object) -> ServiceRecord:
        if not isinstance(payload, bytes):
            raise RemoteProtocolError("message.malformed", "expected a record")
        record = decode_as(ServiceRecord, payload)
        signing.verify(record)
        self._beliefs.judge(record)
        return record

    def _take(self, records: Iterable[ServiceRecord]) -> None:
        for record in records:
            if record.ts <= self._gone.get(record.peer_id, -1):  # said before it left, and late
                continue
            before = self._catalog.of_peer(record.peer_id, record.workload_id)
            if not self._catalog.take([record], self._wall()):
                continue
            if before is None or before.version != record.version:  # not at every heartbeat
                self._log.info(
                    "replica",
                    pod=record.pod_name,
                    workload=record.workload_id,
                    ready=record.ready,
                    healthy=record.healthy,
                )
            for listener in self._listeners:
                listener(record)

    def _on_revocations(self, revocations: Revocations) -> None:
        self._beliefs.revoked(revocations)
        self._forget(lambda record: not self._beliefs.believes(record))

    def _forget(self, gone: Callable[[ServiceRecord], bool]) -> None:
        for workload_id in self._catalog.workloads():
            for record in self._catalog.known(workload_id):
                if gone(record):
                    self._catalog.forget(record.peer_id, workload_id)


Follow = Callable[[str], Awaitable[None]]
"""`Discovery.follow`, as other parts get it."""
