"""The node's part of the distributed hash table: drives `magik_proto.dht` over the node's connections."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import trio
from attrs import define, field
from structlog.typing import FilteringBoundLogger

from magik_mesh.addresses import Address, is_dialable, parse, text_of
from magik_mesh.briefs import Briefs
from magik_mesh.clock import Clock
from magik_mesh.config import NodeConfig
from magik_mesh.errors import CallRefused, MeshError
from magik_mesh.links import LinkTable
from magik_mesh.presence import Presence
from magik_mesh.roster import PeerDown, PeerUp, Roster
from magik_mesh.rpc_client import ask
from magik_mesh.rpc_server import Call
from magik_mesh.streams import STREAM_ERRORS
from magik_mesh.tls import Admitted
from magik_proto import dht_frames as frames
from magik_proto.dht import QUERY_TIMEOUT_S, Dht
from magik_proto.dht_kinds import Kinds, machine_kind
from magik_proto.dht_types import (
    Answer,
    Answered,
    Ask,
    Cancel,
    DhtEvent,
    DhtOutput,
    FindPeer,
    Found,
    Get,
    Got,
    Joined,
    LookedUp,
    LookUp,
    PeerFailed,
    PeerFound,
    PeerProved,
    Put,
    PutDone,
    Reply,
    Request,
    RequestReceived,
    Store,
    Unanswered,
    Walked,
)
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.kademlia import MAX_ADDRESSES, Contact, position
from trio_quic import Connection

# Random machines that are remembered, so that there are some to choose from: four a minute come. A guess.
_SAMPLE = 32
# Searches of one node at once; more wait their turn. A guess.
_SEARCHES = 32


@define(eq=False)
class _Waiting:
    """A search of ours, for whoever waits for its end."""

    done: trio.Event = field(factory=trio.Event)
    result: Any = None


class HashTable:
    """One node's hash table with its timer, its calls and its own record."""

    def __init__(
        self,
        config: NodeConfig,
        clock: Clock,
        nursery: trio.Nursery,
        presence: Presence,
        links: LinkTable,
        briefs: Briefs,
        log: FilteringBoundLogger,
    ) -> None:
        self._config = config
        self._clock = clock
        self._nursery = nursery
        self._presence = presence
        self._links = links
        self._briefs = briefs
        self._log = log
        kinds = Kinds((machine_kind(presence.check_member), *config.kinds))
        rng = Random(int.from_bytes(clock.random(16), "big"))
        own = Contact(config.identity.peer_id)
        self.machine = Dht(own, rng, lambda data, _: kinds.judge(data, clock.timestamp()))
        self._waiting: dict[int, _Waiting] = {}
        self._replies: dict[int, Answer] = {}
        self._count = 0
        self._searches = trio.CapacityLimiter(_SEARCHES)
        self._dials = trio.CapacityLimiter(max(1, config.limits.briefs // 2))
        self._armed = float("inf")
        self._moved = trio.Event()
        self.sampled: deque[Contact] = deque(maxlen=_SAMPLE)  # random machines, as walks found them

    # -- for the application

    async def find_peer(self, peer: PeerId) -> tuple[Address, ...]:
        """Where `peer` is, asking the fabric; nothing if nobody knows. What is found goes to the directory."""
        found: PeerFound = await self._search(lambda id: FindPeer(id, peer))
        now = self._clock.now()
        if found.record is not None:
            self._presence.learn(found.record)
        elif found.contact is not None and found.contact.addrs:
            address = parse(found.contact.addrs[0])
            self._presence.directory.observe(peer, address, now, self._links.peers())
        return self._presence.directory.addresses(peer)

    async def closest(self, key: bytes) -> tuple[PeerId, ...]:
        """The machines nearest to a position that answered, nearest first, this one left out."""
        looked: LookedUp = await self._search(lambda id: LookUp(id, key))
        return tuple(contact.peer for contact in looked.closest)

    async def records(self, kind: str, key: bytes) -> tuple[bytes, ...]:
        """The records of a kind under a key, encoded and checked, one of each signer, by signer."""
        got: Got = await self._search(lambda id: Get(id, key, kind))
        return got.records

    async def put(self, record: bytes) -> PutDone:
        """Have a signed record kept by the machines nearest to its key, until its life ends."""
        done: PutDone = await self._search(lambda id: Put(id, record))
        return done

    # -- for the node

    def nearest(self, count: int) -> list[Contact]:
        """The known machines whose positions are nearest to our own."""
        return self.machine.table.closest(position(self._config.identity.peer_id), count)

    def announce(self, record: bytes) -> None:
        """Put our own record, without waiting for it."""
        self._nursery.start_soon(self._announce, record)

    async def run(self, roster: Roster) -> None:
        """The timer, and news of connections, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow, roster)
            while True:
                self._moved = trio.Event()
                deadline = self.machine.next_timeout()
                self._armed = float("inf") if deadline is None else deadline
                with trio.move_on_at(self._armed):
                    await self._moved.wait()
                self._carry_out(self.machine.poll(self._clock.now()))

    def on_find(self, call: Call) -> Any:
        """Answers find calls; waits for nothing."""
        with _refusing():
            find, addrs = frames.parse_find(call.body)
        return self._answer(call, find, addrs)

    def on_store(self, call: Call) -> Any:
        """Answers store calls; waits for nothing."""
        with _refusing():
            store = frames.parse_store(call.body)
        return self._answer(call, store, ())

    # -- inside

    def _answer(self, call: Call, request: Request, addrs: tuple[str, ...]) -> Any:
        self._count += 1
        if addrs and is_dialable(parse(call.address)):
            addrs = tuple(dict.fromkeys((call.address, *addrs)))[:MAX_ADDRESSES]
        source = Contact(call.peer, addrs)
        self._step(RequestReceived(source, self._count, request))
        answer = self._replies.pop(self._count)
        return _value_of(answer)

    async def _search(self, make: Callable[[int], DhtEvent]) -> Any:
        async with self._searches:
            self._count += 1
            number = self._count
            waiting = self._waiting[number] = _Waiting()
            try:
                self._step(make(number))
                await waiting.done.wait()
            finally:
                del self._waiting[number]
                self._step(Cancel(number))
            return waiting.result

    async def _announce(self, record: bytes) -> None:
        done = await self.put(record)
        self._log.debug("own record put", kept_by=done.stored, refused=done.refused)

    async def _follow(self, roster: Roster) -> None:
        while True:
            async for event in roster.subscribe():
                match event:
                    case PeerUp(info) if not self._presence.relays_of(info.id):
                        self._step(PeerProved(self._contact(info.id)))
                    case PeerDown(peer, reason) if not reason.startswith("dropped"):
                        self._step(PeerFailed(peer))
            await trio.lowlevel.checkpoint()

    def _contact(self, peer: PeerId) -> Contact:
        addresses = self._presence.directory.addresses(peer)[:MAX_ADDRESSES]
        return Contact(peer, tuple(text_of(address) for address in addresses))

    def _step(self, event: DhtEvent) -> None:
        self._carry_out(self.machine.receive(event, self._clock.now()))
        deadline = self.machine.next_timeout()
        if deadline is not None and deadline < self._armed:
            self._moved.set()

    def _carry_out(self, outputs: list[DhtOutput]) -> None:
        for output in outputs:
            match output:
                case Ask():
                    self._nursery.start_soon(self._ask, output)
                case Reply(call, answer):
                    self._replies[call] = answer
                case Joined():
                    self.announce(self._presence.own_record())
                case Walked(peers):
                    self.sampled.extendleft(peers[:2])
                case LookedUp(id) | PeerFound(id) | Got(id) | PutDone(id):
                    if (waiting := self._waiting.get(id)) is not None:
                        waiting.result = output
                        waiting.done.set()

    async def _ask(self, output: Ask) -> None:
        event: DhtEvent = Unanswered(output.query)
        with trio.move_on_after(QUERY_TIMEOUT_S):
            try:
                event = Answered(output.query, await self._call(output.to, output.request))
            except (MeshError, *STREAM_ERRORS, RemoteProtocolError) as error:
                self._log.debug("hash table query failed", peer=str(output.to.peer), error=str(error))
        self._step(event)

    async def _call(self, to: Contact, request: Request) -> Answer:
        link = self._links.get(to.peer)
        if link is not None:
            return await self._exchange(link.connection, request)
        async with self._dials:
            brief = await self._briefs.reach(to.peer, _addresses_of(to))
            try:
                assert brief.connection is not None
                return await self._exchange(brief.connection, request)
            finally:
                self._briefs.release(brief)

    async def _exchange(self, connection: Connection[Admitted], request: Request) -> Answer:
        stream = await connection.open_stream()
        deadline_ms = int(QUERY_TIMEOUT_S * 1000)
        if isinstance(request, Store):
            value = await ask(stream, frames.STORE, frames.store_value(request), deadline_ms)
            return frames.parse_stored(value)
        body = frames.find_value(request, self._own_addresses())
        return frames.parse_found(await ask(stream, frames.FIND, body, deadline_ms))

    def _own_addresses(self) -> tuple[str, ...]:
        """Where we can be called back; nowhere if it takes a relay: such a machine uses the table, and nobody
        else is sent to it.
        """
        if self._presence.relays_of(self._config.identity.peer_id):
            return ()
        return tuple(text_of(address) for address in self._presence.addresses.current())


@contextmanager
def _refusing() -> Iterator[None]:
    """What cannot be understood is answered so."""
    try:
        yield
    except RemoteProtocolError as error:
        raise CallRefused(error.rule, error.detail) from error


def _value_of(answer: Answer) -> dict[str, Any]:
    return frames.found_value(answer) if isinstance(answer, Found) else frames.stored_value(answer)


def _addresses_of(contact: Contact) -> list[Address]:
    addresses = [parse(text) for text in contact.addrs]
    return [address for address in addresses if is_dialable(address)]
