"""Leadership of a stateful workload: a lock among N voters, not a log (protocol.md, "Leadership").

One `Leadership` is one replica. The voters are the ordinals of a signed manifest generation. What it promises:
no two leases overlap while clocks run within `max_drift`, and tokens never fall from one leader to the next.

Why leases do not overlap: a leader's lease runs from when it *sent* a heartbeat that a majority answered; who
answers keeps from voting for longer than that lease from when it *received* it; a later leader needs a vote of
one of them. A replica that starts votes for nobody until what it may have promised before is over. Why there
is one leader in a term: term and vote are stored before the vote is sent, and a replica that has lost them
votes again only when a majority of the others has stored its new incarnation and told it their terms; what
its earlier self said is void for everybody who has heard of that. So of whom a majority is counted (votes,
answers to heartbeats and to a rejoin), nobody has recorded that the life of another of them is over.

Who votes is a configuration: the generation, its number of voters and, while that changes, the number before. Only a
leader changes it, from one that is settled; then it needs majorities of the old and the new number until both have
stored it, and its rounds tell it to all others. Each new leader stamps its configuration with its term. Votes go only
to candidates whose configuration is as new as the voter's: first by that term, so that what an earlier leader stored
without a majority gives way to what a later one did with one; then by generation.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from magik_proto.errors import LocalProtocolError, RemoteProtocolError
from magik_proto.leadership_types import (
    MAX_VOTERS,
    TRANSITIONS,
    Heartbeat,
    HeartbeatReply,
    LeaderChanged,
    LeadershipConfig,
    LeadershipEvent,
    LeadershipOutput,
    LeaseHeld,
    LeaseLost,
    Life,
    Message,
    MessageReceived,
    NewGeneration,
    Persist,
    PreVote,
    PreVoteReply,
    Rejoin,
    RejoinReply,
    RequestVote,
    Role,
    Send,
    Start,
    Stored,
    Token,
    VoteReply,
    quorum,
)
from magik_proto.machine import RandomSource

__all__ = [
    "TRANSITIONS",
    "Heartbeat",
    "HeartbeatReply",
    "LeaderChanged",
    "Leadership",
    "LeadershipConfig",
    "LeadershipEvent",
    "LeadershipOutput",
    "LeaseHeld",
    "LeaseLost",
    "Life",
    "Message",
    "MessageReceived",
    "NewGeneration",
    "Persist",
    "PreVote",
    "PreVoteReply",
    "Rejoin",
    "RejoinReply",
    "RequestVote",
    "Role",
    "Send",
    "Start",
    "Stored",
    "Token",
    "VoteReply",
    "new_learner",
    "new_voter",
    "quorum",
]


@attrs.define
class _Round:
    """A heartbeat to all: when it was sent, and who has answered: with which generation, in which life."""

    sent: float
    answers: dict[int, tuple[int, int]]


def new_voter(generation: int, voters: int) -> Stored:
    """What a replica stores that has never run before and is of the workload's *first* generation, which is the one to
    give here, whatever the newest is. Only for one that certainly has not run: one that has lost its storage passes
    None to `Leadership`."""
    return Stored(generation, (voters,))


def new_learner() -> Stored:
    """The same for an ordinal that a later generation has added: a leader will tell it who votes."""
    return Stored(0, ())


def _age(reply: RejoinReply) -> tuple[int, int, bool]:
    return Stored(reply.generation, reply.voters, since=reply.since).age


def _vouched(own: int, told: Mapping[int, RejoinReply], count: int) -> bool:
    """Whether enough others of so many voters have told what they know: whatever a majority with this replica in it
    had stored, one of them has. Of two, 0 vouches for 1, and nobody for 0: if each could, behind a partition each would
    let in a twin of the other."""
    if own < count <= 2:
        return own == 1 and 0 in told
    return sum(voter < count for voter in told) >= quorum(count)


def _incarnation(after: int, rng: RandomSource) -> int:
    """One that is later than `after`; two lives that know of the same past do not choose the same."""
    return ((after >> 32) + 1) << 32 | rng.getrandbits(32)


class Leadership:
    """The replica `ordinal`, where the newest manifest known has `generation` and `voters`; `stored` is what the last
    `Persist` said, or None where that is lost. Times are monotonic seconds of a clock that counts suspension.

    `receive` raises `RemoteProtocolError` (``leadership.not-a-replica``) for a message of an ordinal that is
    none, `LocalProtocolError` for an event that the state does not allow; both change nothing.
    """

    def __init__(
        self,
        ordinal: int,
        generation: int,
        voters: int,
        stored: Stored | None,
        rng: RandomSource,
        config: LeadershipConfig | None = None,
    ) -> None:
        if not 0 <= ordinal < MAX_VOTERS or not 1 <= voters <= MAX_VOTERS:
            raise LocalProtocolError(f"ordinal {ordinal} of {voters} voters, at most {MAX_VOTERS}")
        self._own = ordinal
        self._rng = rng
        self._config = config or LeadershipConfig()
        # Who has stored an incarnation and nothing else was not let in yet, and goes on with that.
        self._lost = stored is None or (stored.incarnation > 0 and not stored.voters)
        self._wish = NewGeneration(generation, voters)  # the newest manifest
        lost = attrs.evolve(new_learner(), incarnation=_incarnation(0, rng))
        self._stored = stored if stored is not None else lost
        self._role = Role.IDLE
        self._leader: int | None = None
        self._granted: dict[int, int] = {}  # who is for us, with its incarnation
        self._told: dict[int, tuple[RejoinReply, int]] = {}  # by whom, while recovering, with its incarnation
        self._known: dict[int, int] = {}  # the incarnations that voters have told us of
        self._rounds: dict[int, _Round] = {}
        self._round = 0
        self._promised = 0.0  # no vote before
        self._deadline: float | None = None  # of the election, the next heartbeat, or the next rejoin
        self._lease: float | None = None  # its end
        self._proven = 0.0  # a leader without a lease by then gives up
        self._token: Token | None = None

    @property
    def role(self) -> Role:
        """What it is now."""
        return self._role

    @property
    def leader(self) -> int | None:
        """Who leads as far as it knows."""
        return self._leader

    @property
    def stored(self) -> Stored:
        """What the last `Persist` said."""
        return self._stored

    def token(self, now: float) -> Token | None:
        """The token to write with, None without a live lease."""
        return self._token if self._lease is not None and now < self._lease else None

    def next_timeout(self) -> float | None:
        """When to call `poll`."""
        times = [self._deadline, self._lease, self._proven if self._role is Role.LEADER else None]
        return min((time for time in times if time is not None), default=None)

    def receive(self, event: LeadershipEvent, now: float) -> list[LeadershipOutput]:
        """Take one event in."""
        if (self._role is Role.IDLE) != isinstance(event, Start):
            raise LocalProtocolError(f"{type(event).__name__} does not fit the role {self._role.value}")
        match event:
            case Start():
                return self._start(now)
            case NewGeneration(generation, voters):
                return self._new_generation(generation, voters)
            case MessageReceived(source, message, life):
                self._check_source(source)
                return self._expire(now) + self._on_life(source, message, life, now)

    def poll(self, now: float) -> list[LeadershipOutput]:
        """Do what is due."""
        outputs = self._expire(now)
        if self._deadline is None or now < self._deadline:
            return outputs
        match self._role:
            case Role.LEADER:
                return [*outputs, *self._heartbeat(now)]
            case Role.RECOVERING:
                return [*outputs, *self._rejoin(now)]
            case _:
                return [*outputs, *self._ask(now)]

    # -- starting ----------------------------------------------------------------------------------

    def _start(self, now: float) -> list[LeadershipOutput]:
        self._promised = now + self._config.promise_s  # what a former life may have promised
        if self._lost:
            self._become(Role.RECOVERING)
            return [self._persist(*self._rejoin(now))]
        self._become(Role.FOLLOWER)
        self._wait(now)
        return [Persist(self._stored)]

    def _rejoin(self, now: float) -> list[LeadershipOutput]:
        self._deadline = now + self._config.election_s
        counts = [self._wish.voters, *(count for reply, _ in self._told.values() for count in reply.voters)]
        return self._to_all(Rejoin(self._stored.incarnation), max(counts))

    def _new_generation(self, generation: int, voters: int) -> list[LeadershipOutput]:
        if not 1 <= voters <= MAX_VOTERS:
            raise LocalProtocolError(f"generation {generation} with {voters} voters, at most {MAX_VOTERS}")
        if generation > self._wish.generation:
            self._wish = NewGeneration(generation, voters)
        return self._change()

    # -- messages ----------------------------------------------------------------------------------

    def _check_source(self, source: int) -> None:
        # Any ordinal there can be: others may know of a configuration that has more of them.
        if not 0 <= source < MAX_VOTERS or source == self._own:
            raise RemoteProtocolError("leadership.not-a-replica", f"ordinal {source} to {self._own}")

    def _on_life(self, source: int, message: Message, life: Life, now: float) -> list[LeadershipOutput]:
        """What an earlier life of an ordinal says, which may go on beside the later one, is heard no more."""
        if life.incarnation or life.incarnations:
            for ordinal, incarnation in ((source, life.incarnation), *life.incarnations.items()):
                if incarnation > self._newest(ordinal):
                    self._known[ordinal] = incarnation
        # Who comes back knows of no earlier life of its own: it has to be told.
        if life.incarnation < self._newest(source) and not isinstance(message, Rejoin):
            return self._heard_of_own(life, now)
        return self._heard_of_own(life, now) or self._on_message(source, message, now)

    def _heard_of_own(self, life: Life, now: float) -> list[LeadershipOutput]:
        """Others have recorded a later life of this ordinal, by another pod: what this one knew is void."""
        later = life.incarnations.get(self._own, 0)
        if self._role is Role.RECOVERING or later <= self._stored.incarnation:
            return []
        outputs = [*self._lose_lease(), *self._know(None)]
        self._become(Role.RECOVERING)
        self._stored = attrs.evolve(
            new_learner(),
            incarnation=_incarnation(later, self._rng),
            incarnations=self._stored.incarnations,
        )
        self._told = {}
        # Not at once: two that outbid each other would let neither be heard.
        self._deadline = now + self._config.promise_s
        return [*outputs, self._persist()]

    def _on_message(self, source: int, message: Message, now: float) -> list[LeadershipOutput]:
        match message:
            case Rejoin(incarnation):
                return self._on_rejoin(source, incarnation)
            case RejoinReply():
                return self._on_rejoined(source, message, now)
            case _ if self._role is Role.RECOVERING:
                return []  # it has no vote to give and none to ask for
            case PreVote():
                granted = self._would_vote(message, now) and message.term > self._stored.term
                return [Send(source, PreVoteReply(message.term if granted else self._stored.term, granted))]
            case RequestVote():
                return self._on_request(source, message, now)
            case Heartbeat():
                return self._on_heartbeat(source, message, now)
            case PreVoteReply() | VoteReply():
                return self._on_reply(source, message, now)
            case HeartbeatReply():
                return self._on_answer(source, message, now)

    def _would_vote(self, message: PreVote | RequestVote, now: float) -> bool:
        asks = (message.since, message.generation, message.settled)
        return now >= self._promised and asks >= self._stored.age

    def _on_request(self, source: int, message: RequestVote, now: float) -> list[LeadershipOutput]:
        stored = self._stored
        free = message.term > stored.term or (message.term == stored.term and stored.vote in (None, source))
        if not self._would_vote(message, now) or not free:
            return [Send(source, VoteReply(stored.term, False))]
        outputs = self._follow(None, now)
        vote = Send(source, VoteReply(message.term, True))
        return [*outputs, self._persist(vote, term=message.term, vote=source)]

    def _on_heartbeat(self, source: int, message: Heartbeat, now: float) -> list[LeadershipOutput]:
        if message.term < self._stored.term:
            return [Send(source, HeartbeatReply(self._stored.term, self._stored.generation, None))]
        self._promised = max(self._promised, now + self._config.promise_s)
        outputs = self._follow(source, now)
        changes: dict[str, object] = {}
        if message.term > self._stored.term:
            changes |= {"term": message.term, "vote": None}
        told = Stored(message.generation, message.voters, since=message.term)
        if told.age > self._stored.age:
            changes |= {"generation": told.generation, "voters": told.voters, "since": told.since}
        generation = max(told, self._stored, key=lambda stored: stored.age).generation
        reply = Send(source, HeartbeatReply(message.term, generation, message.round))
        return [*outputs, self._persist(reply, **changes) if changes else reply]

    def _on_rejoin(self, source: int, incarnation: int) -> list[LeadershipOutput]:
        alone = source == 0 and self._stored.voters and min(self._stored.voters) <= 2
        if self._role is Role.RECOVERING or alone:
            return []  # nobody lets in 0 of one or two; to record it would end the earlier life, which may go on
        known = max(incarnation, self._newest(source))
        stored = self._stored
        reply = Send(source, RejoinReply(known, stored.term, stored.generation, stored.voters, stored.since))
        if self._stored.incarnations.get(source) == known:
            return [reply]
        return [self._persist(reply, incarnations={**self._stored.incarnations, source: known})]

    def _on_rejoined(self, source: int, message: RejoinReply, now: float) -> list[LeadershipOutput]:
        if self._role is not Role.RECOVERING or message.incarnation < self._stored.incarnation:
            return []
        if message.incarnation > self._stored.incarnation:  # of a life between that one and this
            newer = _incarnation(message.incarnation, self._rng)
            self._stored = attrs.evolve(self._stored, incarnation=newer)
            self._told = {}
            return [self._persist(*self._rejoin(now))]
        self._told[source] = message, self._newest(source)  # an earlier life is not heard
        valid = {v: reply for v, (reply, incarnation) in self._told.items() if incarnation >= self._newest(v)}
        newest = max(valid.values(), key=_age)
        if not newest.voters or not all(_vouched(self._own, valid, count) for count in newest.voters):
            return []
        term = max(reply.term for reply in valid.values())
        self._told = {}
        # An earlier life may lead, or have promised, until now: those who know of this one have heard it till then.
        self._promised = max(self._promised, now + self._config.promise_s)
        self._become(Role.FOLLOWER)
        self._wait(now)
        learnt = {"generation": newest.generation, "voters": newest.voters, "since": newest.since}
        # It votes for nobody in a term that was known before.
        return [self._persist(term=term, vote=self._own, **learnt)]

    # -- elections ---------------------------------------------------------------------------------

    def _ask(self, now: float) -> list[LeadershipOutput]:
        """Nobody leads: ask whether an election would help."""
        self._wait(now)
        if self._own >= max(self._stored.voters, default=0) or now < self._promised:
            return []
        outputs = self._know(None)
        self._become(Role.PRE_CANDIDATE)
        outputs += self._to_all(PreVote(self._stored.term + 1, *self._asking()))
        return [*outputs, *self._counted(now)]

    def _stand(self, now: float) -> list[LeadershipOutput]:
        self._become(Role.CANDIDATE)
        self._wait(now)
        request = RequestVote(self._stored.term + 1, *self._asking())
        stored = self._persist(*self._to_all(request), term=request.term, vote=self._own)
        return [stored, *self._counted(now)]

    def _asking(self) -> tuple[int, int, bool]:
        return self._stored.generation, self._stored.since, self._stored.settled

    def _on_reply(self, source: int, reply: PreVoteReply | VoteReply, now: float) -> list[LeadershipOutput]:
        if isinstance(reply, PreVoteReply):
            fits = self._role is Role.PRE_CANDIDATE and reply.term == self._stored.term + 1
        else:
            fits = self._role is Role.CANDIDATE and reply.term == self._stored.term
        if not reply.granted:
            return self._catch_up(reply.term, now)
        if not fits:
            return []
        self._granted[source] = self._newest(source)  # an earlier life is not heard
        return self._counted(now)

    def _catch_up(self, term: int, now: float) -> list[LeadershipOutput]:
        """A voter that refuses may know a later term, in which there would be a vote to win."""
        if term <= self._stored.term:
            return []
        return [*self._follow(None, now), self._persist(term=term, vote=None)]

    def _counted(self, now: float) -> list[LeadershipOutput]:
        """Go on if a majority is for us."""
        if self._role is Role.PRE_CANDIDATE:
            return self._stand(now) if self._majority([self._own, *self._granted]) else []
        valid = [voter for voter, incarnation in self._granted.items() if incarnation >= self._newest(voter)]
        return self._lead(now) if self._majority([self._own, *valid]) else []

    def _newest(self, voter: int) -> int:
        """The voter's newest incarnation that we know of: votes of one before are void."""
        return max(self._known.get(voter, 0), self._stored.incarnations.get(voter, 0))

    # -- leading -----------------------------------------------------------------------------------

    def _lead(self, now: float) -> list[LeadershipOutput]:
        self._become(Role.LEADER)
        stored = self._stored
        # A generation that is not settled may give way to a lower one: no token yet, and so no lease.
        self._token = Token(stored.generation, stored.term) if stored.settled else None
        self._proven = now + self._config.lease_s
        return [*self._know(self._own), self._persist(since=stored.term), *self._heartbeat(now)]

    def _change(self) -> list[LeadershipOutput]:
        """Begin with the newest manifest, once a majority has stored what there is."""
        stored, wish = self._stored, self._wish
        ready = self._role is Role.LEADER and self._lease is not None and stored.settled
        if not ready or wish.generation <= stored.generation:
            return []
        return [self._persist(generation=wish.generation, voters=(wish.voters, *stored.voters))]

    def _heartbeat(self, now: float) -> list[LeadershipOutput]:
        self._round += 1
        self._rounds[self._round] = _Round(
            now, {self._own: (self._stored.generation, self._stored.incarnation)}
        )
        for old in [r for r, round in self._rounds.items() if round.sent + self._config.lease_s <= now]:
            del self._rounds[old]
        self._deadline = now + self._config.heartbeat_s
        self._promised = max(self._promised, now + self._config.promise_s)
        stored = self._stored
        beat = Heartbeat(stored.term, stored.generation, self._round, stored.voters)
        return [*self._to_all(beat), *self._renew(self._rounds[self._round], now)]

    def _on_answer(self, source: int, answer: HeartbeatReply, now: float) -> list[LeadershipOutput]:
        if answer.term > self._stored.term:
            return self._catch_up(answer.term, now)
        round = self._rounds.get(answer.round) if answer.round is not None else None
        if self._role is not Role.LEADER or answer.term != self._stored.term or round is None:
            return []
        round.answers[source] = (answer.generation, self._newest(source))  # an earlier life is not heard
        return self._renew(round, now)

    def _renew(self, round: _Round, now: float) -> list[LeadershipOutput]:
        """The lease runs from when the heartbeat was sent that a majority has answered, in lives that are not over."""
        valid = {
            voter: generation
            for voter, (generation, incarnation) in round.answers.items()
            if incarnation >= self._newest(voter)
        }
        if not self._majority(valid):
            return []
        outputs = self._settle(valid, now)
        end = round.sent + self._config.lease_s
        if self._token is None or (self._lease is not None and end <= self._lease and not outputs):
            return outputs
        self._lease = self._proven = max(end, self._lease or end)
        return [*outputs, LeaseHeld(self._token, self._lease), *self._change()]

    def _settle(self, answers: dict[int, int], now: float) -> list[LeadershipOutput]:
        """A majority of the old and of the new voters has stored our generation: now it is the token's."""
        newest = self._stored.generation
        known = [voter for voter, generation in answers.items() if generation >= newest]
        if self._stored.settled or not self._majority(known):
            return []
        self._token = Token(newest, self._stored.term)
        self._deadline = now  # told at once: until they know, an election needs the old voters too
        return [self._persist(voters=self._stored.voters[:1])]

    def _expire(self, now: float) -> list[LeadershipOutput]:
        """A leader whom no majority answers is none."""
        if self._role is Role.LEADER and now >= self._proven:
            return self._follow(None, now)
        return []

    # -- common ------------------------------------------------------------------------------------

    def _become(self, role: Role) -> None:
        if role not in TRANSITIONS[self._role]:
            raise LocalProtocolError(f"no way from {self._role.value} to {role.value}")
        self._role = role
        self._granted, self._rounds = {}, {}

    def _follow(self, leader: int | None, now: float) -> list[LeadershipOutput]:
        """Follow somebody, or wait for somebody to lead."""
        outputs = self._lose_lease()
        self._become(Role.FOLLOWER)
        self._wait(now)
        return [*outputs, *self._know(leader)]

    def _lose_lease(self) -> list[LeadershipOutput]:
        outputs: list[LeadershipOutput] = [LeaseLost()] if self._lease is not None else []
        self._lease = self._token = None
        return outputs

    def _know(self, leader: int | None) -> list[LeadershipOutput]:
        if leader == self._leader:
            return []
        self._leader = leader
        return [LeaderChanged(leader)]

    def _wait(self, now: float) -> None:
        """The next election is due a random while after all promises."""
        share = 1 + self._rng.getrandbits(32) / (1 << 32)
        self._deadline = max(now, self._promised) + share * self._config.election_s

    def _persist(self, *then: LeadershipOutput, **changes: object) -> Persist:
        # Later lives that were told of are recorded, too: whoever lost its storage has to know again which it had recorded.
        told = {
            o: max(i, self._stored.incarnations.get(o, 0))
            for o, i in self._known.items()
            if i and o != self._own
        }
        changes.setdefault("incarnations", {**self._stored.incarnations, **told})
        self._stored = attrs.evolve(self._stored, **changes)  # type: ignore[arg-type]
        return Persist(self._stored, tuple(output for output in then if isinstance(output, Send)))

    def _majority(self, replicas: dict[int, int] | list[int]) -> bool:
        """Whether these are more than half of the voters, by each number of voters that counts now."""
        counts = self._stored.voters
        return all(sum(r < count for r in set(replicas)) >= quorum(count) for count in counts)

    def _to_all(self, message: Message, count: int | None = None) -> list[LeadershipOutput]:
        others = range(max(self._stored.voters, default=0) if count is None else count)
        return [Send(other, message) for other in others if other != self._own]
