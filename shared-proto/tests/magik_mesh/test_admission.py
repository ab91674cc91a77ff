"""Who gets into a closed fabric, and that nobody else gets a byte handled."""

from __future__ import annotations

import attrs
import trio
from mesh_support import HOUR, ROOT, STRANGERS_ROOT, closed, member_of, refused
from structlog.testing import capture_logs
from trio.testing import MockClock

from magik_mesh.testing import EPOCH_MS, MemoryFabric, bootstrap_to, config_of, identity_of, peers_of, until
from magik_proto.membership import MembershipPolicy


async def test_members_meet_with_the_roles_of_their_invites(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    async with fabric.open(closed(1, member_of(1))) as a, fabric.open(closed(2, member_of(2))) as b:
        await fabric.connected()
        assert [peer.roles for peer in (*a.peers(), *b.peers())] == [frozenset({"run"})] * 2


async def test_one_without_a_membership_is_refused(autojump_clock: MockClock) -> None:
    # It takes anyone itself: the refusal is the member's.
    reason = await refused(config_of(2, policy=MembershipPolicy(None)))
    assert "membership.missing" in reason
    assert "refused us" in reason


async def test_a_member_of_another_fabric_is_refused(autojump_clock: MockClock) -> None:
    other = config_of(2, policy=MembershipPolicy(None), member=member_of(2, STRANGERS_ROOT))
    assert "membership.other-fabric" in await refused(other)


async def test_an_expired_member_is_refused(autojump_clock: MockClock) -> None:
    old = member_of(2, life_ms=HOUR, invited_ms=EPOCH_MS - 2 * HOUR)
    assert "membership.expired" in await refused(closed(2, old))


async def test_a_stolen_membership_is_refused(autojump_clock: MockClock) -> None:
    assert "membership.other-identity" in await refused(closed(2, member_of(3)))


async def test_a_member_refuses_a_bootstrap_peer_that_is_none(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    with capture_logs() as logs:
        async with fabric.open(config_of(1)) as stranger, fabric.open(closed(2, member_of(2))) as member:
            await trio.sleep(30.0)
            assert peers_of(stranger) == peers_of(member) == []
    reasons = [entry["reason"] for entry in logs if entry["event"] == "bootstrap peer does not answer"]
    assert "membership.missing" in reasons[0]
    assert "refused us" not in reasons[0]


async def test_a_workload_is_refused_on_the_machine_plane(autojump_clock: MockClock) -> None:
    await refused(attrs.evolve(closed(2, member_of(2)), plane="magik-workload/1"))


async def test_the_same_identity_twice_is_refused(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    twin = config_of(1, host="10.0.0.9", bootstrap=bootstrap_to(1, as_peer=identity_of(2).peer_id))
    with capture_logs() as logs:
        async with fabric.open(config_of(1)) as one, fabric.open(twin) as other:
            await trio.sleep(30.0)
            assert peers_of(one) == peers_of(other) == []
    assert sum(f"answered as {one.id}" in entry["event"] for entry in logs) == 1


async def test_a_revoked_member_is_cut_off_and_not_let_in_again(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    first = closed(1, member_of(1))
    async with fabric.open(first) as node, fabric.open(closed(2, member_of(2))) as revoked:
        await fabric.connected()
        events = node.subscribe_peers()
        first.policy.revoke(ROOT.revoke(1, EPOCH_MS, peers=(revoked.id,)))
        node.recheck()
        await events.receive()
        down = await events.receive()
        assert (down.id, down.reason.partition(":")[0]) == (revoked.id, "refused")  # type: ignore[union-attr]
        await trio.sleep(60.0)
        assert peers_of(node) == []


async def test_a_membership_that_expires_ends_the_connection(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    short = closed(2, member_of(2, life_ms=60_000))
    async with fabric.open(closed(1, member_of(1))) as node, fabric.open(short):
        await fabric.connected()
        await trio.sleep(40.0)
        assert len(peers_of(node)) == 1
        await until(lambda: peers_of(node) == [], 60.0)


async def test_one_that_nobody_told_of_is_judged_by_the_membership_that_it_shows(
    autojump_clock: MockClock,
) -> None:
    fabric = MemoryFabric()
    async with fabric.open(closed(1, member_of(1))) as node, fabric.open(config_of(5)) as open_to_all:
        stranger = identity_of(9).peer_id
        assert node.roles(stranger) is None
        assert node.roles(stranger, member_of(9)) == {"run"}
        assert node.roles(stranger, member_of(8)) is None, "another's"
        assert node.roles(stranger, member_of(9, STRANGERS_ROOT)) is None
        assert open_to_all.roles(stranger) == {"run", "submit"}
