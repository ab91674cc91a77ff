"""Replicas elect a leader while the network parts, machines crash and disks are lost: one seeded `Schedule`.

Whoever runs schedules looks at two things: `overlaps` of the leases that the outside saw, and
`double_votes`, which no replica may ever give.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from magik_proto import leadership as lead
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.machine import below
from magik_proto.testing.network import Conditions, Network, Send
from magik_proto.testing.seeded import SeededRandom

BAD = Conditions(latency_s=0.005, jitter_s=0.15, loss=0.05, duplication=0.05)


def peer(ordinal: int) -> PeerId:
    """A replica's name on the network."""
    return PeerId(ordinal.to_bytes(32, "big"))


@attrs.define
class Lease:
    """When somebody could write, in network time."""

    ordinal: int
    token: lead.Token
    begin: float
    end: float


@attrs.frozen
class Vote:
    """What a replica has one of: with a new incarnation its earlier votes are void."""

    ordinal: int
    incarnation: int
    term: int


@attrs.define
class World:
    """What outlives a replica: its disk, the manifest, and what the outside has seen."""

    generation: int
    voters: int
    disks: dict[int, lead.Stored] = attrs.field(factory=dict)
    leases: list[Lease] = attrs.field(factory=list)
    votes: dict[Vote, dict[int, None]] = attrs.field(factory=dict)  # for whom they were, in order
    lone: bool = False  # there was a manifest of one replica


class Replica:
    """A driver in little: it carries the outputs out in order, and may die between writing and sending."""

    def __init__(
        self, ordinal: int, world: World, to_network: Callable[[float], float], rng: SeededRandom,
        config: lead.LeadershipConfig, *, dies: bool = False,
    ) -> None:  # fmt: skip
        self.ordinal, self.world, self.to_network, self.rng, self.dies = ordinal, world, to_network, rng, dies
        self.dead = False
        self.lease: Lease | None = None
        stored = world.disks.get(ordinal)
        self.machine = lead.Leadership(ordinal, world.generation, world.voters, stored, rng, config)

    def start(self, now: float) -> list[Send]:
        return self._carry_out(self.machine.receive(lead.Start(), now), now)

    def receive(self, source: PeerId, message: Any, now: float) -> list[Send]:
        event = lead.MessageReceived(int.from_bytes(source.raw, "big"), message)
        try:
            return self._carry_out(self.machine.receive(event, now), now) if not self.dead else []
        except RemoteProtocolError:
            return []

    def poll(self, now: float) -> list[Send]:
        return self._carry_out(self.machine.poll(now), now)

    def next_timeout(self) -> float | None:
        return None if self.dead else self.machine.next_timeout()

    def learn(self, now: float) -> list[Send]:
        """The manifest's newest generation reaches this replica."""
        if self.dead or self.world.generation <= self.machine.stored.generation:
            return []
        event = lead.NewGeneration(self.world.generation, self.world.voters)
        return self._carry_out(self.machine.receive(event, now), now)

    def _carry_out(self, outputs: list[lead.LeadershipOutput], now: float) -> list[Send]:
        sends: list[Send] = []
        for output in outputs:
            match output:
                case lead.Persist(stored, then):
                    if self._dies_writing(stored):
                        return sends
                    sends += [self._send(send.to, send.message, stored.incarnation) for send in then]
                case lead.Send(to, message):
                    sends.append(self._send(to, message, self.machine.stored.incarnation))
                case lead.LeaseHeld(token, until):
                    self._hold(token, now, until)
                case lead.LeaseLost():
                    assert self.lease is not None
                    self.lease.end = min(self.lease.end, self.to_network(now))
                    self.lease = None
        return sends

    def _dies_writing(self, stored: lead.Stored) -> bool:
        """Write; or die before it is written, or after that and before anything is sent."""
        self.dead = self.dies and below(self.rng, 40) == 0
        if not self.dead or below(self.rng, 2):
            self.world.disks[self.ordinal] = stored
        return self.dead

    def _send(self, to: int, message: lead.Message, incarnation: int) -> Send:
        match message:
            case lead.VoteReply(term, True):
                self._vote(incarnation, term, to)
            case lead.RequestVote(term):
                self._vote(incarnation, term, self.ordinal)
        return Send(peer(to), message)

    def _vote(self, incarnation: int, term: int, candidate: int) -> None:
        self.world.votes.setdefault(Vote(self.ordinal, incarnation, term), {})[candidate] = None

    def _hold(self, token: lead.Token, now: float, until: float) -> None:
        if self.lease is None or self.lease.token != token:
            self.lease = Lease(self.ordinal, token, self.to_network(now), 0.0)
            self.world.leases.append(self.lease)
        self.lease.end = self.to_network(until)


