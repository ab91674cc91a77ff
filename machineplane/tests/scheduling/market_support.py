"""Machines with a market each, on the mesh's in-memory network: real nodes, real signatures, a fake clock."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
import trio
from attrs import define, evolve, field

from machineplane.scheduling.letters import Job
from machineplane.scheduling.market import Market
from magik_mesh import Accept, Call, Judgement, Node, NodeConfig, RpcFailed
from magik_mesh.testing import EPOCH_MS, MemoryFabric, config_of, identity_of, memory_fabric, until
from magik_proto.awards import Delivery, digest_of, seal_workload
from magik_proto.bidder import Bidder
from magik_proto.identity import Identity, PeerId, SealingKey
from magik_proto.invites import RootKey
from magik_proto.membership import ALL_ROLES, MembershipPolicy
from magik_proto.messages import (
    FABRIC_TOPIC,
    Award,
    Bid,
    Disposal,
    Requirements,
    ResourceId,
    Tender,
    decode_as,
    decode_message,
    encode_message,
)
from magik_proto.placement import Capacity, MachineFacts
from magik_proto.records import Workload
from magik_proto.replay import ReplayFilter
from magik_proto.rpc import BID, EVENT
from magik_proto.signing import new_nonce, sign

ROOM = Capacity(cpu_millis=1000, memory_bytes=1 << 30, storage_bytes=1 << 30, pods=10)
NEED = Requirements(cpu_millis=100, memory_bytes=1 << 20, storage_bytes=0, runtime="crun")


def wall() -> int:
    """The fake clock as milliseconds since the epoch."""
    return EPOCH_MS + int(trio.current_time() * 1000)


def workload(author: Identity, *, name: str = "web", replicas: int = 1, note: str = "") -> Workload:
    manifest = f'{{"kind":"Deployment","metadata":{{"name":"{name}"}},"note":"{note}"}}'.encode()
    unsigned = Workload(
        resource=ResourceId("default", "Deployment", name),
        uid=uuid4(),
        generation=1,
        replicas=replicas,
        manifest=manifest,
        author=author.peer_id,
        stamp=1,
        timestamp=wall(),
        nonce=new_nonce(),
    )
    return sign(unsigned, author)


def job(author: Identity, replicas: int = 1, **changes: Any) -> Job:
    return evolve(Job(workload(author, replicas=replicas), NEED, replicas, {}), **changes)


@define(eq=False)
class Machine:
    """One machine's market, and what it was made to do."""

    node: Node
    identity: Identity
    sealing_key: SealingKey
    bidder: Bidder
    deployed: list[Award] = field(factory=list)
    objects: list[tuple[Workload, ...]] = field(factory=list)
    disposed: list[Disposal] = field(factory=list)
    founders: list[int] = field(factory=list)
    deploy: Callable[[Award], Awaitable[list[str]]] | None = None
    market: Market = field(init=False)

    @property
    def id(self) -> PeerId:
        return self.node.id

    def open_market(self, nursery: trio.Nursery) -> None:
        self.market = Market(
            node=self.node,
            identity=self.identity,
            sealing_key=self.sealing_key,
            bidder=self.bidder,
            replay=ReplayFilter(EPOCH_MS),
            wall=wall,
            deploy=self._deploy,
            disposed=self.disposed.append,
            nursery=nursery,
        )
        nursery.start_soon(self.market.run)

    async def _deploy(
        self, delivery: Delivery, workload: Workload, receipt: bytes, objects: tuple[Workload, ...]
    ) -> list[str]:
        award = delivery.award
        self.deployed.append(award)
        self.founders += award.ordinals[:1] if delivery.founder else ()
        self.objects.append(objects)
        if self.deploy is not None:
            return await self.deploy(award)
        return [f"{workload.resource.name}-{len(self.deployed)}-{n}" for n in range(award.replicas)]

    @property
    def reserved(self) -> Capacity:
        return self.bidder.reserved


def seeded_sealing_key(number: int) -> SealingKey:
    return SealingKey.from_seed(hashlib.sha256(bytes([number])).digest())


@asynccontextmanager
async def machines(
    size: int, *, room: Capacity = ROOM, **changes: Any
) -> AsyncIterator[tuple[MemoryFabric, list[Machine]]]:
    """Connected machines with open markets."""
    async with memory_fabric(size, **changes) as fabric, trio.open_nursery() as nursery:
        found = []
        for number, node in enumerate(fabric.nodes, start=1):
            machine = machine_on(node, number, room)
            machine.open_market(nursery)
            found.append(machine)
        await fabric.connected()
        await trio.sleep(1)  # the gossip's meshes form
        yield fabric, found
        nursery.cancel_scope.cancel()


def machine_on(node: Node, number: int, room: Capacity = ROOM) -> Machine:
    identity = identity_of(number)
    facts = MachineFacts(identity.peer_id, room, "amd64", frozenset({"crun"}))
    return Machine(node, identity, seeded_sealing_key(number), Bidder(facts))


