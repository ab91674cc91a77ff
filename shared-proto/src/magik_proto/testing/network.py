"""A network in one process, in virtual time, replayable from its seed.

An `Actor` is what a driver is in the daemons: it owns one machine or several and turns their outputs into
messages. The network delivers messages late, out of order, twice or not at all; partitions, skewed and
drifting clocks, and crashes with amnesia are the caller's to order.  The same seed and the same calls give
the same run.

What is queued is a plain tuple, and hosts are found once for each message: with actors that do nothing a
core does some hundred thousand events a second (`benchmarks/simulator.py` says how many).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import attrs

from magik_proto.errors import LocalProtocolError
from magik_proto.identity import PeerId
from magik_proto.testing.seeded import SeededRandom


class Send(NamedTuple):
    """A message for another actor.  A `reliable` one is repeated by the transport: where the network would
    lose it, it comes later; only crashes and partitions lose it.
    """

    to: PeerId
    message: Any
    reliable: bool = False


class Actor(Protocol):
    """What lives on the network.  Times are readings of its own clock, in seconds."""

    def start(self, now: float) -> list[Send]: ...

    def receive(self, source: PeerId, message: Any, now: float) -> list[Send]: ...

    def poll(self, now: float) -> list[Send]: ...

    def next_timeout(self) -> float | None: ...


class Chance(Protocol):
    """Where the network's luck comes from; `SeededRandom` and `random.Random(seed)` are such."""

    def getrandbits(self, k: int, /) -> int: ...

    def random(self) -> float: ...


Tap = Callable[[float, PeerId, Sequence[Send]], None]
"""Takes the network time, who sends, and what."""

ActorT = TypeVar("ActorT", bound=Actor)


@attrs.frozen
class Conditions:
    """How bad the network is.  Shares from 0 to 1, times in seconds; jitter above latency reorders
    messages.
    """

    latency_s: float = 0.01
    jitter_s: float = 0.01
    loss: float = 0.0
    duplication: float = 0.0
    repeat_s: float = 0.2  # after so long a reliable message that was lost is sent again


@attrs.define
class Stats:
    sent: int = 0
    delivered: int = 0
    lost: int = 0
    duplicated: int = 0
    wakeups: int = 0

    @property
    def events(self) -> int:
        """What actors were called for."""
        return self.delivered + self.wakeups


@attrs.define(eq=False)
class _Host(Generic[ActorT]):
    peer: PeerId
    factory: Callable[[], ActorT]
    actor: ActorT | None = None
    life: int = 0  # counts incarnations, so that nothing meant for one reaches the next
    skew_s: float = 0.0
    drift: float = 0.0
    group: int = 0  # of the partition
    wakeup: float | None = None  # the earliest that is queued, in network time

    def clock(self, now: float) -> float:
        return now * (1 + self.drift) + self.skew_s

    def network_time(self, reading: float) -> float:
        return (reading - self.skew_s) / (1 + self.drift)


