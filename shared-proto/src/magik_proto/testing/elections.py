"""Replicas elect a leader while the network parts, machines crash and disks are lost: one seeded `Schedule`.

Whoever runs schedules looks at three things: `overlaps` of the leases that the outside saw, `shared_tokens` of them,
and `double_votes`, which no replica may ever give.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import attrs

from magik_proto import leadership as lead
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.machine import below
from magik_proto.testing.network import Conditions, Network, Send
from magik_proto.testing.seeded import SeededRandom

BAD = Conditions(latency_s=0.005, jitter_s=0.15, loss=0.05, duplication=0.05)


@cache
def peer(ordinal: int) -> PeerId:
    """A replica's name on the network."""
    return PeerId(ordinal.to_bytes(32, "big"))


TWINS = 1_000
"""A replica is known by a number: its ordinal, or, of a pod made again while an earlier one lives, that and thousands."""


@attrs.define
class Lease:
    """When somebody could write, in network time. `ordinal`: its number, twins being different."""

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
    lone: bool = False  # there was a manifest of one replica, or two
    numbers: set[int] = attrs.field(factory=set)  # of the replicas that there are
    twins: int = 0  # how many times a pod was made again


class Replica:
    """A driver in little: it carries the outputs out in order, and may die between writing and sending."""

    def __init__(
        self, number: int, world: World, to_network: Callable[[float], float], rng: SeededRandom,
        config: lead.LeadershipConfig, *, dies: bool = False,
    ) -> None:  # fmt: skip
        self.number, self.ordinal = number, number % TWINS
        self.world, self.to_network, self.rng, self.dies = world, to_network, rng, dies
        self.dead = False
        self.paused: float | None = None  # until when, by its own clock
        self.inbox: list[tuple[PeerId, Any]] = []  # what came meanwhile
        self.lease: Lease | None = None
        stored = world.disks.get(number)
        self.machine = lead.Leadership(self.ordinal, world.generation, world.voters, stored, rng, config)

    def start(self, now: float) -> list[Send]:
        return self._carry_out(self.machine.receive(lead.Start(), now), now)

    def receive(self, source: PeerId, message: Any, now: float) -> list[Send]:
        if self.paused is None:
            return self._take(source, message, now)
        self.inbox.append((source, message))
        return self.poll(now)

    def _take(self, source: PeerId, message: Any, now: float) -> list[Send]:
        message, life = message
        event = lead.MessageReceived(int.from_bytes(source.raw, "big") % TWINS, message, life)
        try:
            return self._carry_out(self.machine.receive(event, now), now) if not self.dead else []
        except RemoteProtocolError:
            return []

    def poll(self, now: float) -> list[Send]:
        sends = []
        if self.paused is not None:
            if now < self.paused:
                return []
            self.paused, inbox, self.inbox = None, self.inbox, []
            for source, message in inbox:
                sends += self._take(source, message, now)
        return sends + self._carry_out(self.machine.poll(now), now) if not self.dead else sends

    def pause(self, until: float) -> list[Send]:
        """It does nothing until then; its clock goes on, and what comes waits."""
        self.paused = until
        return []

    def next_timeout(self) -> float | None:
        if self.dead:
            return None
        return self.machine.next_timeout() if self.paused is None else self.paused

    def learn(self, now: float) -> list[Send]:
        """The manifest's newest generation reaches this replica."""
        if self.dead or self.paused is not None or self.world.generation <= self.machine.stored.generation:
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
                    for send in then:
                        sends += self._send(send.to, send.message, stored)
                case lead.Send(to, message):
                    sends += self._send(to, message, self.machine.stored)
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
            self.world.disks[self.number] = stored
        return self.dead

    def _send(self, to: int, message: lead.Message, stored: lead.Stored) -> list[Send]:
        match message:
            case lead.VoteReply(term, True):
                self._vote(stored.incarnation, term, to)
            case lead.RequestVote(term):
                self._vote(stored.incarnation, term, self.ordinal)
        said = (message, stored.life)
        numbers = self.world.numbers
        there = range(to, to + TWINS * (self.world.twins + 1), TWINS)
        return [Send(peer(number), said) for number in there if number in numbers]

    def _vote(self, incarnation: int, term: int, candidate: int) -> None:
        self.world.votes.setdefault(Vote(self.ordinal, incarnation, term), {})[candidate] = None

    def _hold(self, token: lead.Token, now: float, until: float) -> None:
        if self.lease is None or self.lease.token != token:
            self.lease = Lease(self.number, token, self.to_network(now), 0.0)
            self.world.leases.append(self.lease)
        self.lease.end = self.to_network(until)


