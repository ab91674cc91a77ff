"""A hundred machines with gossip and auctions on a bad network, by the very code of the daemons."""

from collections.abc import Callable
from uuid import UUID

import attrs
import pytest

from magik_proto import auction as owner
from magik_proto import bidder as b
from magik_proto import gossip as g
from magik_proto.errors import ProtocolError
from magik_proto.identity import Identity, PeerId
from magik_proto.messages import FABRIC_TOPIC, Award, Bid, Event, EventType, Tender, decode_as, encode_message
from magik_proto.placement import Capacity, MachineFacts
from magik_proto.signing import sign, verify
from magik_proto.testing.builders import DIGEST, GIB, requirements
from magik_proto.testing.builders import award as make_award
from magik_proto.testing.network import Conditions, Network, Send
from magik_proto.testing.seeded import SeededRandom

NODES, LINKS = 100, 8
_LOSSY = {"publish", "ihave", "iwant"}
IDENTITIES = [Identity.from_seed(number.to_bytes(32, "big")) for number in range(NODES)]


@attrs.frozen
class Remove:
    """The owner takes down pods that are not wanted."""

    pods: tuple[str, ...]


@attrs.frozen
class Answer:
    tender_id: UUID
    accepted: bool
    reason: str = ""


class FabricNode:
    """What a machine's daemon does around the machines, in little: gossip, bids, awards, deployments that take time."""

    def __init__(self, identity: Identity, links: list[PeerId], rng: SeededRandom) -> None:
        self.identity, self.own, self.links, self.rng = identity, identity.peer_id, links, rng
        facts = MachineFacts(self.own, Capacity(4000, 8 * GIB, GIB, 8), "amd64", frozenset({"crun"}))
        self.gossip = g.Gossip(self.own, rng)
        self.bidder = b.Bidder(facts)
        self.auctions: dict[UUID, owner.Auction] = {}
        self.finished: dict[UUID, owner.Finished] = {}
        self.tenders: dict[UUID, Tender] = {}
        self.pods: dict[str, None] = {}
        self.deploying: list[tuple[float, Award, bool]] = []
        self.seen: dict[tuple[UUID, int], None] = {}
        self.bids: dict[UUID, Bid] = {}
        self.awards: list[tuple[Bid | None, Award]] = []

    # -- the actor ---------------------------------------------------------------------------------------------------

    def start(self, now: float) -> list[Send]:
        sends = self._gossip(g.Subscribe(FABRIC_TOPIC), now)
        for link in self.links:
            sends += self._gossip(g.PeerConnected(link), now)
        return sends

    def next_timeout(self) -> float | None:
        machines = [self.gossip, self.bidder, *self.auctions.values()]
        times = [t for m in machines if (t := m.next_timeout()) is not None]  # type: ignore[attr-defined]
        return min([*times, *(when for when, _, _ in self.deploying)], default=None)

    def poll(self, now: float) -> list[Send]:
        sends = self._gossip_outputs(self.gossip.poll(now), now) + self._bidder(self.bidder.poll(now), now)
        for tender_id in list(self.auctions):
            sends += self._auction(tender_id, self.auctions[tender_id].poll(now), now)
        due = [entry for entry in self.deploying if entry[0] <= now]
        self.deploying = [entry for entry in self.deploying if entry[0] > now]
        for _, award, fine in due:
            sends += self._deployed(award, fine, now)
        return sends

    def receive(self, source: PeerId, message: object, now: float) -> list[Send]:
        match message:
            case dict():
                return self._gossip(g.FrameReceived(source, message), now)
            case Bid():
                return self._tell(message.tender_id, owner.BidReceived(message), now)
            case Award():
                self.awards.append((self.bids.get(message.tender_id), message))
                return self._bidder(self.bidder.receive(b.AwardReceived(message), now), now)
            case Answer(tender_id, accepted, reason):
                said = owner.AwardAccepted(source) if accepted else owner.AwardRefused(source, reason)
                return self._tell(tender_id, said, now)
            case Event():
                return self._tell(message.tender_id, owner.EventReceived(message), now)
            case Remove(pods):
                for pod in pods:
                    self.pods.pop(pod, None)
                    self.bidder.receive(b.CapacityChanged(self._used()), now)
            case UUID():
                return self._bidder(self.bidder.receive(b.BidDeclined(message), now), now)
        return []

    # -- gossip ------------------------------------------------------------------------------------------------------

    def _gossip(self, event: g.GossipEvent, now: float) -> list[Send]:
        return self._gossip_outputs(self.gossip.receive(event, now), now)

    def _gossip_outputs(self, outputs: list[g.GossipOutput], now: float) -> list[Send]:
        sends: list[Send] = []
        for output in outputs:
            match output:
                case g.SendFrame(peer, frame):
                    sends.append(Send(peer, frame, reliable=not _LOSSY & set(frame)))
                case g.Validate(key, _, payload, _):
                    sends += self._gossip(g.Validated(key, self._verdict(payload)), now)
                case g.Deliver(_, payload, _):
                    sends += self._tendered(decode_as(Tender, payload), now)
        return sends

    def _verdict(self, payload: bytes) -> g.Verdict:
        try:
            verify(decode_as(Tender, payload))
        except ProtocolError:
            return g.Verdict.REJECT
        return g.Verdict.ACCEPT

    # -- bidding -----------------------------------------------------------------------------------------------------

    def _tendered(self, tender: Tender, now: float) -> list[Send]:
        self.seen[tender.id, tender.round] = None
        return self._bidder(self.bidder.receive(b.TenderSeen(tender, NODES), now), now)

    def _bidder(self, outputs: list[b.BidderOutput], now: float) -> list[Send]:
        sends: list[Send] = []
        for output in outputs:
            match output:
                case b.MakeBid(tender_id, to, _, score, slots):
                    total, fit, local = attrs.astuple(score)
                    bid = Bid(
                        tender_id=tender_id, node_id=self.own, score=total, resource_fit_score=fit,
                        network_locality_score=local, slots=slots, sealing_key=DIGEST, timestamp=1, nonce=1,
                    )  # fmt: skip
                    self.bids[tender_id] = bid
                    sends.append(Send(to, bid))
                case b.Deploy(award):
                    slow = self.rng.random() < 0.1
                    when = now + self.rng.random() * (20 if slow else 1)
                    self.deploying.append((when, award, self.rng.random() > 0.1))
                    sends.append(Send(award.owner_identity, Answer(award.tender_id, True)))
                case b.AwardRepeated(award):
                    sends.append(Send(award.owner_identity, Answer(award.tender_id, True)))
                case b.RefuseAward(tender_id, reason):
                    to = self.awards[-1][1].owner_identity
                    sends.append(Send(to, Answer(tender_id, False, reason)))
        return sends

    def _deployed(self, award: Award, fine: bool, now: float) -> list[Send]:
        ended = b.Deployed(award.tender_id) if fine else b.DeployFailed(award.tender_id, "unlucky")
        self.bidder.receive(ended, now)
        pods = tuple(f"p{self.rng.getrandbits(40):x}" for _ in range(award.replicas)) if fine else ()
        self.pods |= dict.fromkeys(pods)
        kind = EventType.Deployed if fine else EventType.Failed
        event = Event(
            tender_id=award.tender_id, node_id=self.own, event_type=kind, pods=pods, timestamp=1, nonce=1
        )
        return [Send(award.owner_identity, event, reliable=True)]

    def _used(self) -> Capacity:
        return Capacity(500, GIB // 4, 0, 1) * len(self.pods)

    # -- owning ------------------------------------------------------------------------------------------------------

    def place(self, tender_id: UUID, replicas: int, now: float) -> list[Send]:
        auction = self.auctions[tender_id] = owner.Auction(
            tender_id, replicas, config=owner.AuctionConfig(deploy_timeout_s=8.0, max_rounds=12)
        )
        return self._auction(tender_id, auction.receive(owner.Start(), now), now)

    def _tell(self, tender_id: UUID, event: owner.AuctionEvent, now: float) -> list[Send]:
        return self._auction(tender_id, self.auctions[tender_id].receive(event, now), now)

    def _auction(self, tender_id: UUID, outputs: list[owner.AuctionOutput], now: float) -> list[Send]:
        sends: list[Send] = []
        for output in outputs:
            match output:
                case owner.PublishTender(number, sample):
                    sends += self._publish(tender_id, number, sample, now)
                case owner.SendAward(bid, replicas, ordinals):
                    award = make_award(0, 0, replicas, id=tender_id, nonce=self.rng.getrandbits(60))
                    award = attrs.evolve(
                        award, owner_identity=self.own, owner_pubkey=self.own.raw, winner=bid.node_id
                    )
                    sends.append(Send(bid.node_id, attrs.evolve(award, ordinals=ordinals)))
                case owner.DeclineBid(node, _):
                    sends.append(Send(node, tender_id))
                case owner.Surplus(node, pods):
                    sends.append(Send(node, Remove(pods), reliable=True))
                case owner.Finished():
                    assert tender_id not in self.finished
                    self.finished[tender_id] = output
        return sends

    def _publish(self, tender_id: UUID, number: int, sample: int, now: float) -> list[Send]:
        tender = Tender(
            id=tender_id, owner=self.own, manifest_digest=DIGEST, qos_preemptible=False, priority=0,
            requirements=requirements(), bid_sample=sample, round=number, timestamp=1, nonce=number,
        )  # fmt: skip
        payload = encode_message(sign(tender, self.identity))
        return self._gossip(g.Publish(FABRIC_TOPIC, payload), now) + self._tendered(tender, now)


def fabric(seed: int, conditions: Conditions) -> Network[FabricNode]:
    """A ring with random chords: each node knows at least two others, none knows all."""
    network: Network[FabricNode] = Network(seed, conditions)
    links: dict[int, dict[int, None]] = {n: {} for n in range(NODES)}
    for n in range(NODES):
        for other in [(n + 1) % NODES, *(network.rng.getrandbits(20) % NODES for _ in range(LINKS // 2))]:
            if other != n:
                links[n][other] = links[other][n] = None
    for n, identity in enumerate(IDENTITIES):
        network.add(identity.peer_id, _factory(identity, [IDENTITIES[o].peer_id for o in links[n]], seed + n))
    return network


def _factory(identity: Identity, links: list[PeerId], seed: int) -> Callable[[], FabricNode]:
    return lambda: FabricNode(identity, links, SeededRandom(seed))


def nodes(network: Network[FabricNode]) -> list[FabricNode]:
    return [node for i in IDENTITIES if (node := network.actor(i.peer_id)) is not None]


@pytest.mark.parametrize("seed", range(3))
def test_a_tender_reaches_all_under_loss(seed: int) -> None:
    network = fabric(seed, Conditions(loss=0.05, duplication=0.02, jitter_s=0.05))
    tender_id = UUID(int=seed + 1)
    network.act(IDENTITIES[7].peer_id, lambda node, now: node.place(tender_id, 1, now))
    network.run(5.0)
    missed = [node.own for node in nodes(network) if (tender_id, 1) not in node.seen]
    assert not missed, f"seed {network.seed}: {len(missed)} machines missed the tender"


@pytest.mark.parametrize("seed", range(3))
def test_replicas_end_exactly_placed_and_awards_never_exceed_bids(seed: int) -> None:
    network = fabric(1000 + seed, Conditions(loss=0.05, duplication=0.02, jitter_s=0.05))
    jobs = {UUID(int=100 + n): (n, 1 + 7 * n) for n in range(5)}
    network.run(1.0)
    for tender_id, (n, replicas) in jobs.items():
        act = _placing(tender_id, replicas)
        network.act(IDENTITIES[n].peer_id, act)
        network.run(network.now + 0.1)
    network.run(120.0)
    everyone = nodes(network)
    for tender_id, (n, replicas) in jobs.items():
        finished = everyone[n].finished[tender_id]
        assert finished.unplaced == 0, f"seed {network.seed}: {finished}"
        assert sum(finished.placed.values()) == replicas
    running = sum(len(node.pods) for node in everyone)
    assert running == sum(replicas for _, replicas in jobs.values()), f"seed {network.seed}"
    for node in everyone:
        for bid, award in node.awards:
            assert bid is not None, f"seed {network.seed}: an award without a bid"
            assert award.replicas <= bid.slots, f"seed {network.seed}"
        assert node.bidder.reserved == Capacity(), f"seed {network.seed}: something is reserved for ever"
    assert max(len(node.pods) for node in everyone) <= 8


def _placing(tender_id: UUID, replicas: int) -> Callable[[FabricNode, float], list[Send]]:
    return lambda node, now: node.place(tender_id, replicas, now)


def test_the_same_seed_gives_the_same_run() -> None:
    runs = []
    for _ in range(2):
        network = fabric(42, Conditions(loss=0.05, duplication=0.05, jitter_s=0.05))
        network.act(IDENTITIES[3].peer_id, _placing(UUID(int=9), 12))
        network.run(20.0)
        runs.append((network.stats, [sorted(node.pods) for node in nodes(network)]))
    assert runs[0] == runs[1]