class Schedule:
    """One seeded run: a fabric of replicas and somebody who breaks it once a second."""

    def __init__(
        self, seed: int, voters: int, *, config: lead.LeadershipConfig | None = None, drift: float = 0.01
    ) -> None:
        self.rng = SeededRandom(seed * 7919 + voters)
        self.config = config or lead.LeadershipConfig()
        self.world = World(1, voters, lone=voters == 1)
        self.network: Network[Replica] = Network(seed, BAD)
        self.drift = drift
        for ordinal in range(voters):
            self.world.disks[ordinal] = lead.new_voter(1, voters)
            self.add(ordinal)

    def add(self, ordinal: int) -> None:
        skew = 1000 * self.rng.random()
        drift = self.drift * (2 * self.rng.random() - 1)

        def build() -> Replica:
            rng = SeededRandom(self.rng.getrandbits(64))
            return Replica(
                ordinal, self.world, lambda at: (at - skew) / (1 + drift), rng, self.config, dies=True
            )

        self.network.add(peer(ordinal), build, skew_s=skew, drift=drift)

    @property
    def ordinals(self) -> range:
        return range(len(self.network.peers))

    def one(self) -> int:
        return below(self.rng, len(self.ordinals))

    def disturb(self) -> None:
        """One of the things that happen."""
        [
            self.part,
            self.heal,
            self.crash,
            self.crash,
            self.lose_disk,
            self.rescale,
            self.spread,
            self.spread,
        ][below(self.rng, 8)]()

    def part(self) -> None:
        self.network.partition([peer(o) for o in self.ordinals if below(self.rng, 2)])

    def heal(self) -> None:
        self.network.heal()

    def crash(self) -> None:
        self.restart(self.one())

    def restart(self, ordinal: int) -> None:
        if self.network.actor(peer(ordinal)) is not None:
            self.network.crash(peer(ordinal))
        self.network.restart(peer(ordinal))

    def lose_disk(self) -> None:
        ordinal = self.one()
        if all(o in self.world.disks for o in self.ordinals):
            del self.world.disks[ordinal]
            self.restart(ordinal)

    def rescale(self) -> None:
        if below(self.rng, 4) == 0:
            self.world.generation += 1
            self.world.voters = min(7, max(1, self.world.voters + below(self.rng, 3) - 1))
            self.world.lone |= self.world.voters == 1
            for ordinal in range(len(self.ordinals), self.world.voters):
                self.world.disks[ordinal] = lead.new_learner()
                self.add(ordinal)

    def spread(self) -> None:
        self.network.act(peer(self.one()), lambda replica, now: replica.learn(now))

    def run(self, seconds: int, per_second: int = 1) -> None:
        """Let it go on for so long, breaking something so many times a second."""
        for count in range(seconds * per_second):
            self.network.run((count + 1) / per_second)
            self.disturb()

    def settle(self) -> Replica | None:
        """All is well for a while: who leads then?"""
        self.network.heal()
        for ordinal in self.ordinals:
            # It may die in its first write, too.
            while (replica := self.network.actor(peer(ordinal))) is None or replica.dead:
                self.restart(ordinal)
        for ordinal in self.ordinals:
            replica = self.network.actor(peer(ordinal))
            assert replica is not None
            replica.dies = False
            self.network.act(peer(ordinal), lambda replica, now: replica.learn(now))
        self.network.run(self.network.now + 40.0)
        leading = [lease for lease in self.world.leases if lease.end > self.network.now]
        return self.network.actor(peer(leading[-1].ordinal)) if leading else None

    def stuck(self) -> bool:
        """A lone voter that lost its disk does not come back: nobody else knows what it promised."""
        first = self.network.actor(peer(0))
        return self.world.lone and first is not None and first.machine.role is lead.Role.RECOVERING


def voters_of(seed: int) -> int:
    """How many replicas the schedule of a seed begins with: 1 to 5, most often 3."""
    return (3, 1, 5, 3, 2, 3, 4)[seed % 7]


def overlaps(leases: list[Lease]) -> list[tuple[Lease, Lease]]:
    """Pairs of different replicas' leases that overlap, and tokens that fall."""
    ordered = sorted(leases, key=lambda lease: lease.begin)
    return [
        (a, b)
        for index, a in enumerate(ordered)
        for b in ordered[index + 1 :]
        if (a.ordinal != b.ordinal and b.begin < a.end) or b.token < a.token
    ]


def double_votes(world: World) -> list[Vote]:
    """Votes that were given to more than one candidate."""
    return [vote for vote, candidates in world.votes.items() if len(candidates) > 1]
