"""A network in one process, in virtual time, replayable from its seed.

An `Actor` is what a driver is in the daemons: it owns one machine or several and turns their outputs into
messages. The network delivers messages late, out of order, twice or not at all; partitions, skewed and
drifting clocks, and crashes with amnesia are the caller's to order.  The same seed and the same calls give
the same run.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

import attrs

from magik_proto.errors import LocalProtocolError
from magik_proto.identity import PeerId
from magik_proto.testing.seeded import SeededRandom


@attrs.frozen
class Send:
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


@attrs.define
class _Host(Generic[ActorT]):
    factory: Callable[[], ActorT]
    actor: ActorT | None = None
    life: int = 0  # counts incarnations, so that nothing meant for one reaches the next
    skew_s: float = 0.0
    drift: float = 0.0
    wakeup: float | None = None  # the earliest that is queued, in network time

    def clock(self, now: float) -> float:
        return now * (1 + self.drift) + self.skew_s

    def network_time(self, reading: float) -> float:
        return (reading - self.skew_s) / (1 + self.drift)


class Network(Generic[ActorT]):
    """The simulator.  `now` is network time, from 0; nothing happens outside `run`, `add`, `restart` and
    `act`.
    """

    def __init__(self, seed: int, conditions: Conditions | None = None) -> None:
        self.seed = seed
        self.now = 0.0
        self.conditions = conditions or Conditions()
        self.stats = Stats()
        self.rng = SeededRandom(seed)
        self._hosts: dict[PeerId, _Host[ActorT]] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._group: dict[PeerId, int] = {}

    def add(
        self, peer: PeerId, factory: Callable[[], ActorT], *, skew_s: float = 0.0, drift: float = 0.0
    ) -> ActorT:
        """Put an actor on the network and start it; its clock reads `now * (1 + drift) + skew_s`."""
        if peer in self._hosts or drift <= -1:
            raise LocalProtocolError(f"{peer} is on the network already, or its clock runs backwards")
        self._hosts[peer] = _Host(factory, skew_s=skew_s, drift=drift)
        return self.restart(peer)

    def restart(self, peer: PeerId) -> ActorT:
        """A new actor, which remembers nothing, in the place of one that has crashed."""
        host = self._hosts[peer]
        if host.actor is not None:
            raise LocalProtocolError(f"{peer} is alive: crash it first")
        host.actor = actor = host.factory()
        self._carry_out(peer, actor.start(host.clock(self.now)))
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
            self._carry_out(peer, action(host.actor, host.clock(self.now)))

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Only actors of one group reach each other; those that are not named form a group of their own."""
        self._group = {peer: index for index, group in enumerate(groups, 1) for peer in group}

    def heal(self) -> None:
        self._group = {}

    def run(self, until: float) -> None:
        """Let everything happen that happens up to a point in network time."""
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = max(self.now, until)

    # -- inside ------------------------------------------------------------------------------------

    def _at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1  # what is due at one time happens in the order of queueing
        heapq.heappush(self._queue, (max(when, self.now), self._count, action))

    def _carry_out(self, peer: PeerId, sends: list[Send]) -> None:
        for send in sends:
            self._transmit(peer, send)
        self._plan_wakeup(peer)

    def _transmit(self, source: PeerId, send: Send) -> None:
        self.stats.sent += 1
        delay = self._delay()
        while self.rng.random() < self.conditions.loss:
            if not send.reliable:
                self.stats.lost += 1
                return
            delay += self.conditions.repeat_s
        self._queue_delivery(source, send, delay)
        if not send.reliable and self.rng.random() < self.conditions.duplication:
            self.stats.duplicated += 1
            self._queue_delivery(source, send, self._delay())

    def _delay(self) -> float:
        return self.conditions.latency_s + self.rng.random() * self.conditions.jitter_s

    def _queue_delivery(self, source: PeerId, send: Send, delay: float) -> None:
        host = self._hosts.get(send.to)
        life = host.life if host is not None else 0
        self._at(self.now + delay, lambda: self._deliver(source, send, life))

    def _deliver(self, source: PeerId, send: Send, life: int) -> None:
        host = self._hosts.get(send.to)
        apart = self._group.get(source, 0) != self._group.get(send.to, 0)
        if host is None or host.actor is None or host.life != life or apart:
            self.stats.lost += 1
            return
        self.stats.delivered += 1
        self._carry_out(send.to, host.actor.receive(source, send.message, host.clock(self.now)))

    def _plan_wakeup(self, peer: PeerId) -> None:
        host = self._hosts[peer]
        reading = host.actor.next_timeout() if host.actor is not None else None
        if reading is None:
            return
        when = max(host.network_time(reading), self.now)
        if host.wakeup is None or when < host.wakeup:
            host.wakeup = when
            life = host.life
            self._at(when, lambda: self._wake(peer, when, life))

    def _wake(self, peer: PeerId, when: float, life: int) -> None:
        host = self._hosts[peer]
        if host.actor is None or host.life != life or host.wakeup != when:
            return  # an earlier wake-up took its place
        host.wakeup = None
        self.stats.wakeups += 1
        clock = host.clock(self.now)
        reading = host.actor.next_timeout()
        if reading is not None and host.network_time(reading) <= self.now:
            clock = max(clock, reading)  # the way through network time rounds: never wake a moment too early
        self._carry_out(peer, host.actor.poll(clock))
