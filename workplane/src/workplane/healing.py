"""Whether replicas are missing, and which one of them says so to its machine. No I/O.

Machines heal by themselves: whoever acts for a workload there sees pods that are gone, and tenders. Agents see what machines
do not, that replicas cannot be met, and ask the machine to look. They come after the machines on purpose: a deficit has
to last, one replica alone speaks, and what it has asked for it does not ask for again while that may be on its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from attrs import define, field, frozen

from magik_proto.identity import PeerId
from magik_proto.records import ServiceRecord

SETTLE_S: Final = 10.0
"""So long replicas have to be missing, or too many, before anything is asked. A guess: machines tender and start in less."""
PENDING_S: Final = 60.0
"""So long what was asked for may be on its way, and a replica that is not healthy yet may be starting. A guess: an image is
pulled in that time."""
RETRY_MIN_S: Final = 0.2
RETRY_MAX_S: Final = 5.0
"""protocol.md: between attempts at a machine that does not answer, doubling."""


# -- events


@frozen
class Wanted:
    """The newest manifest's generation and number of replicas."""

    generation: int
    replicas: int


@frozen
class Leading:
    """Whether this replica holds its workload's lease."""

    leads: bool


@frozen
class Looked:
    """The workload's replicas whose records are alive, this one among them."""

    records: tuple[ServiceRecord, ...]


@frozen
class Answered:
    """The machine has taken the last `Ask`."""

    disposed: bool


@frozen
class Failed:
    """The machine has not answered it."""


Event = Wanted | Leading | Looked | Answered | Failed


# -- outputs


@frozen
class Ask:
    """Have the machine look: so many replicas are missing beyond what it was asked for; with 0, there are too many."""

    missing: int
    generation: int


@frozen
class End:
    """The workload is disposed of: the agent ends, by status 143."""


Output = Ask | End


@define
class Healing:
    """One replica's part. `check_s`: how often to look (s); times are monotonic seconds."""

    own: PeerId
    stateful: bool
    wanted: Wanted
    check_s: float = 30.0
    settle_s: float = SETTLE_S
    pending_s: float = PENDING_S
    leads: bool = False
    _records: tuple[ServiceRecord, ...] = ()
    _first_seen: dict[PeerId, float] = field(factory=dict)
    _next_look: float = 0.0
    _since: float | None = None  # when what is wrong now began, in our eyes and our charge
    _pending: list[tuple[float, int]] = field(factory=list)  # until when, and how many
    _asking: Ask | None = None
    _again: float | None = None  # after a failure
    _delay: float = RETRY_MIN_S

    def receive(self, event: Event, now: float) -> list[Output]:
        """Take one event in."""
        match event:
            case Wanted():
                if event.generation > self.wanted.generation:
                    self.wanted, self._since, self._pending = event, None, []
            case Leading(leads):
                self.leads = leads
            case Looked(records):
                return self._look(records, now)
            case Answered(disposed):
                return self._answered(disposed, now)
            case Failed():
                self._again = now + self._delay
                self._delay = min(2 * self._delay, RETRY_MAX_S)
                self._asking = None
        return []

    def next_timeout(self) -> float:
        """When to look again, at the latest."""
        times = [self._next_look]
        if self._since is not None and self._asking is None:
            times.append(max(self._since + self.settle_s, self._again or 0.0))
        return min(times)

    def acts(self, now: float) -> bool:
        """Whether it is this replica that speaks: the leader; of stateless ones the lowest id among the healthy."""
        if self.stateful:
            return self.leads
        return min((r.peer_id for r in self._records if r.healthy), default=None) == self.own

    def missing(self, now: float) -> int:
        """How many replicas are fewer than wanted; one that is starting is there."""
        there = [r for r in self._records if r.healthy or now - self._first_seen[r.peer_id] < self.pending_s]
        if self.stateful:
            ordinals = {
                r.ordinal for r in there if r.ordinal is not None and r.ordinal < self.wanted.replicas
            }
            return self.wanted.replicas - len(ordinals)
        return max(0, self.wanted.replicas - len(there))

    def _look(self, records: tuple[ServiceRecord, ...], now: float) -> list[Output]:
        self._records = records
        self._first_seen = {r.peer_id: self._first_seen.get(r.peer_id, now) for r in records}
        self._next_look = now + self.check_s
        self._pending = [(until, count) for until, count in self._pending if now < until]
        missing = self.missing(now)
        wrong = missing > 0 or bool(surplus(records, self.wanted.replicas))
        if not wrong or not self.acts(now):
            self._since = self._again = None
            self._delay = RETRY_MIN_S
            if not missing:
                self._pending = []  # what was asked for is there
            return []
        self._since = now if self._since is None else self._since
        return self._ask(missing, now)

    def _ask(self, missing: int, now: float) -> list[Output]:
        wait = self._asking is not None or (self._again is not None and now < self._again)
        if wait or self._since is None or now < self._since + self.settle_s:
            return []
        more = missing - sum(count for _, count in self._pending)
        if missing and more <= 0:
            self._since = now  # all of it may be on its way: look again after a while
            return []
        self._asking = Ask(max(0, more), self.wanted.generation)
        return [self._asking]

    def _answered(self, disposed: bool, now: float) -> list[Output]:
        if disposed:
            return [End()]
        if self._asking is not None and self._asking.missing:
            self._pending.append((now + self.pending_s, self._asking.missing))
        self._asking = self._again = None
        self._delay = RETRY_MIN_S
        self._since = now
        return []


def surplus(records: Iterable[ServiceRecord], replicas: int) -> Sequence[ServiceRecord]:
    """Which replicas are too many, the first to go first: duplicates of an ordinal, then unhealthy ones, then the newest.

    Of two of one ordinal the healthy one stays, then the older: a record's version begins with when its agent started.
    """
    kept: dict[object, ServiceRecord] = {}
    duplicates = []
    for record in sorted(records, key=_worth):
        key = record.peer_id if record.ordinal is None else record.ordinal
        if key in kept:
            duplicates.append(record)
        else:
            kept[key] = record
    ordered = sorted(kept.values(), key=_worth)
    if any(record.ordinal is not None for record in ordered):
        return [
            *duplicates,
            *(r for r in reversed(ordered) if r.ordinal is not None and r.ordinal >= replicas),
        ]
    return [*duplicates, *reversed(ordered[replicas:])]


def _worth(record: ServiceRecord) -> tuple[bool, int, PeerId]:
    return (not record.healthy, record.version, record.peer_id)
