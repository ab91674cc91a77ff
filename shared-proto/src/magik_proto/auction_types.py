"""Events, outputs, limits and state tables of `magik_proto.auction`: data only.  Import the names from
there.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

from magik_proto.identity import PeerId
from magik_proto.messages import Bid, Event, EventType

# messages.Tender's bound.
MAX_BID_SAMPLE = 1_000_000


@attrs.frozen
class AuctionConfig:
    """Times in seconds.  What happens at each limit stands beside it."""

    # protocol.md "selection window".  Then the bids at hand decide.
    window_s: float = 0.25
    # A guess: a member that has just bid answers within a round trip.  Then the award is lost, the next
    # bid's turn.
    award_timeout_s: float = 5.0
    # A guess: the time to pull an image of a few hundred MB.  Then the award is lost, the next bid's turn.
    deploy_timeout_s: float = 120.0
    # A guess (see placement.SAMPLE_GROWTH).  After it the rest is reported as unplaced.
    max_rounds: int = 3
    # How many machines a first round asks, at least; more for many replicas, see `sample_for`.  A guess.
    bid_sample: int = 16
    # Bids kept in one round; later ones are declined.
    max_bids: int = 4096
    # Reasons kept for the final report; later ones are dropped.
    max_reasons: int = 32

    def sample_for(self, replicas: int) -> int:
        """The first round's sample: four machines for each replica wanted, so that a choice is left."""
        return min(max(self.bid_sample, 4 * replicas), MAX_BID_SAMPLE)


# -- events ----------------------------------------------------------------------------------------


@attrs.frozen
class Start:
    """Begin; the first event of every auction and of no other time."""


@attrs.frozen
class BidReceived:
    bid: Bid


@attrs.frozen
class AwardAccepted:
    """The winner answered that it deploys."""

    node: PeerId


@attrs.frozen
class AwardRefused:
    node: PeerId
    reason: str


@attrs.frozen
class AwardUnreachable:
    node: PeerId
    reason: str = ""


@attrs.frozen
class EventReceived:
    event: Event


@attrs.frozen
class BidderGone:
    """A machine left the fabric or is held for dead."""

    peer: PeerId


AuctionEvent = (
    Start | BidReceived | AwardAccepted | AwardRefused | AwardUnreachable | EventReceived | BidderGone
)


# -- outputs ---------------------------------------------------------------------------------------


@attrs.frozen
class PublishTender:
    """Sign and publish the tender with these two fields; rounds count from 1."""

    round: int
    bid_sample: int


@attrs.frozen
class SendAward:
    bid: Bid
    replicas: int
    ordinals: tuple[int, ...]


@attrs.frozen
class DeclineBid:
    """Tell the bidder, if that is cheap, that it may give back what it reserved; without it, it times out."""

    node: PeerId
    reason: str


@attrs.frozen
class Placed:
    node: PeerId
    pods: tuple[str, ...]
    replicas: int


@attrs.frozen
class Surplus:
    """A machine that was given up deployed all the same, and its replicas are no longer wanted: take them
    down.
    """

    node: PeerId
    pods: tuple[str, ...]


@attrs.frozen
class Finished:
    """Always the end.  `placed` counts this auction's replicas only; `reasons` say why others are not."""

    placed: Mapping[PeerId, int]
    unplaced: int
    reasons: tuple[str, ...]


AuctionOutput = PublishTender | SendAward | DeclineBid | Placed | Surplus | Finished


# -- state tables ----------------------------------------------------------------------------------


class AuctionState(enum.Enum):
    IDLE = "idle"
    COLLECTING = "collecting"
    AWARDING = "awarding"
    AWAITING = "awaiting events"
    DONE = "done"


class AwardState(enum.Enum):
    SENT = "sent"
    ACCEPTED = "accepted"
    PLACED = "placed"
    LOST = "lost"


class Signal(enum.Enum):
    """What can happen to one award."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    DEPLOYED = "deployed"
    FAILED = "failed"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    GONE = "gone"
    SILENT = "silent"


_NETWORK_EVENTS: frozenset[type] = frozenset(
    {BidReceived, AwardAccepted, AwardRefused, AwardUnreachable, EventReceived, BidderGone}
)

# What the driver may tell in which state; all else is an error of ours.  What is legal may still have no
# effect: the network is late, and others may send what they like.
LEGAL: Mapping[AuctionState, frozenset[type]] = {
    AuctionState.IDLE: frozenset({Start}),
    AuctionState.COLLECTING: _NETWORK_EVENTS,
    AuctionState.AWARDING: _NETWORK_EVENTS,
    AuctionState.AWAITING: _NETWORK_EVENTS,
    AuctionState.DONE: _NETWORK_EVENTS,
}

# One award's life.  A pair that is not here changes nothing.
AWARD_TABLE: Mapping[tuple[AwardState, Signal], AwardState] = {
    (AwardState.SENT, Signal.ACCEPTED): AwardState.ACCEPTED,
    (AwardState.SENT, Signal.REFUSED): AwardState.LOST,
    (AwardState.SENT, Signal.UNREACHABLE): AwardState.LOST,
    (AwardState.SENT, Signal.DEPLOYED): AwardState.PLACED,  # the event overtook the answer
    (AwardState.SENT, Signal.FAILED): AwardState.LOST,
    (AwardState.SENT, Signal.PREEMPTED): AwardState.LOST,
    (AwardState.SENT, Signal.CANCELLED): AwardState.LOST,
    (AwardState.SENT, Signal.GONE): AwardState.LOST,
    (AwardState.SENT, Signal.SILENT): AwardState.LOST,
    (AwardState.ACCEPTED, Signal.DEPLOYED): AwardState.PLACED,
    (AwardState.ACCEPTED, Signal.FAILED): AwardState.LOST,
    (AwardState.ACCEPTED, Signal.PREEMPTED): AwardState.LOST,
    (AwardState.ACCEPTED, Signal.CANCELLED): AwardState.LOST,
    (AwardState.ACCEPTED, Signal.GONE): AwardState.LOST,
    (AwardState.ACCEPTED, Signal.SILENT): AwardState.LOST,
    (AwardState.LOST, Signal.DEPLOYED): AwardState.PLACED,  # given up too early: taken if still wanted
}

EVENT_SIGNALS: Mapping[EventType, Signal] = {
    EventType.Deployed: Signal.DEPLOYED,
    EventType.Failed: Signal.FAILED,
    EventType.Preempted: Signal.PREEMPTED,
    EventType.Cancelled: Signal.CANCELLED,
}
