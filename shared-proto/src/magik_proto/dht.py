"""The distributed hash table of one peer: routing, lookups, records, and what keeps them good.

A machine without I/O (see `magik_proto.machine`): events of `magik_proto.dht_types` and the time go in,
outputs come out.  The rules and their numbers are in machineplane-spec, "Distributed hash table".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from magik_proto.dht_frames import MAX_STORED
from magik_proto.dht_search import Aim, Placing, Search
from magik_proto.dht_store import RecordStore, StoreLimits
from magik_proto.dht_types import (
    Answered,
    Ask,
    Cancel,
    DhtEvent,
    DhtOutput,
    Find,
    FindPeer,
    Found,
    Get,
    Got,
    Joined,
    Judge,
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
    Stored,
    Unanswered,
    Walked,
)
from magik_proto.dht_upkeep import Upkeep
from magik_proto.errors import LocalProtocolError, RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.kademlia import ALPHA, Contact, K, RoutingTable, estimate_size, position, sample_of
from magik_proto.lookup import PATHS, PATIENCE_S, Done, Lookup
from magik_proto.machine import RandomSource, below, shuffled

QUERY_TIMEOUT_S = 5.0  # then a query is forgotten and its peer counts as gone (guess: a dial and an answer)
MAX_SEARCHES = 256  # at once: more are our own program's mistake
MAX_TRIES = 2  # more, of a search whose finding is too thin to be true
THIN = 3  # times fewer peers than there should be; with 20 % liars theirs are five times fewer
MAX_CHECKS = 8  # strangers being asked whether they are there; at it the next one waits for its next request
MAX_HANDOVER = 64  # records handed to a newcomer; their publishers bring the rest within a minute
MAX_HOLDERS = 64  # own records whose keepers are remembered; the one that came first goes


@attrs.frozen
class DhtConfig:
    """Numbers of one hash table; sources in machineplane-spec, "Distributed hash table"."""

    k: int = K
    alpha: int = ALPHA
    paths: int = PATHS
    replicas: int = 8
    enough: int = 3
    refresh_s: float = 60.0
    patience_s: float = PATIENCE_S
    limits: StoreLimits = attrs.field(factory=StoreLimits)


@attrs.define(eq=False)
class _Query:
    to: Contact
    deadline: float
    of: Search | Placing | None  # None: a check, or a handover
    lookup: Lookup | None  # of the search, at the time: it may have begun anew


class Dht:
    """One peer's part of the table.

    `judge` says what a record is and whether to believe it (`magik_proto.dht_kinds`). Outputs are to be
    carried out in order. An id that is under way already is a LocalProtocolError.
    """

    def __init__(
        self, own: Contact, rng: RandomSource, judge: Judge, config: DhtConfig | None = None
    ) -> None:
        self.own = own
        self._rng = rng
        self._judge = judge
        self._config = config or DhtConfig()
        self._key = position(own.peer)
        self.table = RoutingTable(own.peer, self._config.k)
        self.store = RecordStore(own.place, judge, self._is_near, self._config.limits)
        self._queries: dict[int, _Query] = {}
        self._asked = 0
        self._checks: dict[PeerId, None] = {}
        self._searches: dict[int, Search] = {}  # a negative id is one of our own
        self._placings: dict[int, Placing] = {}
        self._holders: dict[bytes, tuple[float, tuple[Contact, ...]]] = {}
        self._upkeep = Upkeep(own, rng, self._config.k, self._config.refresh_s)

    def size_estimate(self) -> int:
        """How many peers there are, this one included.

        Exact up to k; beyond, by the density of peers around the own position and around the last walks'.
        """
        return self._upkeep.size(self.table, self._key)

    def next_timeout(self) -> float | None:
        """When to call `poll`."""
        least = self._upkeep.due
        due = self.store.next_timeout()
        if due is not None and (least is None or due < least):
            least = due
        for search in self._searches.values():
            due = search.lookup.next_timeout()
            if due is not None and (least is None or due < least):
                least = due
        for query in self._queries.values():  # the oldest is due first
            if least is None or query.deadline < least:
                least = query.deadline
            break
        return least

    def receive(self, event: DhtEvent, now: float) -> list[DhtOutput]:
        """Take one event in."""
        match event:
            case PeerProved(contact):
                return self._proved(contact, now)
            case PeerFailed(peer):
                self.table.failed(peer)
            case RequestReceived(source, call, request):
                return self._requested(source, call, request, now)
            case Answered(query, answer):
                return self._answered(query, answer, now)
            case Unanswered(query):
                return self._unanswered(query, now)
            case LookUp(id, key):
                return self._search(Aim.PEERS, id, Find(key), now)
            case FindPeer(id, peer):
                return self._find_peer(id, peer, now)
            case Get(id, key, kind):
                return self._search(Aim.RECORDS, id, Find(key, kind), now)
            case Put(id, record):
                return self._put(id, record, now)
            case Cancel(id):
                self._searches.pop(id, None)
                self._placings.pop(id, None)
        return []

    def poll(self, now: float) -> list[DhtOutput]:
        """Do what is due."""
        self.store.expire(now)
        outputs: list[DhtOutput] = []
        while (first := next(iter(self._queries.items()), None)) and first[1].deadline <= now:
            outputs += self._unanswered(first[0], now)
        for search in list(self._searches.values()):
            deadline = search.lookup.next_timeout()
            if deadline is not None and deadline <= now:
                outputs += self._advance(search, now)
        if self._upkeep.due is not None and self._upkeep.due <= now:
            outputs += self._refresh(now)
        return outputs

    # -- peers -------------------------------------------------------------------------------------

    def _proved(self, contact: Contact, now: float) -> list[DhtOutput]:
        """A peer is there: into the table with it."""
        was_empty, known = len(self.table) == 0, contact.peer in self.table
        oldest = self.table.seen(contact)
        outputs: list[DhtOutput] = []
        if oldest is not None:
            outputs.append(self._ask(oldest, Find(self._key), None, now))
        if was_empty:
            self._upkeep.plan(now)
            outputs += self._search(Aim.JOIN, self._own_id(), Find(self._key), now)
        if not known and contact.peer in self.table:
            outputs += self._hand_over(contact, now)
        return outputs

    def _consider(self, source: Contact, now: float) -> list[DhtOutput]:
        """A stranger asked us something: if it had a place here, find out whether it can be reached."""
        peer = source.peer
        if peer in self.table and not self.table.is_stale(peer):
            return []
        if not source.addrs or peer in self._checks or not self.table.has_room(peer):
            return []
        if len(self._checks) >= MAX_CHECKS:
            return []
        self._checks[peer] = None
        return [self._ask(source, Find(self._key), None, now)]

    def _hand_over(self, newcomer: Contact, now: float) -> list[DhtOutput]:
        """Give a new peer the records that it is nearer to, if nobody else we know is nearer than we are."""
        records = []
        for key, data in self.store.nearer_to(newcomer.place, MAX_HANDOVER):
            target = int.from_bytes(key, "big")
            others = [c for c in self.table.closest(key, 2) if c.peer != newcomer.peer]
            if not others or others[0].place ^ target > self.own.place ^ target:
                records.append(data)
        batches = [records[at : at + MAX_STORED] for at in range(0, len(records), MAX_STORED)]
        return [self._ask(newcomer, Store(tuple(batch)), None, now) for batch in batches]

    def _is_near(self, key: bytes) -> bool:
        """Whether fewer than k known peers are nearer to a key than we are."""
        target = int.from_bytes(key, "big")
        nearest = self.table.closest(key)
        return len(nearest) < self._config.k or nearest[-1].place ^ target > self.own.place ^ target

    # -- being asked -------------------------------------------------------------------------------

    def _requested(self, source: Contact, call: int, request: Request, now: float) -> list[DhtOutput]:
        if source.peer == self.own.peer:
            raise LocalProtocolError("a request from this machine itself")
        if isinstance(request, Store):
            refused = tuple(self._keep(data, source.peer, now) for data in request.records)
            return [Reply(call, Stored(refused)), *self._consider(source, now)]
        peers = [c for c in self.table.closest(request.key, self._config.k + 1) if c.peer != source.peer]
        records: tuple[bytes, ...] = ()
        more = False
        if request.kind is not None:
            records, more = self.store.find(request.key, request.kind, now, request.after)
        found = Found(tuple(peers[: self._config.k]), records, more)
        return [Reply(call, found), *self._consider(source, now)]

    def _keep(self, data: bytes, giver: PeerId, now: float) -> str:
        try:
            self.store.take(data, giver, now)
        except RemoteProtocolError as error:
            return error.rule
        return ""

    # -- asking ------------------------------------------------------------------------------------

    def _ask(self, to: Contact, request: Request, of: Search | Placing | None, now: float) -> Ask:
        self._asked += 1
        self._queries[self._asked] = _Query(
            to, now + QUERY_TIMEOUT_S, of, of.lookup if isinstance(of, Search) else None
        )
        return Ask(self._asked, to, request)

    def _answered(self, number: int, answer: Any, now: float) -> list[DhtOutput]:
        query = self._queries.pop(number, None)
        if query is None:
            return []  # given up before
        self._checks.pop(query.to.peer, None)
        outputs = self._proved(query.to, now)
        match query.of, answer:
            case Search() as search, Found() if self._awaits(search, query):
                outputs += self._found(search, query.to, answer, now)
            case Placing() as placing, Stored(refused) if placing.id in self._placings:
                outputs += self._placed(placing, query.to, refused[0] if refused else "dht.frame", now)
        return outputs

    def _awaits(self, search: Search, query: _Query) -> bool:
        return self._searches.get(search.id) is search and query.lookup is search.lookup

    def _unanswered(self, number: int, now: float) -> list[DhtOutput]:
        query = self._queries.pop(number, None)
        if query is None:
            return []
        peer = query.to.peer
        self._checks.pop(peer, None)
        self.table.failed(peer)
        match query.of:
            case Search() as search if self._awaits(search, query):
                search.lookup.on_failure(peer, now)
                return self._advance(search, now)
            case Placing() as placing if placing.id in self._placings:
                return self._placed(placing, query.to, "dht.unreachable", now)
        return []

    # -- searching ---------------------------------------------------------------------------------

    def _own_id(self) -> int:
        self._asked += 1
        return -self._asked

    def _check_new(self, id: int) -> None:
        if id in self._searches or id in self._placings or len(self._searches) >= MAX_SEARCHES:
            raise LocalProtocolError(f"request {id} is under way already, or too many are")

    def _search(self, aim: Aim, id: int, request: Find, now: float, **more: Any) -> list[DhtOutput]:
        self._check_new(id)
        seeds = self.table.closest(request.key)
        search = self._searches[id] = Search(aim, id, self._lookup(request.key, seeds), request, **more)
        if request.kind is not None:
            search.take(self.store.find(request.key, request.kind, now)[0], self._judge, now)
            search.holders = 0
        return self._advance(search, now)

    def _lookup(self, key: bytes, seeds: Iterable[Contact]) -> Lookup:
        config = self._config
        return Lookup(key, seeds, config.k, config.alpha, paths=config.paths, patience_s=config.patience_s)

    def _find_peer(self, id: int, peer: PeerId, now: float) -> list[DhtOutput]:
        if peer == self.own.peer:
            return [PeerFound(id, contact=self.own)]
        return self._search(Aim.PEER, id, Find(position(peer), "machine"), now, peer=peer)

    def _found(self, search: Search, source: Contact, found: Found, now: float) -> list[DhtOutput]:
        search.answers += 1
        search.take(found.records, self._judge, now)
        peers = [contact for contact in found.peers if contact.peer != self.own.peer]
        search.lookup.on_success(source.peer, peers, now)
        return self._advance(search, now)

    def _advance(self, search: Search, now: float) -> list[DhtOutput]:
        """Ask on, or end: also before all have answered, if enough is known."""
        if self._is_enough(search):
            return self._finish(search, search.lookup.answered(), now)
        step = search.lookup.next(now)
        if isinstance(step, Done):
            if self._is_thin(search, step.closest):
                return self._search_again(search, step.closest, now)
            return self._finish(search, step.closest, now)
        return [self._ask(contact, search.request, search, now) for contact in step]

    def _is_enough(self, search: Search) -> bool:
        if search.aim is Aim.PEER:
            answered = search.lookup.answered()
            return search.peer in search.best or bool(answered and answered[0].peer == search.peer)
        return search.aim is Aim.RECORDS and search.holders >= self._config.enough

    def _is_thin(self, search: Search, closest: tuple[Contact, ...]) -> bool:
        """Whether so few peers cannot be all that there are around a position: liars led us astray."""
        if search.tries >= MAX_TRIES or len(self.table) < self._config.k:
            return False
        target = int.from_bytes(search.request.key, "big")
        sample = sample_of((c.place for c in closest), target, self._config.k)
        return sample is None or estimate_size([sample]) * THIN < self.size_estimate()

    def _search_again(self, search: Search, closest: tuple[Contact, ...], now: float) -> list[DhtOutput]:
        """Once more from the other end of the table: from random peers that did not answer this time."""
        answered = {contact.peer for contact in closest}
        others = [contact for contact in self.table.all() if contact.peer not in answered]
        search.tries += 1
        search.lookup = self._lookup(search.request.key, shuffled(self._rng, others)[: self._config.k])
        return self._advance(search, now)

    def _finish(self, search: Search, closest: tuple[Contact, ...], now: float) -> list[DhtOutput]:
        del self._searches[search.id]
        match search.aim:
            case Aim.JOIN:
                return [Joined(closest)]
            case Aim.WALK:
                self._upkeep.sample(search.request.key, closest)
                return [Walked(closest)]
            case Aim.PEERS:
                return [LookedUp(search.id, closest)]
            case Aim.PEER:
                contact = closest[0] if closest and closest[0].peer == search.peer else None
                record = search.records() if search.peer in search.best else ()
                return [PeerFound(search.id, record[0] if record else None, contact)]
            case Aim.RECORDS:
                return [Got(search.id, search.records(), search.answers)]
            case Aim.PUT:
                assert search.placing is not None
                return self._place(search.placing, closest, now)

    # -- putting -----------------------------------------------------------------------------------

    def _put(self, id: int, record: bytes, now: float) -> list[DhtOutput]:
        self._check_new(id)
        try:
            judged = self._judge(record, now)
        except RemoteProtocolError as error:
            return [PutDone(id, 0, (error.rule,))]  # nobody else would take it either
        placing = Placing(id, record, judged, self._config.replicas)
        until, holders = self._holders.get(judged.key, (0.0, ()))
        if now < until:
            placing.cached = True
            return self._place(placing, holders, now)
        return self._search(Aim.PUT, id, Find(judged.key), now, placing=placing)

    def _place(self, placing: Placing, closest: tuple[Contact, ...], now: float) -> list[DhtOutput]:
        """Hand a record to the nearest; this machine is one of them if it is as near."""
        target = int.from_bytes(placing.judged.key, "big")
        nearer = [c for c in closest if c.place ^ target < self.own.place ^ target]
        if len(nearer) < placing.wanted:
            rule = self._keep(placing.record, self.own.peer, now)
            placing.stored += rule == ""
            placing.refused += [rule] if rule else []
        placing.candidates.extend(closest)
        self._placings[placing.id] = placing
        return self._go_on(placing, now)

    def _placed(self, placing: Placing, keeper: Contact, rule: str, now: float) -> list[DhtOutput]:
        placing.under_way -= 1
        if rule == "":
            placing.stored += 1
            placing.keepers.append(keeper)
        else:
            placing.refused.append(rule)
        return self._go_on(placing, now)

    def _go_on(self, placing: Placing, now: float) -> list[DhtOutput]:
        store = Store((placing.record,))
        outputs: list[DhtOutput] = [self._ask(c, store, placing, now) for c in placing.next()]
        if not placing.ended:
            return outputs
        del self._placings[placing.id]
        self._remember_holders(placing, now)
        return [*outputs, PutDone(placing.id, placing.stored, tuple(placing.refused))]

    def _remember_holders(self, placing: Placing, now: float) -> None:
        """So that the next renewal needs no search: for a refresh interval, and while all of them take it."""
        key = placing.judged.key
        if placing.refused:
            self._holders.pop(key, None)
        elif not placing.cached:
            if key not in self._holders and len(self._holders) >= MAX_HOLDERS:
                del self._holders[next(iter(self._holders))]
            self._holders[key] = (now + self._config.refresh_s, tuple(placing.keepers))

    # -- keeping it good ---------------------------------------------------------------------------

    def _refresh(self, now: float) -> list[DhtOutput]:
        """One walk, and one try of a stale peer: after a partition it is the way back."""
        self._upkeep.plan(now)
        outputs: list[DhtOutput] = []
        stale = self.table.stale()
        if stale:
            contact = self.table.get(stale[below(self._rng, len(stale))])
            assert contact is not None
            outputs.append(self._ask(contact, Find(self._key), None, now))
        if len(self.table) == 0:
            return outputs
        target = self._upkeep.next_target(self.table)
        aim, key = (Aim.JOIN, self._key) if target is None else (Aim.WALK, target)
        return [*outputs, *self._search(aim, self._own_id(), Find(key), now)]