def tender_of(owner: Identity, work: Workload, **changes: Any) -> Tender:
    tender = Tender(
        id=uuid4(),
        owner=owner.peer_id,
        manifest_digest=work.digest,
        qos_preemptible=False,
        priority=0,
        requirements=NEED,
        bid_sample=1000,
        round=1,
        timestamp=wall(),
        nonce=new_nonce(),
    )
    return sign(evolve(tender, **changes), owner)


def bid_for(tender: Tender, bidder: Identity, key: bytes, **changes: Any) -> Bid:
    bid = Bid(
        tender_id=tender.id,
        node_id=bidder.peer_id,
        score=999_999,
        resource_fit_score=999_999,
        network_locality_score=999_999,
        slots=5,
        sealing_key=key,
        timestamp=wall(),
        nonce=new_nonce(),
    )
    return sign(evolve(bid, **changes), bidder)


def award_of(owner: Identity, winner: Machine, tender: Tender, work: Workload) -> Delivery:
    sealed = seal_workload(work, winner.sealing_key.public)
    award = Award(
        tender_id=tender.id,
        owner_identity=owner.peer_id,
        owner_pubkey=owner.peer_id.raw,
        winner=winner.id,
        resource=work.resource,
        uid=work.uid,
        generation=work.generation,
        replicas=1,
        manifest_digest=work.digest,
        sealed_digest=digest_of(sealed),
        timestamp=wall(),
        nonce=new_nonce(),
    )
    return Delivery(sign(award, owner), sealed)


def changed(delivery: Delivery, owner: Identity, *, sealed: bytes | None = None, **changes: Any) -> Delivery:
    """The delivery with another award, or another box that the award names, signed anew."""
    box = delivery.sealed if sealed is None else sealed
    return Delivery(sign(evolve(delivery.award, sealed_digest=digest_of(box), **changes), owner), box)


def renewed(delivery: Delivery, owner: Identity) -> Delivery:
    """The same award, said anew."""
    return changed(delivery, owner, nonce=new_nonce(), timestamp=wall())


def disposal_of(signer: Identity, work: Workload) -> Disposal:
    disposal = Disposal(
        signer=signer.peer_id,
        namespace=work.resource.namespace,
        kind=work.resource.kind,
        name=work.resource.name,
        uid=work.uid,
        generation=work.generation,
        timestamp=wall(),
        nonce=new_nonce(),
    )
    return sign(disposal, signer)


async def refusal(sender: Node, to: Machine, method: str, message: Bid | Delivery) -> str:
    """The code with which a call is refused."""
    body = message.to_body() if isinstance(message, Delivery) else encode_message(message)
    with pytest.raises(RpcFailed) as refused:
        await sender.call(to.id, method, body)
    return refused.value.code


@define(eq=False)
class Guest:
    """A member without a market, whose every message the test makes."""

    fabric: MemoryFabric
    node: Node
    identity: Identity
    tenders: trio.MemoryReceiveChannel[Tender] = field(init=False)
    bids: list[Bid] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        send, self.tenders = trio.open_memory_channel[Tender](100)

        async def judge(source: PeerId, payload: bytes) -> Judgement:
            message = decode_message(payload)
            if isinstance(message, Tender):
                await send.send(message)
            return Accept(message.signer)

        async def take(call: Call) -> object:
            self.bids.append(decode_as(Bid, call.body))
            return {}

        async def accept(call: Call) -> object:
            return {}

        self.node.subscribe(FABRIC_TOPIC, judge)
        self.node.handle(BID, take)
        self.node.handle(EVENT, accept)

    async def announce(self, machine: Machine, tender: Tender) -> None:
        """Gossip a tender and wait for the machine's bid."""
        await self.node.publish(FABRIC_TOPIC, encode_message(tender))
        await until(lambda: any(bid.node_id == machine.id for bid in self.bids))

    async def award_after_bid(self, machine: Machine) -> Delivery:
        """An award that the machine would obey."""
        work = workload(self.identity)
        tender = tender_of(self.identity, work)
        await self.announce(machine, tender)
        return award_of(self.identity, machine, tender, work)


@asynccontextmanager
async def with_guest(
    size: int, roles: frozenset[str] = ALL_ROLES
) -> AsyncIterator[tuple[list[Machine], Guest]]:
    """A closed fabric of machines with markets, and a member with ``roles`` that does what the test does."""
    root = RootKey.from_seed(bytes(32))
    fabric = MemoryFabric()

    def member_config(seed: int, held: frozenset[str]) -> NodeConfig:
        member = root.invite(EPOCH_MS, roles=held).accept(identity_of(seed), EPOCH_MS).encode()
        return config_of(seed, policy=MembershipPolicy(root.peer_id), member=member)

    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        found = []
        for seed in range(1, size + 1):
            node = await stack.enter_async_context(fabric.open(member_config(seed, ALL_ROLES)))
            found.append(machine_on(node, seed))
            found[-1].open_market(nursery)
        node = await stack.enter_async_context(fabric.open(member_config(size + 1, roles)))
        guest = Guest(fabric, node, identity_of(size + 1))
        await fabric.connected()
        await trio.sleep(1)
        yield found, guest
        nursery.cancel_scope.cancel()
