"""The owner's side of an auction: tender out, bids in, awards out, events in, done.

One `Auction` places the replicas of one tender.  The driver builds, signs, sends and checks the messages;
what reaches the machine has a good signature, is fresh, and comes from a member that may run pods.  The
bidder's side is in `magik_proto.bidder` (its names can be imported from here too).

States: IDLE -Start-> COLLECTING -window over-> AWARDING -all answered-> AWAITING -all reported-> DONE, with
the way back to COLLECTING when bids run out before replicas do.  See "Scheduling" in
specs/machineplane-spec.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

import attrs

from magik_proto.auction_types import (
    AWARD_TABLE,
    EVENT_SIGNALS,
    LEGAL,
    AuctionConfig,
    AuctionEvent,
    AuctionOutput,
    AuctionState,
    AwardAccepted,
    AwardRefused,
    AwardState,
    AwardUnreachable,
    BidderGone,
    BidReceived,
    DeclineBid,
    EventReceived,
    Finished,
    Placed,
    PublishTender,
    SendAward,
    Signal,
    Start,
    Surplus,
)
from magik_proto.bidder import Bidder, BidderConfig
from magik_proto.errors import LocalProtocolError
from magik_proto.identity import PeerId
from magik_proto.messages import Bid, Event
from magik_proto.placement import choose_winners, sample_width

__all__ = [
    "AWARD_TABLE",
    "LEGAL",
    "Auction",
    "AuctionConfig",
    "AuctionEvent",
    "AuctionOutput",
    "AuctionState",
    "AwardAccepted",
    "AwardRefused",
    "AwardState",
    "AwardUnreachable",
    "BidReceived",
    "Bidder",
    "BidderConfig",
    "BidderGone",
    "DeclineBid",
    "EventReceived",
    "Finished",
    "Placed",
    "PublishTender",
    "SendAward",
    "Signal",
    "Start",
    "Surplus",
]

_OPEN = (AwardState.SENT, AwardState.ACCEPTED)


@attrs.define
class _Award:
    bid: Bid
    replicas: int
    ordinals: tuple[int, ...]
    state: AwardState
    deadline: float


class Auction:
    """Places `replicas` of one tender; the machine of its owner.

    `ordinals` are the numbers to give out, one a replica, or empty for workloads without.  `taken` counts the
    workload's replicas that machines run already (spreading counts them).  `avoid` are machines whose bids
    do not count.  `expected_bidders` is how many live machines there are at the start, the owner included
    and those of `avoid` not, if that is known: with it the window closes early once all of them have bid,
    in rounds whose sample takes in the whole fabric.

    `receive` raises LocalProtocolError for an event that the state does not allow, and then changes nothing.
    """

    def __init__(
        self,
        tender_id: UUID,
        replicas: int,
        *,
        ordinals: tuple[int, ...] = (),
        taken: Mapping[PeerId, int] | None = None,
        avoid: tuple[PeerId, ...] = (),
        config: AuctionConfig | None = None,
        expected_bidders: int | None = None,
    ) -> None:
        if replicas < 1:
            raise LocalProtocolError(f"an auction places at least one replica, not {replicas}")
        if ordinals and len(set(ordinals)) != replicas:
            raise LocalProtocolError(f"{replicas} replicas need as many different ordinals, not {ordinals}")
        self._tender_id = tender_id
        self._replicas = replicas
        self._ordinals = sorted(ordinals)
        self._taken = dict(taken or {})
        self._config = config or AuctionConfig()
        self._expected = expected_bidders
        self._avoid = frozenset(avoid)
        self._excluded: dict[PeerId, None] = {}  # who failed or left: no more awards to these
        self._state = AuctionState.IDLE
        self._round = 0
        self._deadline: float | None = None  # of the window, while collecting
        self._bids: dict[PeerId, Bid] = {}  # usable bids of this round
        self._heard: dict[PeerId, None] = {}  # who has bid in this round
        self._awards: dict[PeerId, _Award] = {}  # the newest award of each node
        self._placed: dict[PeerId, int] = {}
        self._reasons: list[str] = []
        self._any_bid = False

    @property
    def state(self) -> AuctionState:
        return self._state

    @property
    def tender_id(self) -> UUID:
        return self._tender_id

    def next_timeout(self) -> float | None:
        """When to call `poll`, on the clock of `now`; None: never."""
        deadlines = [award.deadline for award in self._awards.values() if award.state in _OPEN]
        if self._deadline is not None:
            deadlines.append(self._deadline)
        return min(deadlines) if deadlines and self._state is not AuctionState.DONE else None

    def receive(self, event: AuctionEvent, now: float) -> list[AuctionOutput]:
        """Take one event in; see the class for errors."""
        if type(event) not in LEGAL[self._state]:
            raise LocalProtocolError(f"{type(event).__name__} is not legal while {self._state.value}")
        outputs: list[AuctionOutput] = []
        match event:
            case Start():
                outputs += self._open_round(now)
            case BidReceived(bid):
                outputs += self._on_bid(bid)
            case AwardAccepted(node):
                outputs += self._signal(node, Signal.ACCEPTED, now)
            case AwardRefused(node, reason):
                outputs += self._signal(node, Signal.REFUSED, now, reason)
            case AwardUnreachable(node, reason):
                outputs += self._signal(node, Signal.UNREACHABLE, now, reason)
            case EventReceived(message):
                outputs += self._on_event(message, now)
            case BidderGone(peer):
                self._exclude(peer)
                outputs += self._signal(peer, Signal.GONE, now)
        return outputs + self._advance(now)

    def poll(self, now: float) -> list[AuctionOutput]:
        """Take the time in: closes the window, gives silent winners up."""
        outputs: list[AuctionOutput] = []
        for node, award in list(self._awards.items()):
            if award.state in _OPEN and now >= award.deadline:
                outputs += self._signal(node, Signal.SILENT, now)
        return outputs + self._advance(now)

    # -- what happens ------------------------------------------------------------------------------

    def _open_round(self, now: float) -> list[AuctionOutput]:
        self._round += 1
        self._state = AuctionState.COLLECTING
        self._deadline = now + self._config.window_s
        self._heard.clear()
        sample = self._config.sample_for(self._replicas)
        return [*self._decline_rest("another round begins"), PublishTender(self._round, sample)]

    def _on_bid(self, bid: Bid) -> list[AuctionOutput]:
        if bid.tender_id != self._tender_id or bid.node_id in self._heard:
            return []  # a stranger's, or a second one of this round
        if self._state is not AuctionState.COLLECTING:
            return [DeclineBid(bid.node_id, "the window is closed")]
        if bid.node_id in self._avoid or bid.node_id in self._excluded or self._is_open(bid.node_id):
            return [DeclineBid(bid.node_id, "no more awards to this machine")]
        if len(self._heard) >= self._config.max_bids:
            return [DeclineBid(bid.node_id, "enough bids")]
        self._heard[bid.node_id] = None
        self._any_bid = True
        self._bids[bid.node_id] = bid
        return []

    def _on_event(self, event: Event, now: float) -> list[AuctionOutput]:
        if event.tender_id != self._tender_id:
            return []
        return self._signal(
            event.node_id, EVENT_SIGNALS[event.event_type], now, event.reason, tuple(event.pods)
        )

    def _signal(
        self, node: PeerId, signal: Signal, now: float, reason: str = "", pods: tuple[str, ...] = ()
    ) -> list[AuctionOutput]:
        award = self._awards.get(node)
        state = AWARD_TABLE.get((award.state, signal)) if award else None
        if award is None or state is None:
            return []  # no award, or it is past that: the network's lateness is nobody's error
        if state is AwardState.PLACED:
            return self._on_deployed(node, award, pods)
        award.state = state
        if state is AwardState.ACCEPTED:
            award.deadline = now + self._config.deploy_timeout_s
            return []
        self._on_lost(node, award, signal, reason)
        return []

    def _on_lost(self, node: PeerId, award: _Award, signal: Signal, reason: str) -> None:
        self._give_back(award.ordinals)
        if signal is not Signal.REFUSED:  # who refused may have room again in the next round
            self._exclude(node)
        self._note(f"{node}: {signal.value}" + (f": {reason}" if reason else ""))

    def _on_deployed(self, node: PeerId, award: _Award, pods: tuple[str, ...]) -> list[AuctionOutput]:
        if award.state is AwardState.LOST and not self._take_again(award):
            award.state = AwardState.PLACED
            return [Surplus(node, pods)]
        award.state = AwardState.PLACED
        count = min(len(pods), award.replicas) if pods else award.replicas
        if count < award.replicas:
            self._give_back(_missing(award.ordinals, pods))
            self._note(f"{node}: deployed {count} of {award.replicas}")
        self._placed[node] = self._placed.get(node, 0) + count
        return [Placed(node, pods, count)]

    def _take_again(self, award: _Award) -> bool:
        """Whether the replicas of an award that was given up are still unassigned; then they are its own
        again.
        """
        wanted = self._state is not AuctionState.DONE and self._short() >= award.replicas
        if not wanted or any(n not in self._ordinals for n in award.ordinals):
            return False
        self._ordinals = [n for n in self._ordinals if n not in award.ordinals]
        return True

    # -- what follows ------------------------------------------------------------------------------

    def _advance(self, now: float) -> list[AuctionOutput]:
        """Go on as far as the state allows: award what is short, open a round, or finish."""
        if self._state in (AuctionState.IDLE, AuctionState.DONE):
            return []
        if self._state is AuctionState.COLLECTING and not self._window_over(now):
            return []
        self._deadline = None
        outputs = self._award_short(now)
        if self._short() and self._may_open_round():
            return outputs + self._open_round(now)
        self._state = self._state_of_awards()
        if self._state is not AuctionState.AWARDING:
            outputs += self._decline_rest("all replicas are awarded")
        return outputs + (self._finish() if self._state is AuctionState.DONE else [])

    def _window_over(self, now: float) -> bool:
        if not self._short() or (self._deadline is not None and now >= self._deadline):
            return True
        return self._expected is not None and 0 < self._still_expected() <= len(self._heard)

    def _still_expected(self) -> int:
        """How many bids this round can bring; 0 when it cannot be known."""
        width = sample_width(self._config.sample_for(self._replicas), self._round)
        if self._expected is None or self._expected > width:
            return 0
        silent = dict.fromkeys([*self._excluded, *(n for n in self._awards if self._is_open(n))])
        return self._expected - len([node for node in silent if node not in self._heard])

    def _award_short(self, now: float) -> list[AuctionOutput]:
        outputs: list[AuctionOutput] = []
        for bid, count in choose_winners(self._bids.values(), self._short(), self._load()):
            ordinals = tuple(self._ordinals[:count])
            del self._ordinals[:count]
            del self._bids[bid.node_id]  # one award a bid
            deadline = now + self._config.award_timeout_s
            self._awards[bid.node_id] = _Award(bid, count, ordinals, AwardState.SENT, deadline)
            outputs.append(SendAward(bid, count, ordinals))
        return outputs

    def _may_open_round(self) -> bool:
        """Rounds but the last open at once; the last when nothing is open, so that every machine may bid
        again.
        """
        left = self._config.max_rounds - self._round
        return left > 1 or (left == 1 and not any(self._is_open(n) for n in self._awards))

    def _state_of_awards(self) -> AuctionState:
        states = [award.state for award in self._awards.values()]
        if AwardState.SENT in states:
            return AuctionState.AWARDING
        return AuctionState.AWAITING if AwardState.ACCEPTED in states else AuctionState.DONE

    def _finish(self) -> list[AuctionOutput]:
        unplaced = self._short()
        if unplaced and self._any_bid:  # without any bid there is nothing to say: `reasons` stays empty
            self._note(f"{unplaced} of {self._replicas} replicas found no machine in {self._round} rounds")
        return [Finished(dict(self._placed), unplaced, tuple(self._reasons))]

    # -- small readings ----------------------------------------------------------------------------

    def _is_open(self, node: PeerId) -> bool:
        award = self._awards.get(node)
        return award is not None and award.state in _OPEN

    def _load(self) -> Mapping[PeerId, int]:
        """Replicas on each machine: before this auction, placed by it, and under way."""
        load = dict(self._taken)
        for node, count in self._placed.items():
            load[node] = load.get(node, 0) + count
        for node, award in self._awards.items():
            load[node] = load.get(node, 0) + (award.replicas if award.state in _OPEN else 0)
        return load

    def _short(self) -> int:
        underway = sum(award.replicas for award in self._awards.values() if award.state in _OPEN)
        return max(0, self._replicas - sum(self._placed.values()) - underway)

    def _decline_rest(self, reason: str) -> list[AuctionOutput]:
        rest = list(self._bids)
        self._bids.clear()
        return [DeclineBid(node, reason) for node in rest]

    def _exclude(self, node: PeerId) -> None:
        self._excluded[node] = None
        self._bids.pop(node, None)

    def _give_back(self, ordinals: Iterable[int]) -> None:
        self._ordinals = sorted([*self._ordinals, *ordinals])

    def _note(self, reason: str) -> None:
        if len(self._reasons) < self._config.max_reasons:
            self._reasons.append(reason)


def _missing(ordinals: tuple[int, ...], pods: tuple[str, ...]) -> list[int]:
    """Ordinals of an award that none of the deployed pods carries at the end of its name."""
    tails = [pod.rpartition("-")[2] for pod in pods]
    return [number for number in ordinals if str(number) not in tails]
