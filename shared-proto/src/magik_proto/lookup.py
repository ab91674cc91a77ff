"""One lookup: finds the peers nearest to a position, by asking those who may know nearer ones.

Lookups that matter go by disjoint paths (Baumgart and Mies, "S/Kademlia", 2007): each peer is asked on
behalf of one path and its answer serves that path alone, so that a liar leads one path astray and not the
others; that a peer answered at all counts for every path.
"""

from __future__ import annotations

import enum
from bisect import insort
from collections import deque
from collections.abc import Iterable, Sequence

import attrs

from magik_proto.errors import LocalProtocolError
from magik_proto.identity import PeerId
from magik_proto.kademlia import ALPHA, MAX_ADDRESSES, Contact, K

PATHS = (
    8  # of a lookup; with thin tables and 20 % liars one finds 85 of 100, three 94, these 99 (test_lookup)
)
PATIENCE_S = 1.0  # then another is asked in a silent one's place; its late answer still counts (guess)
MAX_KNOWN = 1000  # candidates of one lookup: more are not taken in
MAX_SOURCES = 3  # of a candidate that are remembered: as many as there are paths
MAX_BLAME = (
    3  # contacts of a peer that failed, beyond those that answered: it is not believed any more (guess)
)


class Asked(enum.Enum):
    """Where a candidate stands."""

    NOT_YET = enum.auto()
    WAITING = enum.auto()
    ANSWERED = enum.auto()
    FAILED = enum.auto()


@attrs.define(eq=False)
class _Candidate:
    contact: Contact
    distance: int
    asked: Asked = Asked.NOT_YET
    deadline: float = 0.0
    path: int = -1  # on whose behalf it was asked
    sources: tuple[PeerId, ...] = ()  # who named it; none for a seed


@attrs.frozen
class Done:
    """The peers nearest to the target that answered, nearest first."""

    closest: tuple[Contact, ...]


def _distance(candidate: _Candidate) -> int:
    return candidate.distance


