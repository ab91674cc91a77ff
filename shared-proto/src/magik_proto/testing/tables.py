"""Hash tables on the simulated network of `magik_proto.testing.network`, honest ones and liars."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from magik_proto.dht import Dht, DhtConfig
from magik_proto.dht_types import (
    Answered,
    Ask,
    DhtEvent,
    DhtOutput,
    Find,
    Found,
    Joined,
    Judged,
    PeerProved,
    Put,
    Reply,
    RequestReceived,
    Store,
    Stored,
)
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.kademlia import Contact, position
from magik_proto.machine import RandomSource
from magik_proto.testing.network import Send


def toy_record(signer: PeerId, seq: int, ends: float, key: bytes = b"", kind: str = "machine") -> bytes:
    """A record without cryptography, as `judge_toy` reads it; under the signer's position if no key is given."""
    where = key or position(signer)
    return b"".join(
        (signer.raw, where, seq.to_bytes(8, "big"), int(ends * 1000).to_bytes(8, "big"), kind.encode())
    )


def judge_toy(data: bytes, now: float) -> Judged:
    """What `toy_record` says; one of a kind other than ``machine`` may lie anywhere."""
    signer, key = PeerId(data[:32]), data[32:64]
    seq, ends = int.from_bytes(data[64:72], "big"), int.from_bytes(data[72:80], "big") / 1000
    kind = data[80:].decode()
    if ends <= now:
        raise RemoteProtocolError("dht.expired", "over")
    if kind == "machine" and key != position(signer):
        raise RemoteProtocolError("toy.key", "a machine's record lies under its position")
    return Judged(kind, key, signer, seq, ends - now)


@attrs.frozen
class Call:
    """A request on its way, and `number`, by which its answer is told."""

    number: int
    request: Find | Store


@attrs.frozen
class Return:
    number: int
    answer: Found | Stored


class TableActor:
    """One honest peer: its table, and a record of its own that it puts when it has joined.

    `seeds` are peers that it is connected with from the start; `contact_of` gives the one shared contact of
    any peer. What the table tells besides ends in `told`, with the time.
    """

    def __init__(
        self,
        own: Contact,
        seeds: Sequence[Contact],
        contact_of: Callable[[PeerId], Contact],
        rng: RandomSource,
        config: DhtConfig | None = None,
        *,
        life_s: float = 200.0,
    ) -> None:
        self.own = own
        self.dht = Dht(own, rng, judge_toy, config)
        self.told: list[tuple[float, DhtOutput]] = []
        self._seeds = seeds
        self._contact_of = contact_of
        self._life_s = life_s
        self._callers: dict[int, tuple[PeerId, int]] = {}
        self._count = 0

    def start(self, now: float) -> list[Send]:
        """See `Actor`."""
        return [send for seed in self._seeds for send in self.step(PeerProved(seed), now)]

    def receive(self, source: PeerId, message: Any, now: float) -> list[Send]:
        """See `Actor`."""
        if isinstance(message, Return):
            return self.step(Answered(message.number, message.answer), now)
        self._count += 1
        self._callers[self._count] = (source, message.number)
        return self.step(RequestReceived(self._contact_of(source), self._count, message.request), now)

    def poll(self, now: float) -> list[Send]:
        """See `Actor`."""
        return self._carry_out(self.dht.poll(now), now)

    def next_timeout(self) -> float | None:
        """See `Actor`."""
        return self.dht.next_timeout()

    def step(self, event: DhtEvent, now: float) -> list[Send]:
        """What the network has to carry after an event."""
        return self._carry_out(self.dht.receive(event, now), now)

    def publish(self, now: float) -> list[Send]:
        """Put the own record, newly made."""
        self._count += 1
        record = toy_record(self.own.peer, int(now * 1000), now + self._life_s)
        return self.step(Put(self._count, record), now)

    def request(self, make: Callable[[int], DhtEvent], now: float) -> tuple[int, list[Send]]:
        """`make(id)` is taken in; the id, and what the network has to carry."""
        self._count += 1
        return self._count, self.step(make(self._count), now)

    def _carry_out(self, outputs: list[DhtOutput], now: float) -> list[Send]:
        sends: list[Send] = []
        for output in outputs:
            match output:
                case Ask(query, to, request):
                    sends.append(Send(to.peer, Call(query, request), reliable=True))
                case Reply(call, answer):
                    caller, number = self._callers.pop(call)
                    sends.append(Send(caller, Return(number, answer), reliable=True))
                case Joined():
                    self.told.append((now, output))
                    sends += self.publish(now)
                case _:
                    self.told.append((now, output))
        return sends


class LyingActor:
    """A peer that names only colluders (nobody, if it has none), keeps nothing and says that it does."""

    def __init__(self, colluders: Sequence[Contact], k: int = 20) -> None:
        self._colluders = colluders
        self._k = k

    def start(self, now: float) -> list[Send]:
        """See `Actor`."""
        return []

    def receive(self, source: PeerId, message: Any, now: float) -> list[Send]:
        """See `Actor`."""
        if not isinstance(message, Call):
            return []
        return [Send(source, Return(message.number, self._lie(message.request)), reliable=True)]

    def poll(self, now: float) -> list[Send]:
        """See `Actor`."""
        return []

    def next_timeout(self) -> float | None:
        """See `Actor`."""
        return None

    def _lie(self, request: Find | Store) -> Found | Stored:
        if isinstance(request, Store):
            return Stored(("",) * len(request.records))
        target = int.from_bytes(request.key, "big")
        return Found(tuple(sorted(self._colluders, key=lambda c: c.place ^ target)[: self._k]))
