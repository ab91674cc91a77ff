"""The machine plane's messages as this machine writes them: filled in, stamped and signed."""

from collections.abc import Callable, Mapping
from typing import Protocol
from uuid import UUID

from attrs import frozen

from magik_proto.awards import Delivery, digest_of, seal_objects, seal_workload
from magik_proto.bidder import MakeBid
from magik_proto.identity import Identity, PeerId
from magik_proto.messages import Award, Bid, Event, EventType, Requirements, Tender
from magik_proto.records import Workload
from magik_proto.signing import new_nonce, sign

_REASON_MAX = 512  # characters of an event's reason; longer ones are cut


class Founding(Protocol):
    """The one mark of a workload that an award of its ordinal 0 may carry."""

    def take(self) -> bool:
        """Whether it is still there; it is gone then."""
        ...

    def give_back(self) -> None:
        """It was certainly not used."""
        ...


@frozen
class Job:
    """What is to be placed: a manifest's record, what one replica needs, how many, and where replicas run already."""

    workload: Workload
    requirements: Requirements
    replicas: int
    taken: Mapping[PeerId, int]
    ordinals: tuple[int, ...] = ()  # of a StatefulSet's replicas, one for each
    objects: tuple[Workload, ...] = ()  # the records that the pods refer to
    priority: int = 0
    preemptible: bool = False
    founding: Founding | None = None


@frozen
class Writer:
    """Signs with ``identity`` at the time that ``wall`` gives (ms since the epoch).

    ``member`` gives this machine's membership where tenders have to carry it.
    """

    identity: Identity
    wall: Callable[[], int]
    member: Callable[[], bytes | None]

    def tender(self, tender_id: UUID, job: Job, round: int, sample: int) -> Tender:
        """One round of a tender for a job."""
        tender = Tender(
            id=tender_id,
            owner=self.identity.peer_id,
            manifest_digest=job.workload.digest,
            qos_preemptible=job.preemptible,
            priority=job.priority,
            requirements=job.requirements,
            bid_sample=sample,
            round=round,
            member=self.member(),
            timestamp=self.wall(),
            nonce=new_nonce(),
        )
        return sign(tender, self.identity)

    def bid(self, offer: MakeBid, sealing_key: bytes) -> Bid:
        """What the bidder decided to offer; the award is to be sealed to ``sealing_key``."""
        bid = Bid(
            tender_id=offer.tender_id,
            node_id=self.identity.peer_id,
            score=offer.score.total,
            resource_fit_score=offer.score.resource_fit,
            network_locality_score=offer.score.network_locality,
            slots=offer.slots,
            sealing_key=sealing_key,
            timestamp=self.wall(),
            nonce=new_nonce(),
        )
        return sign(bid, self.identity)

    def award(self, bid: Bid, job: Job, replicas: int, ordinals: tuple[int, ...]) -> Delivery:
        """Raises RemoteProtocolError where nothing can be sealed to the bid's key."""
        workload = job.workload
        sealed = seal_workload(workload, bid.sealing_key)
        award = Award(
            tender_id=bid.tender_id,
            owner_identity=self.identity.peer_id,
            owner_pubkey=self.identity.peer_id.raw,
            winner=bid.node_id,
            resource=workload.resource,
            uid=workload.uid,
            generation=workload.generation,
            replicas=replicas,
            ordinals=tuple(ordinals),
            manifest_digest=workload.digest,
            sealed_digest=digest_of(sealed),
            timestamp=self.wall(),
            nonce=new_nonce(),
        )
        return Delivery(
            sign(award, self.identity),
            sealed,
            seal_objects(job.objects, bid.sealing_key),
            founder=0 in ordinals and job.founding is not None and job.founding.take(),
        )

    def event(self, award: Award, kind: EventType, reason: str, pods: tuple[str, ...]) -> Event:
        """What became of an award. Characters that nobody can print are blanked in ``reason``."""
        event = Event(
            tender_id=award.tender_id,
            node_id=self.identity.peer_id,
            event_type=kind,
            reason="".join(c if c.isprintable() else " " for c in reason)[:_REASON_MAX],
            pods=pods,
            timestamp=self.wall(),
            nonce=new_nonce(),
        )
        return sign(event, self.identity)
