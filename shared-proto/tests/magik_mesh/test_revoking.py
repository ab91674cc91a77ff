"""A revoked member is gone from every machine: from those here, from those that come back, for good."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from magik_mesh import Node, NodeConfig, codes
from magik_mesh.testing import EPOCH_MS, MemoryFabric, config_of, identity_of, peers_of, until
from magik_proto.credentials import Revocations
from magik_proto.identity import PeerId
from magik_proto.invites import Invite, RootKey
from magik_proto.membership import MembershipError, MembershipPolicy
from magik_proto.wire import encode_message

ROOT = RootKey.from_seed(b"r" * 32)
INVITE = ROOT.invite(EPOCH_MS)
OTHER_INVITE = ROOT.invite(EPOCH_MS)
BAD = identity_of(9).peer_id


def closed(seed: int, invite: Invite = INVITE) -> NodeConfig:
    member = invite.accept(identity_of(seed), EPOCH_MS)
    return config_of(seed, policy=MembershipPolicy(ROOT.peer_id), member=member.encode())


def some(count: int) -> tuple[PeerId, ...]:
    return tuple(PeerId(number.to_bytes(32, "big")) for number in range(1, count + 1))


@pytest.fixture
async def four(autojump_clock: MockClock) -> AsyncIterator[MemoryFabric]:
    """Three machines, and one that is to be revoked."""
    fabric = MemoryFabric()
    async with (
        fabric.open(closed(1)),
        fabric.open(closed(2)),
        fabric.open(closed(3)),
        fabric.open(closed(9, OTHER_INVITE)),
    ):
        await fabric.connected()
        yield fabric


def serials(*nodes: Node) -> list[int]:
    return [node._revoking.serial for node in nodes]


@pytest.mark.parametrize(
    "revocations",
    [
        ROOT.revoke(1, EPOCH_MS, peers=(BAD,)),
        ROOT.revoke(2, EPOCH_MS, invites=(OTHER_INVITE.id,)),
        ROOT.revoke(3, EPOCH_MS, peers=(BAD, *some(9_000)), invites=some(9_000)),  # too large for gossip
    ],
    ids=["peer", "invite", "large"],
)
async def test_all_who_are_here_drop_the_revoked_machine_at_once(
    four: MemoryFabric, revocations: Revocations, autojump_clock: MockClock
) -> None:
    a, b, c, bad = four.nodes
    kept: list[int] = []
    c.on_revocations(lambda r: kept.append(r.serial))
    assert a.revoke(revocations)
    await until(lambda: all(bad.id not in peers_of(node) for node in (a, b, c)), 3.0)
    assert serials(a, b, c) == [revocations.serial] * 3
    assert kept == [revocations.serial]
    await trio.sleep(60.0)
    assert peers_of(bad) == [], "it does not get back in"
    assert all(len(peers_of(node)) == 2 for node in (a, b, c))
    assert not a.revoke(revocations), "no news"


async def test_a_machine_that_was_away_learns_of_it_when_it_comes_back(
    four: MemoryFabric, autojump_clock: MockClock
) -> None:
    a, b, c, bad = four.nodes
    four.cut(c)
    await until(lambda: c.id not in [*peers_of(a), *peers_of(b)], 30.0)
    a.revoke(ROOT.revoke(1, EPOCH_MS, peers=(BAD,)))
    await trio.sleep(60.0)  # far longer than gossip keeps messages
    assert serials(a, b, c) == [1, 1, 0]
    four.mend(c)
    await until(lambda: serials(c) == [1], 30.0)
    await until(lambda: bad.id not in peers_of(c), 1.0)
    await trio.sleep(60.0)
    assert sorted(peers_of(c)) == sorted([a.id, b.id])
    assert peers_of(bad) == []


async def test_a_machine_starts_with_the_list_that_it_kept(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    config = closed(1)
    config.policy.revoke(ROOT.revoke(1, EPOCH_MS, peers=(BAD,)))
    async with (
        fabric.open(config) as a,
        fabric.open(closed(9, OTHER_INVITE)) as bad,
        fabric.open(closed(2)) as b,
    ):
        await until(lambda: serials(b) == [1], 10.0)
        await trio.sleep(30.0)
        assert peers_of(bad) == []
        assert peers_of(a) == [b.id]


async def test_what_gossip_lost_is_made_up_for(four: MemoryFabric, autojump_clock: MockClock) -> None:
    a, b, *_ = four.nodes
    b._config.policy.revoke(ROOT.revoke(5, EPOCH_MS, peers=(BAD,)))  # as if nobody had heard
    await until(lambda: serials(a) == [5], 200.0)


async def test_lists_that_the_root_did_not_sign_or_that_are_old_change_nothing(
    four: MemoryFabric, autojump_clock: MockClock
) -> None:
    a, b, c, bad = four.nodes
    await trio.sleep(1.0)
    a.revoke(ROOT.revoke(2, EPOCH_MS))
    await until(lambda: serials(b, c) == [2, 2], 3.0)
    forged = evolve(ROOT.revoke(3, EPOCH_MS, peers=(a.id,)), serial=4)
    strangers = RootKey.from_seed(b"s" * 32).revoke(9, EPOCH_MS, peers=(a.id,))
    for wrong in (forged, strangers):
        with pytest.raises(MembershipError):
            a.revoke(wrong)
        await bad.publish(codes.REVOCATIONS_TOPIC, encode_message(wrong))
    assert not a.revoke(ROOT.revoke(1, EPOCH_MS, peers=(b.id,)))
    await trio.sleep(5.0)
    assert serials(a, b, c) == [2, 2, 2]
    assert len(peers_of(a)) == 3
    assert a._pubsub.score(bad.id) < -10, "who passes forgeries on loses its standing"