class Network(Generic[ActorT]):
    """The simulator.  `now` is network time, from 0; nothing happens outside `run`, `add`, `restart` and
    `act`. `chance` is where its luck comes from, by default a `SeededRandom` of `seed`.
    """

    def __init__(self, seed: int, conditions: Conditions | None = None, chance: Chance | None = None) -> None:
        self.seed = seed
        self.now = 0.0
        self.conditions = conditions or Conditions()
        self.stats = Stats()
        self.rng: Chance = chance or SeededRandom(seed)
        self.tap: Tap | None = None  # sees all that is sent
        self._hosts: dict[PeerId, _Host[ActorT]] = {}
        # (when, number, to whom, in which life, from whom, what); a wake-up is from nobody.  What is due at
        # one time happens in the order of the numbers, which are those of queueing.
        self._queue: list[tuple[float, int, _Host[ActorT], int, _Host[ActorT] | None, Any]] = []
        self._count = 0

    def add(
        self, peer: PeerId, factory: Callable[[], ActorT], *, skew_s: float = 0.0, drift: float = 0.0
    ) -> ActorT:
        """Put an actor on the network and start it; its clock reads `now * (1 + drift) + skew_s`."""
        if peer in self._hosts or drift <= -1:
            raise LocalProtocolError(f"{peer} is on the network already, or its clock runs backwards")
        self._hosts[peer] = _Host(peer, factory, skew_s=skew_s, drift=drift)
        return self.restart(peer)

    def restart(self, peer: PeerId) -> ActorT:
        """A new actor, which remembers nothing, in the place of one that has crashed."""
        host = self._hosts[peer]
        if host.actor is not None:
            raise LocalProtocolError(f"{peer} is alive: crash it first")
        host.actor = actor = host.factory()
        self._carry_out(host, actor, actor.start(host.clock(self.now)))
        return actor

    def crash(self, peer: PeerId) -> None:
        """The actor is gone, with all that it knew and all that is under way to it."""
        host = self._hosts[peer]
        host.actor, host.wakeup = None, None
        host.life += 1

    def actor(self, peer: PeerId) -> ActorT | None:
        """The actor, None while crashed."""
        return self._hosts[peer].actor

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """All that were added, in that order."""
        return tuple(self._hosts)

    def act(self, peer: PeerId, action: Callable[[ActorT, float], list[Send]]) -> None:
        """Let an actor do something now, as its user would: `action(actor, its clock)`."""
        host = self._hosts[peer]
        if host.actor is not None:
            self._carry_out(host, host.actor, action(host.actor, host.clock(self.now)))

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Only actors of one group reach each other; those that are not named form a group of their own."""
        self.heal()
        for index, group in enumerate(groups, 1):
            for peer in group:
                self._hosts[peer].group = index

    def heal(self) -> None:
        for host in self._hosts.values():
            host.group = 0

    def run(self, until: float) -> None:
        """Let everything happen that happens up to a point in network time."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, host, life, source, message = heapq.heappop(queue)
            actor = host.actor
            if source is None:
                self._wake(host, life)
            elif actor is None or host.life != life or host.group != source.group:
                self.stats.lost += 1
            else:
                self.stats.delivered += 1
                self._carry_out(host, actor, actor.receive(source.peer, message, host.clock(self.now)))
        self.now = max(self.now, until)

    # -- inside ------------------------------------------------------------------------------------

    def _carry_out(self, host: _Host[ActorT], actor: ActorT, sends: list[Send]) -> None:
        if sends:
            self._transmit(host, sends)
        reading = actor.next_timeout()
        if reading is not None and host.actor is actor:
            when = max(host.network_time(reading), self.now)
            if host.wakeup is None or when < host.wakeup:
                host.wakeup = when
                self._at(when, host, None, None)

    def _at(self, when: float, host: _Host[ActorT], source: _Host[ActorT] | None, message: Any) -> None:
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, host, host.life, source, message))

    def _transmit(self, source: _Host[ActorT], sends: list[Send]) -> None:
        conditions, chance = self.conditions, self.rng.random
        latency, jitter, loss = conditions.latency_s, conditions.jitter_s, conditions.loss
        self.stats.sent += len(sends)
        if self.tap is not None:
            self.tap(self.now, source.peer, sends)
        for to, message, reliable in sends:
            host = self._hosts.get(to)
            if host is None:
                self.stats.lost += 1
                continue
            when = self.now + latency + jitter * chance()
            if loss and (when := self._late(when, loss, reliable)) < 0:
                continue
            self._at(when, host, source, message)
            if conditions.duplication and not reliable and chance() < conditions.duplication:
                self.stats.duplicated += 1
                self._at(self.now + latency + jitter * chance(), host, source, message)

    def _late(self, when: float, loss: float, reliable: bool) -> float:
        """When a message arrives that may be lost on its way; -1 if it is."""
        while self.rng.random() < loss:
            if not reliable:
                self.stats.lost += 1
                return -1.0
            when += self.conditions.repeat_s
        return when

    def _wake(self, host: _Host[ActorT], life: int) -> None:
        actor = host.actor
        if actor is None or host.life != life or host.wakeup != self.now:
            return  # an earlier wake-up took its place
        host.wakeup = None
        self.stats.wakeups += 1
        clock = host.clock(self.now)
        reading = actor.next_timeout()
        if reading is not None and host.network_time(reading) <= self.now:
            clock = max(clock, reading)  # the way through network time rounds: never wake a moment too early
        self._carry_out(host, actor, actor.poll(clock))
