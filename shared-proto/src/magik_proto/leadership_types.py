"""Messages, events, outputs, limits and the state table of `magik_proto.leadership`: data only. Import the
names from there.

Replicas are named by their ordinals; who sent a message is what the connection has proved.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import attrs
from attrs import field

from magik_proto.errors import LocalProtocolError

MAX_VOTERS: Final = 99
"""Voters of one workload (guess: above some tens a lock by majority is the wrong tool). At it: refused."""


@attrs.frozen
class LeadershipConfig:
    """Times in seconds, on a clock that also counts while the machine sleeps."""

    # protocol.md "Leadership". When it ends without a renewal, the leader stops serving writes at once.
    lease_s: float = 3.0
    # protocol.md. Six in a lease: five in a row may be lost.
    heartbeat_s: float = 0.5
    # How much faster or slower than true a clock may run (guess: 200 times what a quartz does). Beyond it two
    # leases may overlap, and only the fencing token protects.
    max_drift: float = 0.01
    # An election is tried again after 1 to 2 times this (guess: several round trips on a bad network).
    election_s: float = 0.5

    def __attrs_post_init__(self) -> None:
        if (
            not 0 < 2 * self.heartbeat_s <= self.lease_s
            or not 0 <= self.max_drift < 1
            or self.election_s <= 0
        ):
            raise LocalProtocolError(f"a lease takes at least two heartbeats, a drift is under 1: {self}")

    @property
    def promise_s(self) -> float:
        """How long a voter keeps from voting after a heartbeat: a lease measured by a slow clock, on a fast
        one."""
        return self.lease_s * (1 + self.max_drift) / (1 - self.max_drift)


def quorum(voters: int) -> int:
    """More than half."""
    return voters // 2 + 1


@attrs.frozen
class Life:
    """Which incarnation of the sender says something, and which of others it has recorded.

    A pod that is held for lost is made again elsewhere while it lives on behind a partition: of two replicas of one ordinal
    the later incarnation counts, for all who know of it.
    """

    incarnation: int = 0
    incarnations: Mapping[int, int] = field(factory=dict, hash=False)


@attrs.frozen
class Stored:
    """What must be on stable storage. The first three are the configuration. `voters` counts the ordinals that vote: one
    count is settled; two, the new one first, are a change under way, and a majority of each is needed; a learner knows
    none. `since` is the term of the leader that last vouched for it. `incarnation` is 0 until a replica loses its
    storage, then later in each life; `incarnations` are those that others have shown.
    """

    generation: int
    voters: tuple[int, ...]
    since: int = 0
    incarnation: int = 0
    term: int = 0
    vote: int | None = None
    incarnations: Mapping[int, int] = field(factory=dict, hash=False)

    @property
    def settled(self) -> bool:
        """No change of the voters is under way."""
        return len(self.voters) == 1

    @property
    def age(self) -> tuple[int, int, bool]:
        """Of two configurations the one with the greater is the newer."""
        return self.since, self.generation, self.settled

    @property
    def life(self) -> Life:
        """What goes with each message."""
        return Life(self.incarnation, self.incarnations)


@attrs.frozen(order=True)
class Token:
    """The fencing token: who writes shows it, and the storage refuses a lower one than it has seen."""

    generation: int
    term: int


# -- messages --------------------------------------------------------------------------------------


@attrs.frozen
class PreVote:
    """Would you vote for me in `term`? Binds nobody. The rest tells how new my configuration is."""

    term: int
    generation: int
    since: int
    settled: bool


@attrs.frozen
class PreVoteReply:
    """The term asked about, or, refusing, the voter's own."""

    term: int
    granted: bool


@attrs.frozen
class RequestVote:
    term: int
    generation: int
    since: int
    settled: bool


@attrs.frozen
class VoteReply:
    """The term that the vote is for, or, refusing, the voter's own."""

    term: int
    granted: bool


@attrs.frozen
class Heartbeat:
    """I lead `term`, with this configuration; `round` comes back with the answer."""

    term: int
    generation: int
    round: int
    voters: tuple[int, ...]


@attrs.frozen
class HeartbeatReply:
    """The generation that is stored now. `round` is None when the heartbeat was of an earlier term and promises nothing."""

    term: int
    generation: int
    round: int | None


@attrs.frozen
class Rejoin:
    """I have lost what I had stored; this is my new incarnation."""

    incarnation: int


@attrs.frozen
class RejoinReply:
    """This incarnation of yours, or a later one that I knew, is on my stable storage; the rest is mine."""

    incarnation: int
    term: int
    generation: int
    voters: tuple[int, ...]
    since: int


Message = PreVote | PreVoteReply | RequestVote | VoteReply | Heartbeat | HeartbeatReply | Rejoin | RejoinReply

# -- events ----------------------------------------------------------------------------------------


@attrs.frozen
class Start:
    """Begin; the first event and of no other time."""


@attrs.frozen
class MessageReceived:
    source: int
    message: Message
    life: Life = Life()


@attrs.frozen
class NewGeneration:
    """The workload's author has signed a manifest of a higher generation, with so many replicas. A wish: the next
    leader that can begins with it."""

    generation: int
    voters: int


LeadershipEvent = Start | MessageReceived | NewGeneration

# -- outputs ---------------------------------------------------------------------------------------


@attrs.frozen
class Send:
    to: int
    message: Message


@attrs.frozen
class Persist:
    """Write and sync `stored`; only then send `then`, and carry out what follows in the list. After a failure
    to write, stop: start again from what is stored."""

    stored: Stored
    then: tuple[Send, ...] = ()


@attrs.frozen
class LeaderChanged:
    """Who leads as far as this replica knows; a hint for proxies, never a right to write."""

    leader: int | None


@attrs.frozen
class LeaseHeld:
    """This replica leads and may serve writes with `token` while its clock is before `until`."""

    token: Token
    until: float


@attrs.frozen
class LeaseLost:
    """It may not any more."""


LeadershipOutput = Persist | Send | LeaderChanged | LeaseHeld | LeaseLost

# -- states ----------------------------------------------------------------------------------------


class Role(enum.Enum):
    IDLE = "idle"
    RECOVERING = "recovering"
    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


TRANSITIONS: Final[Mapping[Role, frozenset[Role]]] = {
    Role.IDLE: frozenset({Role.RECOVERING, Role.FOLLOWER}),
    Role.RECOVERING: frozenset({Role.FOLLOWER}),
    Role.FOLLOWER: frozenset({Role.FOLLOWER, Role.PRE_CANDIDATE, Role.RECOVERING}),
    Role.PRE_CANDIDATE: frozenset({Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE, Role.RECOVERING}),
    Role.CANDIDATE: frozenset({Role.FOLLOWER, Role.PRE_CANDIDATE, Role.LEADER, Role.RECOVERING}),
    Role.LEADER: frozenset({Role.FOLLOWER, Role.RECOVERING}),
}
"""Where each role may go; all else is a bug of the machine."""