class Schedule:
    """One seeded run: a fabric of replicas and somebody who breaks it once a second."""

    def __init__(
        self, seed: int, voters: int, *, config: lead.LeadershipConfig | None = None, drift: float = 0.01
    ) -> None:
        self.rng = SeededRandom(seed * 7919 + voters)
        self.config = config or lead.LeadershipConfig()
        self.world = World(1, voters, lone=voters <= 2)
        self.network: Network[Replica] = Network(seed, BAD)
        self.drift = drift
        for ordinal in range(voters):
            self.begin(ordinal, lead.new_voter(1, voters))

    def begin(self, ordinal: int, stored: lead.Stored) -> None:
        """A new ordinal's first pod, with what its disk holds."""
        self.world.disks[ordinal] = stored
        self.add(ordinal)

    def add(self, number: int) -> None:
        skew = 1000 * self.rng.random()
        drift = self.drift * (2 * self.rng.random() - 1)
        self.world.numbers.add(number)

        def build() -> Replica:
            rng = SeededRandom(self.rng.getrandbits(64))
            return Replica(
                number, self.world, lambda at: (at - skew) / (1 + drift), rng, self.config, dies=True
            )

        self.network.add(peer(number), build, skew_s=skew, drift=drift)

    @property
    def ordinals(self) -> range:
        return range(max(number % TWINS for number in self.world.numbers) + 1)

    @property
    def numbers(self) -> list[int]:
        """Of all replicas that there are."""
        return sorted(self.world.numbers)

    def one(self) -> int:
        numbers = self.numbers
        return numbers[below(self.rng, len(numbers))]

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
        self.network.partition([peer(n) for n in self.numbers if below(self.rng, 2)])

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
        if all(self.joined(n) for n in self.numbers):
            del self.world.disks[ordinal]
            self.restart(ordinal)

    def joined(self, number: int) -> bool:
        """Whether it has a disk, and is not waiting to be let in."""
        stored = self.world.disks.get(number)
        return stored is not None and not (stored.incarnation and not stored.voters)

    def rescale(self) -> None:
        if below(self.rng, 4) == 0:
            self.world.generation += 1
            self.world.voters = min(7, max(1, self.world.voters + below(self.rng, 3) - 1))
            self.world.lone |= self.world.voters <= 2
            for ordinal in range(len(self.ordinals), self.world.voters):
                self.begin(ordinal, lead.new_learner())

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
        for ordinal in self.numbers:
            # It may die in its first write, too.
            while (replica := self.network.actor(peer(ordinal))) is None or replica.dead:
                self.restart(ordinal)
        for ordinal in self.numbers:
            replica = self.network.actor(peer(ordinal))
            assert replica is not None
            replica.dies = False
            self.network.act(peer(ordinal), lambda replica, now: replica.learn(now))
        self.network.run(self.network.now + 40.0)
        leading = [lease for lease in self.world.leases if lease.end > self.network.now]
        return self.network.actor(peer(leading[-1].ordinal)) if leading else None

    def stuck(self) -> bool:
        """Ordinal 0 of one or two voters that lost its disk does not come back: nobody else knows what it promised."""
        first = self.network.actor(peer(0)) if 0 in self.world.numbers else None
        return self.world.lone and first is not None and first.machine.role is lead.Role.RECOVERING


