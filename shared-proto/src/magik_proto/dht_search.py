"""What a hash table has under way: searches, and records on their way to those who shall keep them."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable
from typing import Any

import attrs

from magik_proto.dht_types import Find, Judge, Judged
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.kademlia import Contact
from magik_proto.lookup import Lookup


class Aim(enum.Enum):
    """What a search is for."""

    JOIN = enum.auto()  # the own neighbourhood
    WALK = enum.auto()  # a random position, to refresh a bucket
    PEERS = enum.auto()  # `LookUp`
    PEER = enum.auto()  # `FindPeer`
    RECORDS = enum.auto()  # `Get`
    PUT = enum.auto()  # the keepers of a record


@attrs.define(eq=False)
class Search:
    """A lookup, and the records that came by. Of each signer the one that outranks the others counts."""

    aim: Aim
    id: int
    lookup: Lookup
    request: Find
    peer: PeerId | None = None  # of `Aim.PEER`
    placing: Placing | None = None  # of `Aim.PUT`
    tries: int = 0  # lookups before this one, whose finding was too thin to be true
    answers: int = 0
    holders: int = 0  # answers that had such records
    best: dict[PeerId, tuple[Any, bytes]] = attrs.field(factory=dict)

    def take(self, records: Iterable[bytes], judge: Judge, now: float) -> None:
        """Records from one answer: those that are genuine, and lie where we asked, count."""
        kept = 0
        for data in records:
            try:
                judged = judge(data, now)
            except RemoteProtocolError:
                continue
            if (judged.key, judged.kind) == (self.request.key, self.request.kind):
                kept += 1
                known = self.best.get(judged.signer)
                if known is None or judged.precedence > known[0]:
                    self.best[judged.signer] = (judged.precedence, data)
        self.holders += kept > 0

    def records(self) -> tuple[bytes, ...]:
        """The best record of each signer, by signer."""
        return tuple(data for _, (_, data) in sorted(self.best.items(), key=lambda item: item[0]))


@attrs.define(eq=False)
class Placing:
    """One record on its way to `wanted` peers, the nearest first; who refuses or is silent is replaced."""

    id: int
    record: bytes
    judged: Judged
    wanted: int
    stored: int = 0
    under_way: int = 0
    cached: bool = False  # the candidates are those of the last time
    keepers: list[Contact] = attrs.field(factory=list)
    refused: list[str] = attrs.field(factory=list)
    candidates: deque[Contact] = attrs.field(factory=deque)

    def next(self) -> list[Contact]:
        """Whom to hand the record to now."""
        chosen = []
        while self.candidates and self.stored + self.under_way < self.wanted:
            chosen.append(self.candidates.popleft())
            self.under_way += 1
        return chosen

    @property
    def ended(self) -> bool:
        """Whether nothing is under way any more."""
        return self.under_way == 0 and (self.stored >= self.wanted or not self.candidates)