class Lookup:
    """Finds the `k` peers nearest to a position by `paths` disjoint paths, nearest first on each.

    `alpha` queries are under way at once on a single path, one on each of several.  Seeds are shared out
    among the paths; where they are fewer than paths, what the first of them names is.  A path ends when the
    `k` nearest of all that it heard of, failed ones aside, have answered; the lookup, when all have.  What
    a liar costs is bounded: an answer counts for `k` peers at most, no more than `MAX_KNOWN` are taken in,
    and of a peer whose contacts mostly fail (`MAX_BLAME`) no others are asked.
    """

    def __init__(
        self,
        target: bytes,
        seeds: Iterable[Contact],
        k: int = K,
        alpha: int = ALPHA,
        *,
        paths: int = 1,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._target = int.from_bytes(target, "big")
        self._k = k
        self._patience_s = patience_s
        self._known: dict[PeerId, _Candidate] = {}
        self._under_way: deque[_Candidate] = deque()  # asked, in the order of their deadlines
        self._blame: dict[PeerId, int] = {}
        self._paths: list[list[_Candidate]] = [[] for _ in range(paths)]
        self._members: list[set[PeerId]] = [set() for _ in range(paths)]
        self._waiting = [0] * paths
        self._alpha = alpha if paths == 1 else 1
        self._share_out(seeds, None)

    def on_success(self, peer: PeerId, closer: Sequence[Contact], now: float) -> None:
        """A queried peer answered with the peers that it knows near the target; late answers count too."""
        candidate = self._queried(peer)
        # One that was given up before was not its sources' fault after all.
        self._settle(candidate, Asked.ANSWERED, 2 if candidate.asked is Asked.FAILED else 1)
        named = [contact for contact in closer[: self._k] if contact.peer != peer]
        if len(self._known) < len(self._paths):
            self._share_out(named, peer)
            return
        for contact in named:
            self._add(contact, candidate.path, peer)

    def on_failure(self, peer: PeerId, now: float) -> None:
        """A queried peer did not answer, or nonsense."""
        candidate = self._queried(peer)
        if candidate.asked is Asked.WAITING:
            self._settle(candidate, Asked.FAILED, -1)

    def next_timeout(self) -> float | None:
        """When to call `next` without an answer; None: no query is under way."""
        while self._under_way and self._under_way[0].asked is not Asked.WAITING:
            self._under_way.popleft()
        return self._under_way[0].deadline if self._under_way else None

    def next(self, now: float) -> list[Contact] | Done:
        """Whom to query now (perhaps nobody: answers are awaited), or the end."""
        while (deadline := self.next_timeout()) is not None and now >= deadline:
            self._settle(self._under_way.popleft(), Asked.FAILED, -1)
        chosen: list[Contact] = []
        ended = True
        for number in range(len(self._paths)):
            step = self._step(number, self._alpha - self._waiting[number], now)
            ended = ended and step is None
            chosen += step or []
        return Done(self.answered()) if ended else chosen

    def answered(self) -> tuple[Contact, ...]:
        """The `k` nearest that have answered so far, nearest first."""
        answered = [c for c in self._known.values() if c.asked is Asked.ANSWERED]
        answered.sort(key=_distance)
        return tuple(c.contact for c in answered[: self._k])

    def _step(self, path: int, free: int, now: float) -> list[Contact] | None:
        """Whom to query on behalf of one path; None when it has ended."""
        counted, ended = 0, True
        chosen: list[Contact] = []
        for candidate in self._paths[path]:
            if counted == self._k:
                break
            if candidate.asked is Asked.FAILED or self._is_disowned(candidate):
                continue
            counted += 1
            ended = ended and candidate.asked is Asked.ANSWERED
            if candidate.asked is Asked.NOT_YET and len(chosen) < free:
                candidate.asked, candidate.path = Asked.WAITING, path
                candidate.deadline = now + self._patience_s
                self._under_way.append(candidate)
                self._waiting[path] += 1
                chosen.append(candidate.contact)
        return None if ended else chosen

    def _is_disowned(self, candidate: _Candidate) -> bool:
        """Whether everyone who named it has named too many that are not there."""
        if candidate.asked is not Asked.NOT_YET or not candidate.sources:
            return False
        return all(self._blame.get(source, 0) >= MAX_BLAME for source in candidate.sources)

    def _share_out(self, contacts: Iterable[Contact], source: PeerId | None) -> None:
        """Spread contacts over the paths, the nearest first."""
        ordered = sorted(contacts, key=lambda contact: contact.place ^ self._target)
        for number, contact in enumerate(ordered):
            self._add(contact, number % len(self._paths), source)

    def _settle(self, candidate: _Candidate, state: Asked, credit: int) -> None:
        if candidate.asked is state:
            return
        if candidate.asked is Asked.WAITING:
            self._waiting[candidate.path] -= 1
        candidate.asked = state
        for source in candidate.sources:
            self._blame[source] = self._blame.get(source, 0) - credit

    def _queried(self, peer: PeerId) -> _Candidate:
        candidate = self._known.get(peer)
        if candidate is None or candidate.asked is Asked.NOT_YET:
            raise LocalProtocolError(f"{peer} was not queried")
        return candidate

    def _add(self, contact: Contact, path: int, source: PeerId | None) -> None:
        candidate = self._known.get(contact.peer)
        if candidate is None:
            if len(self._known) >= MAX_KNOWN:
                return
            apart = contact.place ^ self._target
            candidate = self._known[contact.peer] = _Candidate(contact, apart)
        elif candidate.sources and candidate.asked is Asked.NOT_YET:
            candidate.contact = _merged(candidate.contact, contact)
        if source is not None and len(candidate.sources) < MAX_SOURCES and source not in candidate.sources:
            candidate.sources += (source,)
        if contact.peer not in self._members[path]:
            self._members[path].add(contact.peer)
            insort(self._paths[path], candidate, key=_distance)


def _merged(known: Contact, heard: Contact) -> Contact:
    """What two say of one peer's addresses: as many of each, so that a liar adds some and takes none away."""
    half = MAX_ADDRESSES // 2
    addrs = tuple(dict.fromkeys((*known.addrs[:half], *heard.addrs[:half])))
    return known if set(addrs) <= set(known.addrs) else Contact(known.peer, addrs)
