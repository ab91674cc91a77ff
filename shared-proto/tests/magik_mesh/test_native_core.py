"""A fabric over the native core: peers prove themselves inside the channel, and all else is as ever."""

from __future__ import annotations

import attrs
import pytest
import trio
from mesh_support import METHOD, STRANGERS_ROOT, closed, member_of, refused
from trio.testing import MockClock

from magik_mesh import Call, NodeConfig, Verdict
from magik_mesh.testing import MemoryFabric, config_of, memory_fabric, peers_of, until
from magik_proto.membership import MembershipPolicy
from trio_quic.native import NativeCore


async def test_calls_streams_and_gossip(autojump_clock: MockClock) -> None:
    got: list[bytes] = []

    async def judge(_: object, payload: bytes) -> Verdict:
        got.append(payload)
        return Verdict.ACCEPT

    async def echo(call: Call) -> object:
        return call.body

    async with memory_fabric(4, core=NativeCore) as fabric:
        for node in fabric.nodes:
            node.handle(METHOD, echo)
            node.subscribe("topic", judge)
        await fabric.connected()
        a, *_, d = fabric.nodes
        assert await a.call(d.id, METHOD, [1, "two"]) == [1, "two"]
        assert await d.call(a.id, METHOD, b"x" * 100_000) == b"x" * 100_000
        await a.publish("topic", b"to all")
        await until(lambda: len(got) == 3)


async def test_members_meet_with_the_roles_of_their_invites(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    configs = [attrs.evolve(closed(seed, member_of(seed)), core=NativeCore) for seed in (1, 2)]
    async with fabric.open(configs[0]) as a, fabric.open(configs[1]) as b:
        await fabric.connected()
        assert [peer.roles for peer in (*a.peers(), *b.peers())] == [frozenset({"run"})] * 2


@pytest.mark.parametrize(
    ("intruder", "rule"),
    [
        (config_of(2, policy=MembershipPolicy(None)), "membership.missing"),
        (
            config_of(2, policy=MembershipPolicy(None), member=member_of(2, STRANGERS_ROOT)),
            "membership.other-fabric",
        ),
        (closed(2, member_of(3)), "membership.other-identity"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
async def test_no_stranger_gets_in(autojump_clock: MockClock, intruder: NodeConfig, rule: str) -> None:
    assert rule in await refused(attrs.evolve(intruder, core=NativeCore), core=NativeCore)


async def test_machines_with_different_cores_say_so_and_go_on(autojump_clock: MockClock) -> None:
    async with memory_fabric(2) as fabric, fabric.open(config_of(3, core=NativeCore)) as odd:
        await trio.sleep(20.0)
        assert [len(peers_of(node)) for node in fabric.nodes] == [1, 1, 0]
        assert odd.stats.connections_refused == 0