class Twins(Schedule):
    """Pods that are held for lost are made again elsewhere, with empty disks, and both go on; at some time one goes.

    One founder begins: all others let themselves be let in, as agents do.
    """

    def begin(self, ordinal: int, stored: lead.Stored) -> None:
        if ordinal == 0:
            self.world.lone = True
            self.world.disks[0] = lead.new_voter(0, 1)
        self.add(ordinal)

    def disturb(self) -> None:
        if below(self.rng, 3):
            super().disturb()
        elif below(self.rng, 2):
            self.twin()
        else:
            self.part_twins()

    def twin(self) -> None:
        """A pod more of some ordinal, if that has one only."""
        ordinal = self.one() % TWINS
        if len(self.pods_of(ordinal)) == 1:
            self.make_again(ordinal)

    def make_again(self, ordinal: int) -> None:
        self.world.twins += 1
        self.add(ordinal + self.world.twins * TWINS)

    def pods_of(self, ordinal: int) -> list[int]:
        return [number for number in self.numbers if number % TWINS == ordinal]

    def part_twins(self) -> None:
        """Of two of one ordinal one ends for good."""
        numbers = self.numbers
        twins = [n for n in numbers if sum(n % TWINS == other % TWINS for other in numbers) > 1]
        if twins:
            self.end(twins[below(self.rng, len(twins))])

    def end(self, number: int) -> None:
        if self.network.actor(peer(number)) is not None:
            self.network.crash(peer(number))
        self.world.numbers.discard(number)
        self.world.disks.pop(number, None)

    def settle(self) -> Replica | None:
        for number in self.numbers:
            twins = [n for n in self.numbers if n % TWINS == number % TWINS]
            if len(twins) > 1:
                self.end(twins[below(self.rng, len(twins))])
        return super().settle()


class Pauses(Schedule):
    """Replicas are stopped, too, and go on with what came meanwhile."""

    def disturb(self) -> None:
        if below(self.rng, 6):
            super().disturb()
        else:
            length = 2 * self.config.lease_s * self.rng.random()
            self.network.act(peer(self.one()), lambda replica, now: replica.pause(now + length))


class PausedTwins(Pauses, Twins):
    """All of it; and each side of a partition may make again whomever it misses: two families of pods."""

    def disturb(self) -> None:
        if below(self.rng, 8):
            super().disturb()
        else:
            self.part_families()

    def part_families(self) -> None:
        ordinals = dict.fromkeys(number % TWINS for number in self.numbers)
        for ordinal in ordinals:
            if len(self.pods_of(ordinal)) == 1:
                self.make_again(ordinal)
        pods = [self.pods_of(ordinal) for ordinal in ordinals]
        self.network.partition([peer(each[below(self.rng, len(each))]) for each in pods])


class TwinsOfVoters(PausedTwins):
    """Nobody founds: all vote from the beginning. What `Twins` reaches late, or never where it loses its founder."""

    def begin(self, ordinal: int, stored: lead.Stored) -> None:
        Schedule.begin(self, ordinal, stored)


def broken_by_all(seed: int, *, twins: bool) -> Schedule:
    """The schedule of a seed, with everything that can happen; of those with ``twins`` every other one has a founder."""
    kind = (TwinsOfVoters, PausedTwins)[seed % 2] if twins else Pauses
    return kind(seed, voters_of(seed))


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


def shared_tokens(leases: list[Lease]) -> list[tuple[Lease, Lease]]:
    """Pairs of different replicas' leases with one token: a storage could not tell their writers apart."""
    return [
        (a, b)
        for index, a in enumerate(leases)
        for b in leases[index + 1 :]
        if a.token == b.token and a.ordinal != b.ordinal
    ]


def double_votes(world: World) -> list[Vote]:
    """Votes that were given to more than one candidate."""
    return [vote for vote, candidates in world.votes.items() if len(candidates) > 1]
