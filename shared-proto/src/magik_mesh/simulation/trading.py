"""The market's part of a simulated machine: its bidder, and the auctions of its own tenders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import attrs

from magik_mesh.simulation.says import Answered, Declined
from magik_proto import auction as owner
from magik_proto import bidder as b
from magik_proto.identity import PeerId
from magik_proto.messages import Award, Bid, Event, EventType, Tender
from magik_proto.placement import Capacity, MachineFacts
from magik_proto.testing import builders
from magik_proto.testing.network import Send

SIZE = Capacity(64_000, 256 * builders.GIB, 1000 * builders.GIB, 110)
_RUNTIMES = frozenset({"crun"})


class Trading:
    """Bids, awards and events of one machine. Deployments take no time: they are not what is measured.

    `send(to, message, now)` dials where it must; `publish(payload, now)` gossips; `tender(id, own, round,
    sample)` gives a signed, encoded tender.
    """

    __slots__ = ("_auctions", "_bidder", "_own", "_publish", "_send", "_tender", "bids", "finished")

    def __init__(
        self,
        own: PeerId,
        *,
        send: Callable[[PeerId, Any, float], list[Send]],
        publish: Callable[[bytes, float], list[Send]],
        tender: Callable[[UUID, PeerId, int, int], bytes],
    ) -> None:
        self._own = own
        self._send, self._publish, self._tender = send, publish, tender
        self._bidder = b.Bidder(MachineFacts(own, SIZE, "amd64", _RUNTIMES))
        self._auctions: dict[UUID, owner.Auction] = {}
        self.bids: dict[UUID, int] = {}  # of own tenders: how many came
        self.finished: dict[UUID, owner.Finished] = {}

    def next_timeout(self) -> float | None:
        """When to call `poll`."""
        promise = self._bidder.next_timeout()
        if not self._auctions:
            return promise
        times = [promise, *(auction.next_timeout() for auction in self._auctions.values())]
        return min((time for time in times if time is not None), default=None)

    def poll(self, now: float) -> list[Send]:
        """Do what is due."""
        self._bidder.poll(now)
        sends: list[Send] = []
        for tender_id, auction in self._auctions.items():
            sends += self._auction(tender_id, auction.poll(now), now)
        return sends

    def receive(self, source: PeerId, message: Any, now: float) -> list[Send]:
        """Take a message of the market in."""
        match message:
            case Bid():
                self.bids[message.tender_id] = self.bids.get(message.tender_id, 0) + 1
                return self._tell(message.tender_id, owner.BidReceived(message), now)
            case Award():
                return self._bidder_outputs(self._bidder.receive(b.AwardReceived(message), now), source, now)
            case Declined(tender_id):
                return self._bidder_outputs(self._bidder.receive(b.BidDeclined(tender_id), now), source, now)
            case Answered(tender_id, reason):
                said = owner.AwardRefused(source, reason) if reason else owner.AwardAccepted(source)
                return self._tell(tender_id, said, now)
            case Event():
                return self._tell(message.tender_id, owner.EventReceived(message), now)
        return []

    def tendered(self, tender: Tender, fabric_size: int, now: float) -> list[Send]:
        """A tender was delivered."""
        outputs = self._bidder.receive(b.TenderSeen(tender, fabric_size), now)
        return self._bidder_outputs(outputs, tender.owner, now)

    def unreachable(self, peer: PeerId, message: Any, now: float) -> list[Send]:
        """A message could not be sent."""
        if isinstance(message, Award):
            return self._tell(message.tender_id, owner.AwardUnreachable(peer, "no connection"), now)
        return []

    def place(self, tender_id: UUID, replicas: int, now: float) -> list[Send]:
        """Have so many replicas of something placed."""
        self._auctions[tender_id] = owner.Auction(tender_id, replicas)
        self.bids[tender_id] = 0
        return self._tell(tender_id, owner.Start(), now)

    # -- bidding

    def _bidder_outputs(self, outputs: list[b.BidderOutput], other: PeerId, now: float) -> list[Send]:
        sends: list[Send] = []
        for output in outputs:
            match output:
                case b.MakeBid(tender_id, to, number, score, slots):
                    bid = builders.bid(0, score.total, slots, id=tender_id, nonce=number)
                    sends += self._send(to, attrs.evolve(bid, node_id=self._own), now)
                case b.RefuseAward(tender_id, reason):
                    sends += self._send(other, Answered(tender_id, reason), now)
                case b.Deploy(award) | b.AwardRepeated(award):
                    sends += self._deploy(award, other, now)
        return sends

    def _deploy(self, award: Award, other: PeerId, now: float) -> list[Send]:
        if self._bidder.state(award.tender_id) is b.TenderState.DEPLOYING:
            self._bidder.receive(b.Deployed(award.tender_id), now)
        event = attrs.evolve(builders.event(0, EventType.Deployed, id=award.tender_id), node_id=self._own)
        return self._send(other, Answered(award.tender_id, ""), now) + self._send(other, event, now)

    # -- owning

    def _tell(self, tender_id: UUID, event: owner.AuctionEvent, now: float) -> list[Send]:
        auction = self._auctions.get(tender_id)
        return [] if auction is None else self._auction(tender_id, auction.receive(event, now), now)

    def _auction(self, tender_id: UUID, outputs: list[owner.AuctionOutput], now: float) -> list[Send]:
        sends: list[Send] = []
        for output in outputs:
            match output:
                case owner.PublishTender(number, sample):
                    sends += self._publish(self._tender(tender_id, self._own, number, sample), now)
                case owner.SendAward(bid, replicas, ordinals):
                    sends += self._send(
                        bid.node_id, self._award(tender_id, bid.node_id, replicas, ordinals), now
                    )
                case owner.DeclineBid(node):
                    sends += self._send(node, Declined(tender_id), now)
                case owner.Finished():
                    self.finished[tender_id] = output
        return sends

    def _award(self, tender_id: UUID, winner: PeerId, replicas: int, ordinals: tuple[int, ...]) -> Award:
        award = builders.award(0, 0, replicas, id=tender_id, ordinals=ordinals)
        return attrs.evolve(award, owner_identity=self._own, owner_pubkey=self._own.raw, winner=winner)
