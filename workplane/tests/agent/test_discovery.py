"""Replicas that find each other over real nodes on an in-memory network, with their real timings and a clock that jumps."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

import attrs
import pytest
import trio
from attrs import define, field
from rig import OWNER, ROOT, UID, WEB, pass_of
from trio.testing import MockClock

from magik_mesh import Node
from magik_mesh.testing import EPOCH_MS, MemoryFabric, config_of, identity_of, until
from magik_proto import signing
from magik_proto.dht_kinds import service_key, service_kind
from magik_proto.errors import RemoteProtocolError
from magik_proto.membership import MembershipPolicy
from magik_proto.messages import ResourceId
from magik_proto.passes import PassPolicy
from magik_proto.records import ServiceRecord
from magik_proto.wire import encode_message
from workplane.belief import Beliefs
from workplane.catalog import Catalog, Visibility
from workplane.discovery import Discovery
from workplane.ownrecord import OwnRecord

DB = ResourceId("default", "Deployment", "db")
Heard = list[tuple[float, ServiceRecord]]


def wall() -> int:
    return EPOCH_MS + int(trio.current_time() * 1000)


@define(eq=False)
class Replica:
    """A replica as far as discovery goes; `heard` is what it learnt of others, and when."""

    node: Node
    own: OwnRecord
    beliefs: Beliefs
    catalog: Catalog
    discovery: Discovery
    heard: Heard = field(factory=list)

    def sees(self, other: Replica) -> ServiceRecord | None:
        workload = str(other.own.resource)
        found = [r for r in self.catalog.replicas(workload, wall()) if r.peer_id == other.node.id]
        return found[0] if found else None


def member_of(seed: int, resource: ResourceId = WEB, **changes: Any) -> bytes:
    return pass_of(identity_of(seed).peer_id, f"{resource.name}-{seed}", resource, now=EPOCH_MS, **changes)


@define(eq=False)
class Plane:
    """Replicas on one network, each with its number."""

    fabric: MemoryFabric = field(factory=MemoryFabric)

    @asynccontextmanager
    async def replica(self, seed: int, resource: ResourceId = WEB, **changes: Any) -> AsyncIterator[Replica]:
        member = changes.pop("member", member_of(seed, resource))
        policy = PassPolicy(MembershipPolicy(ROOT.peer_id), resource.namespace)
        beliefs = Beliefs(policy, wall, (str(resource), UID))
        kind = service_kind(beliefs.admit)
        config = config_of(seed, policy=policy, member=member, plane="magik-workload/1", kinds=(kind,))
        async with self.fabric.open(attrs.evolve(config, **changes)) as node:
            own = OwnRecord(
                identity=identity_of(seed),
                resource=resource,
                pod_name=f"{resource.name}-{seed}",
                ordinal=None,
                wall=wall,
                random=random.Random(seed).randbytes,
                member=member,
            )
            catalog = Catalog(Visibility(namespace=resource.namespace))
            discovery = Discovery(node, own, catalog, beliefs, wall, heartbeat_s=5.0)
            made = Replica(node, own, beliefs, catalog, discovery)
            discovery.on_record(lambda record: made.heard.append((trio.current_time(), record)))
            async with trio.open_nursery() as nursery:
                await nursery.start(discovery.run)
                yield made
                nursery.cancel_scope.cancel()


@pytest.fixture
def plane() -> Plane:
    return Plane()


async def test_a_replica_that_becomes_ready_is_found_by_all_within_a_second(
    plane: Plane, autojump_clock: MockClock
) -> None:
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(plane.replica(seed)) for seed in range(1, 6)]
        await plane.fabric.connected()
        await trio.sleep(7)
        replicas[3].discovery.change(ready=True, healthy=True, caps={"leader": True})
        with trio.fail_after(1):
            await until(lambda: all(_ready(other.sees(replicas[3])) for other in replicas))
        record = replicas[0].sees(replicas[3])
        assert record is not None and record.caps == {"leader": True}


def _ready(record: ServiceRecord | None) -> bool:
    return record is not None and record.ready and record.healthy


async def test_one_that_comes_ready_is_found_as_soon_as_it_is_connected(
    plane: Plane, autojump_clock: MockClock
) -> None:
    async with plane.replica(1) as one, plane.replica(2) as two:
        two.discovery.change(ready=True, healthy=True)
        await plane.fabric.connected()
        with trio.fail_after(1):
            await until(lambda: _ready(one.sees(two)) and two.sees(one) is not None)


async def test_who_withdraws_is_gone_for_all_before_it_leaves(
    plane: Plane, autojump_clock: MockClock
) -> None:
    async with plane.replica(1) as one, plane.replica(3) as three:
        async with plane.replica(2) as two:
            two.discovery.change(ready=True, healthy=True)
            await plane.fabric.connected()
            await until(lambda: _ready(one.sees(two)) and _ready(three.sees(two)))
            await trio.sleep(6)
            late = two.own.sign()
            await two.discovery.withdraw()
            for other in (one, three):
                record = other.sees(two)
                assert record is not None and not record.ready and not record.healthy
            two.discovery.change(ready=True)
            await trio.sleep(3)
            assert not any(_ready(other.sees(two)) for other in (one, three))
        await trio.sleep(1)
        await three.node.publish(one.discovery.topic, encode_message(late))
        await trio.sleep(1)
        assert one.sees(two) is None  # what it said before it left is no news, by whichever way it comes
        assert one.discovery.refused == 0


async def test_one_that_dies_is_dropped_and_comes_back_with_its_connection(
    plane: Plane, autojump_clock: MockClock
) -> None:
    async with plane.replica(1) as one, plane.replica(2) as two, plane.replica(3):
        two.discovery.change(ready=True, healthy=True)
        await plane.fabric.connected()
        await until(lambda: _ready(one.sees(two)))
        plane.fabric.cut(two.node)
        await trio.sleep(30)
        assert one.sees(two) is None
        plane.fabric.mend(two.node)
        await until(lambda: _ready(one.sees(two)), 90)


async def test_the_table_knows_the_replicas_of_any_workload(plane: Plane, autojump_clock: MockClock) -> None:
    """What was said before one came, of those that it is not connected with."""
    async with AsyncExitStack() as stack:
        few = {"max_connections": 2}
        for seed in range(1, 7):
            await stack.enter_async_context(plane.replica(seed, DB if seed > 3 else WEB, **few))
        await trio.sleep(30)
        late = await stack.enter_async_context(plane.replica(8, **few))
        await trio.sleep(5)
        await late.discovery.follow(str(DB))
        found = late.catalog.replicas(str(DB), wall())
        assert {record.pod_name for record in found} == {"db-4", "db-5", "db-6"}
        before = {record.peer_id: record.ts for record in found}
        await trio.sleep(30)  # it is kept up to date while it is used
        assert all(r.ts > before[r.peer_id] for r in late.catalog.replicas(str(DB), wall()))


async def test_to_follow_twice_asks_once(
    plane: Plane, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with plane.replica(1) as one, plane.replica(2):
        await plane.fabric.connected()
        asked: list[bytes] = []
        real = one.node.records

        async def records(kind: str, key: bytes) -> Any:
            asked.append(key)
            return await real(kind, key)

        monkeypatch.setattr(one.node, "records", records)
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one.discovery.follow, str(DB))
        await one.discovery.follow(str(DB))
        assert asked.count(service_key(str(DB))) == 1


async def test_the_machine_s_peers_are_tried_until_somebody_is_there(
    plane: Plane, autojump_clock: MockClock
) -> None:
    from magik_mesh.testing import bootstrap_to

    async with plane.replica(2, bootstrap=()) as two:
        two.discovery.introduce(bootstrap_to(1))
        await trio.sleep(60)
        async with plane.replica(1):
            await plane.fabric.connected(11)


# -- what is not believed


def record_of(seed: int, resource: ResourceId = WEB, **changes: Any) -> ServiceRecord:
    """A record signed by the key number `seed`."""
    fields: dict[str, Any] = {
        "workload_id": str(resource),
        "namespace": resource.namespace,
        "workload_kind": resource.kind,
        "workload_name": resource.name,
        "peer_id": identity_of(seed).peer_id,
        "pod_name": f"{resource.name}-{seed}",
        "version": 1 << 60,
        "ts": wall(),
        "ready": True,
        "healthy": True,
        "member": member_of(seed, resource),
        "nonce": 5,
    }
    return signing.sign(ServiceRecord(**fields | changes), identity_of(seed))


OTHERS_PASS = member_of(9)
LIES: dict[str, tuple[str, Callable[[], ServiceRecord]]] = {
    "another workload": ("record.other-pod", lambda: record_of(2, DB, member=member_of(2))),
    "another pod": ("record.other-pod", lambda: record_of(2, pod_name="web-1")),
    "an ordinal": ("record.other-pod", lambda: record_of(2, ordinal=0)),
    "without a pass": ("pass.missing", lambda: record_of(2, member=None)),
    "another's pass": ("pass.other-identity", lambda: record_of(2, member=OTHERS_PASS)),
    "another namespace's": (
        "pass.namespace",
        lambda: record_of(2, ResourceId("other", "Deployment", "web")),
    ),
    "a namesake": ("record.namesake", lambda: record_of(2, member=member_of(2, uid=UUID(int=8 << 64)))),
    "an ended pass": ("pass.expired", lambda: record_of(2, member=member_of(2, life_ms=1))),
}


@pytest.mark.parametrize(("rule", "make"), LIES.values(), ids=LIES.keys())
async def test_lies_of_an_admitted_pod_are_believed_by_nobody(
    rule: str, make: Callable[[], ServiceRecord], plane: Plane, autojump_clock: MockClock
) -> None:
    """By gossip, by call and in the table; and nobody hands them on."""
    liar = plane.fabric.open(
        config_of(
            2,
            policy=PassPolicy(MembershipPolicy(ROOT.peer_id), "default", cross_namespace=True),
            member=member_of(2),
            plane="magik-workload/1",
            kinds=(service_kind(),),
        )
    )
    async with plane.replica(1) as one, plane.replica(3) as three, liar as node:
        await plane.fabric.connected()
        await trio.sleep(2)
        lie = make()
        with pytest.raises(RemoteProtocolError) as refused:
            one.beliefs.judge(lie)
        assert refused.value.rule == rule
        await node.publish("magik-services/default", encode_message(lie))
        done = await node.put(lie)
        assert done.stored == 1 and set(done.refused) <= {rule, "dht.far"}
        with pytest.raises(Exception, match=rule.replace(".", r"\.")):
            await node.call(one.node.id, "/workplane/record/1.0.0", {"record": encode_message(lie)})
        await trio.sleep(6)
        for replica in (one, three):
            await replica.discovery.follow(lie.workload_id)
            assert lie not in [record for _, record in replica.heard]
            assert all(r.peer_id != node.id for r in replica.catalog.replicas(lie.workload_id, wall()))


async def test_gossip_is_taken_once_and_only_while_it_is_fresh(
    plane: Plane, autojump_clock: MockClock
) -> None:
    async with plane.replica(1) as one, plane.replica(2) as two:
        await plane.fabric.connected()
        await trio.sleep(40)
        judge = one.discovery._judge
        fresh = encode_message(record_of(3))
        old = encode_message(record_of(3, ts=wall() - 31_000, nonce=6))
        other = encode_message(record_of(3, nonce=7).with_signature(bytes(64)))
        assert (await judge(two.node.id, fresh)).origin == identity_of(3).peer_id  # type: ignore[union-attr]
        assert (await judge(two.node.id, fresh)).value == "ignore"  # type: ignore[union-attr]
        assert (await judge(two.node.id, old)).value == "ignore"  # type: ignore[union-attr]
        assert (await judge(two.node.id, other)).value == "reject"  # type: ignore[union-attr]
        assert (await judge(two.node.id, b"nonsense")).value == "reject"  # type: ignore[union-attr]


async def test_nobody_tells_another_s_record_as_its_own(plane: Plane, autojump_clock: MockClock) -> None:
    async with plane.replica(1) as one, plane.replica(2) as two:
        await plane.fabric.connected()
        with pytest.raises(Exception, match=r"record\.other-pod"):
            await two.node.call(
                one.node.id, "/workplane/record/1.0.0", {"record": encode_message(record_of(3))}
            )


async def test_what_a_revoked_owner_awarded_is_forgotten(plane: Plane, autojump_clock: MockClock) -> None:
    async with plane.replica(1) as one, plane.replica(2) as two:
        await plane.fabric.connected()
        await until(lambda: one.sees(two) is not None)
        assert one.discovery.identify(two.node.id) is not None
        one.node.revoke(ROOT.revoke(1, wall(), peers=(OWNER.peer_id,)))
        await trio.sleep(1)
        assert one.sees(two) is None and one.discovery.identify(two.node.id) is None
