"""The I/O around auctions: tenders and bids on the wire, signed, checked for freshness, and handed to the machines.

What decides is in `magik_proto.auction` (owner) and `magik_proto.bidder`. Here are the mesh's handlers, the timers and one
task per auction. Whatever comes from a peer is checked in this order: well-formed, sent by whom it names (calls; gossip is
passed on by others), signed by that machine, its role, fresh and not seen before. The first check that fails answers the
peer and is logged, and nothing else happens; so nobody can use up another machine's share of the replay window.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar
from uuid import UUID, uuid4

import structlog
import trio

from machineplane.scheduling.letters import Founding, Job, Writer
from magik_mesh import Accept, Call, CallRefused, Judgement, MeshError, Node, RpcFailed, Verdict
from magik_proto import auction as a
from magik_proto import bidder as b
from magik_proto.awards import Delivery, open_award, open_objects
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import Identity, PeerId, SealingKey
from magik_proto.messages import (
    FABRIC_TOPIC,
    Award,
    Bid,
    Disposal,
    Event,
    EventType,
    Tender,
    decode_as,
    decode_message,
    encode_message,
)
from magik_proto.records import Workload
from magik_proto.replay import ReplayFilter
from magik_proto.rpc import AWARD, BID, EVENT
from magik_proto.signing import verify

DECLINE = "/magik/decline/1.0.0"

CALL_TIMEOUT_S = 5.0  # as the auction's award time-out: an answer later than that is of no use
# Rules that are the same on every machine: whoever passes such a message on has not looked at it. Times, roles and
# memberships honest machines may judge differently.
_BLAMED = ("codec.", "message.", "signature.")
INBOX = 256  # events of one auction waiting to be taken in; at the limit the peers' calls wait

Checked = Tender | Bid | Award | Event | Disposal
M = TypeVar("M", Bid, Event)
Deploy = Callable[[Delivery, Workload, bytes, tuple[Workload, ...]], Awaitable[list[str]]]


class Market:
    """This machine as an owner of tenders and as a bidder for those of others."""

    def __init__(
        self,
        *,
        node: Node,
        identity: Identity,
        sealing_key: SealingKey,
        bidder: b.Bidder,
        replay: ReplayFilter,
        wall: Callable[[], int],
        deploy: Deploy,
        disposed: Callable[[Disposal], None],
        nursery: trio.Nursery,
    ) -> None:
        self._node = node
        self._identity = identity
        self._sealing_key = sealing_key
        self._bidder = bidder
        self._replay = replay
        self._wall = wall
        self._writer = Writer(identity, wall, lambda: node.member_to_show)
        self._deploy = deploy
        self._disposed = disposed
        self._nursery = nursery
        self._auctions: dict[UUID, trio.MemorySendChannel[a.AuctionEvent]] = {}
        self._rounds: dict[UUID, int] = {}  # of the auctions here
        self._promised_to: dict[UUID, tuple[PeerId, int]] = {}  # to whom, and in which round
        self._founders: dict[UUID, tuple[PeerId, Founding]] = {}  # who was awarded the founder, by tender
        self._why_not: dict[UUID, tuple[str, ...]] = {}
        self._bidder_moved = trio.Event()
        self._log = structlog.get_logger(room="scheduling")
        node.handle(BID, self._on_bid)
        node.handle(AWARD, self._on_award)
        node.handle(EVENT, self._on_event)
        node.handle(DECLINE, self._on_decline)
        node.subscribe(FABRIC_TOPIC, self._on_gossip)

    # -- the owner's side

    async def place(self, job: Job) -> a.Finished:
        """Hold one auction and return when every replica is placed or given up."""
        tender_id = uuid4()
        auction = a.Auction(
            tender_id,
            job.replicas,
            ordinals=job.ordinals,
            taken=job.taken,
            expected_bidders=self._node.size_estimate(),
        )
        send, inbox = trio.open_memory_channel[a.AuctionEvent](INBOX)
        self._auctions[tender_id] = send
        try:
            with inbox:  # closed at the end: who still waits to put something in is let go
                return await self._hold(auction, inbox, job)
        finally:
            del self._auctions[tender_id]
            self._why_not.pop(tender_id, None)
            self._rounds.pop(tender_id, None)
            self._founders.pop(tender_id, None)

    async def _hold(
        self, auction: a.Auction, inbox: trio.MemoryReceiveChannel[a.AuctionEvent], job: Job
    ) -> a.Finished:
        began = trio.current_time()
        awarded: float | None = None
        outputs = auction.receive(a.Start(), began)
        while True:
            for output in outputs:
                if isinstance(output, a.SendAward) and awarded is None:
                    awarded = trio.current_time()
                if isinstance(output, a.Finished):
                    self._log_auction(job, output, began, awarded)
                    return self._explain(auction.tender_id, output)
                await self._carry_out(output, auction.tender_id, job)
            event: a.AuctionEvent | None = None
            deadline = auction.next_timeout()
            with trio.move_on_at(deadline if deadline is not None else trio.current_time()):
                event = await inbox.receive()
            now = trio.current_time()
            outputs = auction.poll(now) if event is None else auction.receive(event, now)

    def _log_auction(self, job: Job, finished: a.Finished, began: float, awarded: float | None) -> None:
        self._log.info(
            "auction",
            resource=str(job.workload.resource),
            placed=sum(finished.placed.values()),
            unplaced=finished.unplaced,
            tender_to_award_ms=None if awarded is None else round((awarded - began) * 1000, 1),
            total_ms=round((trio.current_time() - began) * 1000, 1),
        )

    def _explain(self, tender_id: UUID, finished: a.Finished) -> a.Finished:
        """Where no machine made a bid, this machine's own reasons are the best that can be told."""
        if not finished.unplaced or finished.reasons:
            return finished
        own = self._why_not.get(tender_id, ("not enough room here",))
        reasons = ("no machine made a bid", f"this machine: {', '.join(own)}")
        return a.Finished(finished.placed, finished.unplaced, reasons)

    async def _carry_out(self, output: a.AuctionOutput, tender_id: UUID, job: Job) -> None:
        match output:
            case a.PublishTender(round, sample):
                await self._publish_tender(tender_id, job, round, sample)
            case a.SendAward():
                self._start_award(output, job)
            case a.DeclineBid(node=node):
                self._nursery.start_soon(self._decline, node, tender_id, self._rounds.get(tender_id, 0))
            case a.Surplus(node, pods):
                self._log.info("surplus", node=str(node), pods=pods)  # the workload's actor retires them

    async def _publish_tender(self, tender_id: UUID, job: Job, round: int, sample: int) -> None:
        self._rounds[tender_id] = round
        tender = self._writer.tender(tender_id, job, round, sample)
        self._log.debug("tender", id=str(tender_id), resource=str(job.workload.resource), round=round)
        await self._node.publish(FABRIC_TOPIC, encode_message(tender))
        self._consider(tender)

    def _start_award(self, output: a.SendAward, job: Job) -> None:
        bid = output.bid
        try:
            delivery = self._writer.award(bid, job, output.replicas, output.ordinals)
        except RemoteProtocolError as error:  # a sealing key to which nothing can be sealed
            refused = a.AwardRefused(bid.node_id, str(error))
            self._nursery.start_soon(self._tell, bid.tender_id, refused)
        else:
            if delivery.founder and job.founding is not None:
                self._founders[bid.tender_id] = (bid.node_id, job.founding)
            self._nursery.start_soon(self._send_award, delivery, job)

    async def _send_award(self, delivery: Delivery, job: Job) -> None:
        winner = delivery.award.winner
        try:
            if winner == self._identity.peer_id:
                self._obey(delivery)
            else:
                await self._node.call(winner, AWARD, delivery.to_body(), timeout=CALL_TIMEOUT_S)
            event: a.AuctionEvent = a.AwardAccepted(winner)
        except (CallRefused, RpcFailed) as error:
            founder = self._founders.pop(delivery.award.tender_id, None) if delivery.founder else None
            if founder is not None and error.code.startswith("award."):
                founder[1].give_back()  # the bidder has refused, so nothing was begun
            event = a.AwardRefused(winner, str(error))
        except MeshError as error:
            event = a.AwardUnreachable(winner, str(error))
        await self._tell(delivery.award.tender_id, event)

    async def _decline(self, node: PeerId, tender_id: UUID, round: int) -> None:
        if node == self._identity.peer_id:
            self._declined(node, tender_id, round)
            return
        try:
            body = {"tender": tender_id.bytes, "round": round}
            await self._node.call(node, DECLINE, body, timeout=CALL_TIMEOUT_S)
        except MeshError as error:
            self._log.debug("decline-lost", node=str(node), error=str(error))  # it times out by itself

    async def _tell(self, tender_id: UUID, event: a.AuctionEvent) -> None:
        """Hand an event to its auction; one that is over needs none."""
        inbox = self._auctions.get(tender_id)
        if inbox is not None:
            with suppress(trio.BrokenResourceError):
                await inbox.send(event)

    def peer_gone(self, peer: PeerId) -> None:
        """A machine left the fabric: no auction waits for it, no promise to it is kept."""
        for inbox in self._auctions.values():
            try:
                inbox.send_nowait(a.BidderGone(peer))
            except trio.WouldBlock:
                self._log.warning("auction-busy", peer=str(peer))  # its award times out instead
        self._bidder_takes(b.OwnerGone(peer))

    async def dispose(self, disposal: Disposal) -> None:
        """Tell the fabric that a workload is deleted. ``disposal`` is signed here."""
        await self._node.publish(FABRIC_TOPIC, encode_message(disposal))

    async def _take_event(self, event: Event) -> None:
        founder = self._founders.get(event.tender_id)
        if event.event_type is EventType.Cancelled and founder is not None and founder[0] == event.node_id:
            del self._founders[event.tender_id]
            founder[1].give_back()  # nothing of that award ever ran
        await self._tell(event.tender_id, a.EventReceived(event))

    # -- the bidder's side

    async def run(self) -> None:
        """The bidder's timer; until cancelled."""
        while True:
            moved = self._bidder_moved = trio.Event()
            deadline = self._bidder.next_timeout()
            with trio.move_on_at(deadline if deadline is not None else float("inf")):
                await moved.wait()
            self._after(self._bidder.poll(trio.current_time()))

    def capacity_changed(self, event: b.CapacityChanged | b.FactsChanged) -> None:
        """What runs here, or what this machine is, has changed."""
        self._bidder_takes(event)

    def _consider(self, tender: Tender) -> None:
        self._bidder_takes(b.TenderSeen(tender, self._node.size_estimate()))

    def _bidder_takes(self, event: b.BidderEvent) -> list[b.BidderOutput]:
        outputs = self._bidder.receive(event, trio.current_time())
        self._after(outputs)
        self._bidder_moved.set()
        return outputs

    def _after(self, outputs: Iterable[b.BidderOutput]) -> None:
        for output in outputs:
            match output:
                case b.MakeBid():
                    self._promised_to[output.tender_id] = (output.owner, output.round)
                    self._nursery.start_soon(self._send_bid, output)
                case b.NoBid(tender_id, reasons):
                    if tender_id in self._auctions:
                        self._why_not[tender_id] = reasons
                    self._log.debug("no-bid", tender=str(tender_id), reasons=reasons)
                case b.Release(tender_id, reason):
                    self._promised_to.pop(tender_id, None)
                    self._log.debug("released", tender=str(tender_id), reason=reason)

    async def _send_bid(self, offer: b.MakeBid) -> None:
        bid = self._writer.bid(offer, self._sealing_key.public)
        if offer.owner == self._identity.peer_id:
            await self._tell(offer.tender_id, a.BidReceived(bid))
            return
        try:
            await self._node.call(offer.owner, BID, encode_message(bid), timeout=CALL_TIMEOUT_S)
        except MeshError as error:
            self._log.info("bid-lost", owner=str(offer.owner), error=str(error))

    def _obey(self, delivery: Delivery) -> None:
        """Start to deploy what we bid for; raises CallRefused with the reason not to."""
        award = delivery.award
        try:
            workload = open_award(delivery, self._sealing_key)
            objects = open_objects(delivery, self._sealing_key)
        except RemoteProtocolError as error:
            raise CallRefused(error.rule, error.detail) from error
        for output in self._bidder_takes(b.AwardReceived(award)):
            match output:
                case b.Deploy():
                    self._promised_to.pop(award.tender_id, None)
                    self._nursery.start_soon(self._carry_award, delivery, workload, objects)
                    return
                case b.AwardRepeated():
                    return
                case b.RefuseAward(reason=reason):
                    raise CallRefused(reason)
        raise CallRefused("award.no-bid")

    async def _carry_award(
        self, delivery: Delivery, workload: Workload, objects: tuple[Workload, ...]
    ) -> None:
        """Deploy and report; whatever goes wrong with the deployment is the event's reason."""
        award = delivery.award
        try:
            pods = await self._deploy(delivery, workload, encode_message(award), objects)
        except DeployFailed as error:
            self._bidder_takes(b.DeployFailed(award.tender_id, str(error)))
            kind = EventType.Failed if error.begun else EventType.Cancelled
            await self._report(award, kind, str(error), ())
        else:
            self._bidder_takes(b.Deployed(award.tender_id))
            await self._report(award, EventType.Deployed, "", tuple(pods))

    async def _report(self, award: Award, kind: EventType, reason: str, pods: tuple[str, ...]) -> None:
        event = self._writer.event(award, kind, reason, pods)
        if award.owner_identity == self._identity.peer_id:
            await self._take_event(event)
            return
        try:
            await self._node.call(award.owner_identity, EVENT, encode_message(event), timeout=CALL_TIMEOUT_S)
        except MeshError as error:
            self._log.info("event-lost", owner=str(award.owner_identity), error=str(error))

    # -- what comes from peers

    def _checked(self, cls: type[M], call: Call, role: str) -> M:
        """The call's message if it is the caller's own, well-formed, signed, allowed and fresh; else CallRefused."""
        with self._refusing(call):
            message = decode_as(cls, call.body if isinstance(call.body, bytes) else b"")
            self._check_sent(message, call, role)
        return message

    @contextmanager
    def _refusing(self, call: Call) -> Iterator[None]:
        """What is found wrong within is the answer to the call."""
        try:
            yield
        except RemoteProtocolError as error:
            self._log.info("call-refused", peer=str(call.peer), rule=error.rule, detail=error.detail)
            raise CallRefused(error.rule, error.detail) from error

    def _check_sent(self, message: Checked, call: Call, role: str) -> None:
        if message.signer != call.peer:
            detail = f"signed by {message.signer}, sent by {call.peer}"
            raise RemoteProtocolError("message.not-the-sender", detail)
        self._check(message, call.roles, role)

    def _check(self, message: Checked, roles: frozenset[str], role: str) -> None:
        verify(message)
        if role not in roles:
            raise RemoteProtocolError("membership.role", f"{message.signer} has no role {role!r}")
        self._replay.check(message.signer, message.replay_id, message.nonce, message.timestamp, self._wall())

    async def _on_bid(self, call: Call) -> object:
        bid = self._checked(Bid, call, "run")
        await self._tell(bid.tender_id, a.BidReceived(bid))
        return {}

    async def _on_award(self, call: Call) -> object:
        with self._refusing(call):
            delivery = Delivery.from_body(call.body)
            self._check_sent(delivery.award, call, "submit")
        self._obey(delivery)
        return {}

    async def _on_event(self, call: Call) -> object:
        event = self._checked(Event, call, "run")
        await self._take_event(event)
        return {}

    async def _on_decline(self, call: Call) -> object:
        match call.body:
            case {"tender": bytes(tender), "round": int(round)} if len(tender) == 16:
                self._declined(call.peer, UUID(bytes=tender), round)
                return {}
        raise CallRefused("decline.body", "a tender's id of 16 bytes and a round are expected")

    def _declined(self, owner: PeerId, tender_id: UUID, round: int) -> None:
        """Give back what was promised in that round: a decline may come after the bid of the next one."""
        if self._promised_to.get(tender_id) == (owner, round):
            self._bidder_takes(b.BidDeclined(tender_id))

    async def _on_gossip(self, sender: PeerId, payload: bytes) -> Judgement:
        try:
            message = decode_message(payload)
            if not isinstance(message, Tender | Disposal):
                return Verdict.REJECT
            roles = self._node.roles(message.signer, message.member)
            if roles is None:
                return Verdict.IGNORE  # its membership has not reached us: who passed it on is not to blame
            self._check(message, roles, "submit")
        except RemoteProtocolError as error:
            self._log.info("gossip-refused", sender=str(sender), rule=error.rule, detail=error.detail)
            return Verdict.REJECT if error.rule.startswith(_BLAMED) else Verdict.IGNORE
        match message:
            case Tender():
                self._consider(message)
            case Disposal():
                self._disposed(message)
        return Accept(message.signer)


class DeployFailed(Exception):
    """Raised by the ``deploy`` that the market is given: the award could not be carried out, and why.

    ``begun``: whether anything of it ever ran.
    """

    def __init__(self, text: str, *, begun: bool = True) -> None:
        super().__init__(text)
        self.begun = begun
