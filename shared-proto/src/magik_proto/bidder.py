"""The bidder's side of auctions: one `Bidder` for each machine, for all tenders that it sees.

It holds what the machine has to give: what is used, and what is promised or being deployed.  Signatures,
freshness and membership are checked by the driver before an event gets here; whether an award is to be
obeyed is decided here.

States, for each tender: IDLE -tender seen, eligible-> BIDDING -award-> DEPLOYING -deployed or failed->
IDLE, and from BIDDING back to IDLE when declined, timed out, or when the owner is gone.  See
specs/machineplane-spec.md, "Scheduling".
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from uuid import UUID

import attrs

from magik_proto.errors import LocalProtocolError
from magik_proto.identity import PeerId
from magik_proto.messages import Award, Tender
from magik_proto.placement import (
    Capacity,
    MachineFacts,
    Readings,
    Score,
    eligible,
    in_sample,
    needs,
    score,
    slots,
)


@attrs.frozen
class BidderConfig:
    """Times in seconds."""

    # How long a promise is kept without an award.  A guess: twice the owner's window and award time-outs.
    award_wait_s: float = 10.0
    # protocol.md "replay window": so long an award that was obeyed is known again.
    obeyed_memory_s: float = 300.0
    # protocol.md "tender owners": open bids, and awards remembered.  At the cap: no bid, and no award is
    # obeyed.
    max_open: int = 10_000
    # Replicas promised in one bid.  More fit: they are promised in a later round.  A guess.
    max_slots: int = 128


# -- events ----------------------------------------------------------------------------------------


@attrs.frozen
class TenderSeen:
    tender: Tender
    fabric_size: int
    readings: Readings = attrs.field(factory=Readings)


@attrs.frozen
class AwardReceived:
    award: Award


@attrs.frozen
class BidDeclined:
    """The owner said that our bid lost."""

    tender_id: UUID


@attrs.frozen
class OwnerGone:
    """A machine left the fabric: what we promised to it is free again; what we deploy for it goes on."""

    peer: PeerId


@attrs.frozen
class Deployed:
    tender_id: UUID


@attrs.frozen
class DeployFailed:
    tender_id: UUID
    reason: str


@attrs.frozen
class Preempted:
    """What was being deployed for this tender has to make room for something else."""

    tender_id: UUID
    reason: str = ""


@attrs.frozen
class CapacityChanged:
    """What all pods take that are not under a deployment of this bidder (those of a finished one
    included).
    """

    used: Capacity


@attrs.frozen
class FactsChanged:
    """Labels, taints, runtimes or size of this machine changed."""

    facts: MachineFacts


BidderEvent = (
    TenderSeen
    | AwardReceived
    | BidDeclined
    | OwnerGone
    | Deployed
    | DeployFailed
    | Preempted
    | CapacityChanged
    | FactsChanged
)


# -- outputs ---------------------------------------------------------------------------------------


@attrs.frozen
class MakeBid:
    """Sign a bid with these and send it to the owner; its slots are reserved already."""

    tender_id: UUID
    owner: PeerId
    round: int
    score: Score
    slots: int


@attrs.frozen
class NoBid:
    """Nothing to send; for the log only."""

    tender_id: UUID
    reasons: tuple[str, ...]


@attrs.frozen
class Deploy:
    """Accept the award and deploy it; end with `Deployed` or `DeployFailed`."""

    award: Award


@attrs.frozen
class AwardRepeated:
    """The very award that was obeyed already: answer as then, deploy nothing."""

    award: Award


@attrs.frozen
class RefuseAward:
    """Answer the sender with this reason (a short slug); our promise to the real owner stands."""

    tender_id: UUID
    reason: str


@attrs.frozen
class Release:
    """What was reserved for the tender is free again."""

    tender_id: UUID
    reason: str


BidderOutput = MakeBid | NoBid | Deploy | AwardRepeated | RefuseAward | Release


# -- state table -----------------------------------------------------------------------------------


class TenderState(enum.Enum):
    IDLE = "idle"
    BIDDING = "bidding"
    DEPLOYING = "deploying"


# What the driver may tell about a tender in which state; what is not here is an error of ours.  Tenders,
# awards and declines come from others at any time: they are legal always and may have no effect.
LEGAL: Mapping[type, tuple[TenderState, ...]] = {
    Deployed: (TenderState.DEPLOYING,),
    DeployFailed: (TenderState.DEPLOYING,),
    Preempted: (TenderState.DEPLOYING,),
}


@attrs.frozen
class _Promise:
    tender: Tender
    slots: int
    deadline: float

    @property
    def reserved(self) -> Capacity:
        return needs(self.tender.requirements) * self.slots


class Bidder:
    """What one machine has promised and is deploying.

    `receive` raises LocalProtocolError for an event that the tender's state does not allow, and changes
    nothing then. Every operation takes constant time, other than `OwnerGone`, which looks at all open
    promises.
    """

    def __init__(
        self, facts: MachineFacts, config: BidderConfig | None = None, *, used: Capacity | None = None
    ) -> None:
        self._facts = facts
        self._config = config or BidderConfig()
        self._used = used or Capacity()
        self._reserved = Capacity()
        self._promises: dict[UUID, _Promise] = {}  # in the order of their deadlines: all wait equally long
        self._deploying: dict[UUID, Capacity] = {}
        self._obeyed: dict[
            tuple[UUID, int], float
        ] = {}  # (tender, nonce) -> when to forget it, in that order

    @property
    def free(self) -> Capacity:
        """What can still be promised."""
        return self._facts.capacity - self._used - self._reserved

    @property
    def reserved(self) -> Capacity:
        """What open promises and deployments hold."""
        return self._reserved

    def state(self, tender_id: UUID) -> TenderState:
        if tender_id in self._deploying:
            return TenderState.DEPLOYING
        return TenderState.BIDDING if tender_id in self._promises else TenderState.IDLE

    def next_timeout(self) -> float | None:
        """When to call `poll`; None: never."""
        first = next(iter(self._promises.values()), None)
        return first.deadline if first else None

    def poll(self, now: float) -> list[BidderOutput]:
        """Give back what was promised and not awarded in time; forget awards of long ago."""
        outputs: list[BidderOutput] = []
        while (promise := next(iter(self._promises.values()), None)) and now >= promise.deadline:
            reason = f"no award within {self._config.award_wait_s:g} s"
            outputs.append(self._withdraw(promise.tender.id, reason))
        while (oldest := next(iter(self._obeyed), None)) and now >= self._obeyed[oldest]:
            del self._obeyed[oldest]
        return outputs

    def receive(self, event: BidderEvent, now: float) -> list[BidderOutput]:
        """Take one event in; see the class for errors."""
        self._check_legal(event)
        outputs = self.poll(now)
        match event:
            case TenderSeen():
                outputs += self._on_tender(event, now)
            case AwardReceived(award):
                outputs += self._on_award(award, now)
            case BidDeclined(tender_id):
                outputs += [self._withdraw(tender_id, "declined")] if tender_id in self._promises else []
            case OwnerGone(peer):
                outputs += self._on_owner_gone(peer)
            case Deployed(tender_id):
                self._used += self._settle(tender_id)
            case DeployFailed(tender_id, reason) | Preempted(tender_id, reason):
                self._settle(tender_id)
                outputs.append(Release(tender_id, reason))
            case CapacityChanged(used):
                self._used = used
            case FactsChanged(facts):
                self._facts = facts
        return outputs

    def _check_legal(self, event: BidderEvent) -> None:
        if isinstance(event, Deployed | DeployFailed | Preempted):
            state = self.state(event.tender_id)
            if state not in LEGAL[type(event)]:
                what = f"{type(event).__name__} of tender {event.tender_id}"
                raise LocalProtocolError(f"{what} is not legal while {state.value}")

    # -- tenders -----------------------------------------------------------------------------------

    def _on_tender(self, event: TenderSeen, now: float) -> list[BidderOutput]:
        tender = event.tender
        before = self._promises.get(tender.id)
        reasons = self._reasons_against(event, before)
        if reasons:
            return [NoBid(tender.id, tuple(reasons))]
        released: list[BidderOutput] = []
        if before is not None:  # the owner of a new round has forgotten our bid of the last
            released = [self._withdraw(tender.id, "another round")]
        count = self._promisable(tender)
        if count == 0:
            return [*released, NoBid(tender.id, (f"not enough is free: {self.free}",))]
        return [*released, self._promise(event, count, now)]

    def _reasons_against(self, event: TenderSeen, before: _Promise | None) -> list[str]:
        tender = event.tender
        if tender.id in self._deploying:
            return ["this machine deploys for the tender already"]
        if before is not None and before.tender.owner != tender.owner:
            return ["the tender's id is in use by another owner"]
        if before is not None and before.tender.round >= tender.round:
            return ["this machine has bid already"]
        if before is None and len(self._promises) >= self._config.max_open:
            return [f"{self._config.max_open} bids are open"]
        if not in_sample(tender.id, self._facts.peer, tender.bid_sample, event.fabric_size, tender.round):
            return ["not in the sample"]
        return eligible(tender.requirements, self._facts)

    def _promisable(self, tender: Tender) -> int:
        """Replicas to promise: half of what fits in the first round, for other tenders are under way; later
        all.
        """
        fits = slots(tender.requirements, self.free, self._facts.capacity.pods)
        share = fits if tender.round > 1 else (fits + 1) // 2
        return min(share, self._config.max_slots)

    def _promise(self, event: TenderSeen, count: int, now: float) -> MakeBid:
        tender = event.tender
        worth = score(tender.requirements, self.free, self._facts.capacity, event.readings)
        promise = _Promise(tender, count, now + self._config.award_wait_s)
        self._promises[tender.id] = promise
        self._reserved += promise.reserved
        return MakeBid(tender.id, tender.owner, tender.round, worth, count)

    def _withdraw(self, tender_id: UUID, reason: str) -> Release:
        self._reserved -= self._promises.pop(tender_id).reserved
        return Release(tender_id, reason)

    def _on_owner_gone(self, peer: PeerId) -> list[BidderOutput]:
        gone = [p.tender.id for p in self._promises.values() if p.tender.owner == peer]
        return [self._withdraw(tender_id, "the owner is gone") for tender_id in gone]

    # -- awards ------------------------------------------------------------------------------------

    def _on_award(self, award: Award, now: float) -> list[BidderOutput]:
        key = (award.tender_id, award.nonce)
        if key in self._obeyed:
            return [AwardRepeated(award)]
        promise = self._promises.get(award.tender_id)
        reason = self._reason_to_refuse(award, promise)
        if reason is not None or promise is None:
            return [RefuseAward(award.tender_id, reason or "award.no-bid")]
        self._withdraw(award.tender_id, "awarded")
        taken = needs(promise.tender.requirements) * award.replicas
        self._deploying[award.tender_id] = taken
        self._reserved += taken
        self._obeyed[key] = now + self._config.obeyed_memory_s
        return [Deploy(award)]

    def _reason_to_refuse(self, award: Award, promise: _Promise | None) -> str | None:
        """Invariant 6 of the architecture: only what we bid for, to whom we bid, and no more than we
        promised.
        """
        if promise is None:
            return "award.twice" if award.tender_id in self._deploying else "award.no-bid"
        checks = (
            (award.owner_identity == promise.tender.owner, "award.not-the-owner"),
            (award.winner == self._facts.peer, "award.not-for-us"),
            (award.manifest_digest == promise.tender.manifest_digest, "award.other-manifest"),
            (award.replicas <= promise.slots, "award.too-many"),
            (len(self._obeyed) < self._config.max_open, "award.full"),
        )
        return next((reason for fine, reason in checks if not fine), None)

    def _settle(self, tender_id: UUID) -> Capacity:
        taken = self._deploying.pop(tender_id)
        self._reserved -= taken
        return taken
