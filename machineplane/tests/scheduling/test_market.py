"""Auctions between real nodes on an in-memory network, under a clock that jumps."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from attrs import evolve
from market_support import (
    NEED,
    Machine,
    award_of,
    bid_for,
    changed,
    disposal_of,
    job,
    machines,
    refusal,
    renewed,
    seeded_sealing_key,
    tender_of,
    wall,
    with_guest,
    workload,
)
from trio.testing import MockClock

from machineplane.scheduling.market import DECLINE, DeployFailed
from magik_mesh import Accept, Call, CallRefused, Node, RpcFailed, Verdict
from magik_mesh.testing import until
from magik_proto.awards import Delivery, seal_workload
from magik_proto.identity import Identity, PeerId, SealingKey
from magik_proto.messages import FABRIC_TOPIC, Award, ResourceId, encode_message
from magik_proto.placement import Capacity
from magik_proto.rpc import AWARD, BID, EVENT
from magik_proto.signing import new_nonce, sign

MANY = {"cpu_millis": 100_000}


# -- placing


async def test_three_machines_place_a_job_and_spread_it(autojump_clock: MockClock) -> None:
    async with machines(3) as (_, (a, b, c)):
        finished = await a.market.place(job(a.identity, replicas=3))
        assert dict(finished.placed) == {a.id: 1, b.id: 1, c.id: 1} and not finished.unplaced
        assert [len(m.deployed) for m in (a, b, c)] == [1, 1, 1]


async def test_what_pods_refer_to_goes_with_the_award_and_is_not_in_the_receipt(
    autojump_clock: MockClock,
) -> None:
    async with machines(2) as (_, (a, b)):
        secret = evolve(workload(a.identity), resource=ResourceId("default", "Secret", "key"), replicas=0)
        secret = sign(secret, a.identity)
        await a.market.place(job(a.identity, taken={a.id: 1}, objects=(secret,)))
        assert b.objects == [(secret,)]
        assert secret.manifest not in encode_message(b.deployed[0])


class Mark:
    """What an owner has of a set that nobody has founded yet."""

    def __init__(self) -> None:
        self.left = True

    def take(self) -> bool:
        taken, self.left = self.left, False
        return taken

    def give_back(self) -> None:
        self.left = True


async def test_ordinal_0_founds_its_set_once(autojump_clock: MockClock) -> None:
    async with machines(3) as (_, (a, b, c)):
        mark = Mark()
        for ordinals in ((1,), (0, 1, 2), (0,)):
            await a.market.place(
                job(a.identity, replicas=len(ordinals), ordinals=ordinals, founding=mark, taken={a.id: 9})
            )
        assert a.founders + b.founders + c.founders == [0] and not mark.left


async def test_who_refuses_an_award_founds_nothing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machines(2) as (_, (a, b)):
        mark = Mark()

        def refuse(delivery: Delivery) -> None:
            assert delivery.founder
            raise CallRefused("award.full")

        monkeypatch.setattr(b.market, "_obey", refuse)
        finished = await a.market.place(
            job(a.identity, ordinals=(0,), founding=mark, taken={a.id: 1}, replicas=1)
        )
        assert dict(finished.placed) == {a.id: 1} and not mark.left
        assert (a.founders, b.founders) == ([0], [])


@pytest.mark.parametrize(("begun", "founders"), [(False, 2), (True, 1)])
async def test_an_award_of_which_nothing_ran_has_founded_nothing(
    autojump_clock: MockClock, begun: bool, founders: int
) -> None:
    async with machines(2) as (_, (a, b)):
        mark = Mark()

        async def fails(award: Award) -> list[str]:
            raise DeployFailed("the disk is full", begun=begun)

        b.deploy = fails
        wanted = job(a.identity, ordinals=(0,), founding=mark, taken={a.id: 1}, replicas=1)
        finished = await a.market.place(wanted)
        assert dict(finished.placed) == {a.id: 1} and len(b.deployed) == 1
        assert len(a.founders + b.founders) == founders and not mark.left


async def test_machines_that_run_replicas_already_are_the_last_to_get_more(autojump_clock: MockClock) -> None:
    async with machines(3) as (_, (a, b, c)):
        finished = await a.market.place(job(a.identity, taken={a.id: 1, b.id: 1}))
        assert dict(finished.placed) == {c.id: 1}


async def test_in_a_fabric_far_larger_than_the_sample_only_the_sample_bids(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machines(3) as (_, (a, b, c)):
        for node in (b.node, c.node):
            monkeypatch.setattr(node, "size_estimate", lambda: 10**12)
        finished = await a.market.place(job(a.identity, replicas=3))
        assert dict(finished.placed) == {a.id: 3}


@pytest.mark.parametrize("large", [True, False])
async def test_in_a_large_fabric_a_tender_shows_its_owners_membership_to_those_who_never_heard_of_it(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    async with with_guest(2) as ((a, b), _):
        a.node._presence.large = large
        judged = type(b.node).roles

        def roles(node: Node, peer: PeerId, shown: bytes | None = None) -> frozenset[str] | None:
            """As if `b` had never heard of `a`."""
            if (node, peer) != (b.node, a.id):
                return judged(node, peer, shown)
            return None if shown is None else node._config.policy.admit(peer, shown, wall())

        monkeypatch.setattr(type(b.node), "roles", roles)
        finished = await a.market.place(job(a.identity, taken={a.id: 1}))
        assert dict(finished.placed) == ({b.id: 1} if large else {a.id: 1})


async def test_a_machine_alone_runs_what_fits_on_it(autojump_clock: MockClock) -> None:
    async with machines(1) as (_, (a,)):
        finished = await a.market.place(job(a.identity, replicas=2))
        assert dict(finished.placed) == {a.id: 2}


async def test_what_fits_nowhere_is_left_over_with_this_machines_reasons(autojump_clock: MockClock) -> None:
    async with machines(2) as (_, (a, b)):
        large = job(a.identity, requirements=evolve(NEED, **MANY))
        finished = await a.market.place(large)
        assert finished.unplaced == 1 and not finished.placed
        assert any("cpu" in reason for reason in finished.reasons), finished.reasons
        assert not a.deployed and not b.deployed


async def test_losers_give_back_what_they_reserved(autojump_clock: MockClock) -> None:
    async with machines(3) as (_, (a, b, c)):
        await a.market.place(job(a.identity))
        await until(lambda: all(m.reserved == Capacity() for m in (a, b, c)), 3)


async def test_two_owners_at_once_never_promise_the_same_room_twice(autojump_clock: MockClock) -> None:
    tight = Capacity(cpu_millis=200, memory_bytes=1 << 30, storage_bytes=1 << 30, pods=10)
    async with machines(2, room=tight) as (_, (a, b)):
        async with trio.open_nursery() as nursery:
            for owner in (a, b):
                nursery.start_soon(owner.market.place, job(owner.identity, replicas=3))
        placed = {m.id: sum(award.replicas for award in m.deployed) for m in (a, b)}
        assert placed == {a.id: 2, b.id: 2}


async def test_a_deployment_that_fails_moves_on_to_the_next_bidder(autojump_clock: MockClock) -> None:
    async def fails(award: Award) -> list[str]:
        raise DeployFailed("no such image\n" + "x" * 600)

    async with machines(3) as (_, (a, b, c)):
        a.deploy = b.deploy = fails
        finished = await a.market.place(job(a.identity, taken={c.id: 1}))
        assert dict(finished.placed) == {c.id: 1} and len(c.deployed) == 1
        assert a.deployed or b.deployed
        await until(lambda: a.reserved == b.reserved == Capacity(), 12)


async def test_the_reason_of_a_failure_reaches_the_owner_cut_and_printable(autojump_clock: MockClock) -> None:
    async def fails(award: Award) -> list[str]:
        raise DeployFailed("no such\x1b image\n" + "x" * 600)

    async with machines(2) as (_, (a, b)):
        a.deploy = b.deploy = fails
        finished = await a.market.place(job(a.identity))
        assert finished.unplaced == 1
        said = [reason for reason in finished.reasons if "no such  image" in reason]
        assert said and all(reason.isprintable() and len(reason) < 700 for reason in said)


async def test_a_winner_that_falls_silent_is_passed_over(autojump_clock: MockClock) -> None:
    async with with_guest(1) as ((a,), guest):

        async def fall_silent(call: Call) -> object:
            guest.fabric.cut(guest.node)
            return await trio.sleep_forever()

        guest.node.handle(AWARD, fall_silent)
        result: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place_into, a, job(a.identity, taken={a.id: 9}), result)
            tender = await guest.tenders.receive()
            key = seeded_sealing_key(9).public
            await guest.node.call(a.id, BID, encode_message(bid_for(tender, guest.identity, key)))
        assert dict(result[0].placed) == {a.id: 1}


async def test_a_winner_that_dies_while_it_deploys_is_given_up_when_the_mesh_says_so(
    autojump_clock: MockClock,
) -> None:
    async with machines(2) as (_, (a, b)):
        begun = trio.Event()

        async def never(award: Award) -> list[str]:
            begun.set()
            await trio.sleep_forever()
            return []

        b.deploy = never
        result: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place_into, a, job(a.identity, taken={a.id: 1}), result)
            await begun.wait()
            a.market.peer_gone(b.id)
        assert dict(result[0].placed) == {a.id: 1}


async def test_a_bidder_whose_sealing_key_is_unusable_costs_only_its_own_bid(
    autojump_clock: MockClock,
) -> None:
    """All zeros is a point of low order: nothing can be sealed to it."""
    async with with_guest(1) as ((a,), guest):
        result: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place_into, a, job(a.identity, taken={a.id: 9}), result)
            tender = await guest.tenders.receive()
            await guest.node.call(a.id, BID, encode_message(bid_for(tender, guest.identity, bytes(32))))
        assert dict(result[0].placed) == {a.id: 1}


async def test_an_owner_that_dies_mid_auction_leaves_no_reservation(autojump_clock: MockClock) -> None:
    async with with_guest(1) as ((a,), guest):
        await guest.announce(a, tender_of(guest.identity, workload(guest.identity)))
        assert a.reserved != Capacity()
        a.market.peer_gone(guest.identity.peer_id)
        assert a.reserved == Capacity()


async def test_a_promise_that_nobody_takes_up_ends_by_itself(autojump_clock: MockClock) -> None:
    async with with_guest(1) as ((a,), guest):
        await guest.announce(a, tender_of(guest.identity, workload(guest.identity)))
        await trio.sleep(10.5)
        assert a.reserved == Capacity()


async def test_only_the_owner_can_decline_a_bid_and_only_that_of_the_round(autojump_clock: MockClock) -> None:
    async with with_guest(2) as ((a, b), guest):
        tender = tender_of(guest.identity, workload(guest.identity), round=2)
        await guest.announce(a, tender)
        for sender, round in ((b.node, 2), (guest.node, 1)):
            await sender.call(a.id, DECLINE, {"tender": tender.id.bytes, "round": round})
            assert a.reserved != Capacity()
        await guest.node.call(a.id, DECLINE, {"tender": tender.id.bytes, "round": 2})
        assert a.reserved == Capacity()


@pytest.mark.parametrize("body", [None, b"x" * 16, {"tender": b"short", "round": 1}, {"tender": bytes(16)}])
async def test_a_malformed_decline_is_refused(body: object, autojump_clock: MockClock) -> None:
    async with with_guest(1) as ((a,), guest):
        with pytest.raises(RpcFailed) as refused:
            await guest.node.call(a.id, DECLINE, body)
        assert refused.value.code == "decline.body"


# -- awards


async def test_an_award_for_our_bid_is_obeyed_once(autojump_clock: MockClock) -> None:
    async with with_guest(1) as ((a,), guest):
        award = await guest.award_after_bid(a)
        await guest.node.call(a.id, AWARD, award.to_body())
        await until(lambda: len(a.deployed) == 1)
        for again, code in ((award, "replay.seen"), (renewed(award, guest.identity), "award.no-bid")):
            assert await refusal(guest.node, a, AWARD, again) == code
        assert len(a.deployed) == 1


async def test_a_second_award_while_the_first_is_deployed_is_refused(autojump_clock: MockClock) -> None:
    async with with_guest(1) as ((a,), guest):
        a.deploy = never_done
        award = await guest.award_after_bid(a)
        await guest.node.call(a.id, AWARD, award.to_body())
        assert await refusal(guest.node, a, AWARD, renewed(award, guest.identity)) == "award.twice"
        assert len(a.deployed) == 1


Change = Callable[[Delivery, Machine, Identity], Delivery]


def for_another_manifest(award: Delivery, machine: Machine, owner: Identity) -> Delivery:
    other = workload(owner, note="other")
    sealed = seal_workload(other, machine.sealing_key.public)
    named = {"uid": other.uid, "resource": other.resource, "manifest_digest": other.digest}
    return changed(award, owner, sealed=sealed, **named)


def for_more_than_promised(award: Delivery, machine: Machine, owner: Identity) -> Delivery:
    return changed(award, owner, replicas=6)


def for_no_tender_of_ours(award: Delivery, machine: Machine, owner: Identity) -> Delivery:
    return changed(award, owner, tender_id=tender_of(owner, workload(owner)).id)


def for_another_machine(award: Delivery, machine: Machine, owner: Identity) -> Delivery:
    return changed(award, owner, winner=owner.peer_id)


def sealed_to_another(award: Delivery, machine: Machine, owner: Identity) -> Delivery:
    return changed(award, owner, sealed=seal_workload(workload(owner), seeded_sealing_key(77).public))


def with_another_inside(award: Delivery, machine: Machine, owner: Identity) -> Delivery:
    return changed(award, owner, sealed=seal_workload(workload(owner), machine.sealing_key.public))


def with_another_box(award: Delivery, machine: Machine, owner: Identity) -> Delivery:
    return evolve(award, sealed=seal_workload(workload(owner), machine.sealing_key.public))


def stale(award: Delivery, machine: Machine, owner: Identity) -> Delivery:
    return changed(award, owner, timestamp=wall() - 31_000)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (for_another_manifest, "award.other-manifest"),
        (for_more_than_promised, "award.too-many"),
        (for_no_tender_of_ours, "award.no-bid"),
        (for_another_machine, "award.not-for-us"),
        (sealed_to_another, "seal.invalid"),
        (with_another_inside, "award.mismatch"),
        (with_another_box, "award.other-box"),
        (stale, "freshness.skew"),
    ],
)
async def test_an_award_that_is_not_what_we_bid_for_deploys_nothing(
    change: Change, code: str, autojump_clock: MockClock
) -> None:
    async with with_guest(1) as ((a,), guest):
        await trio.sleep(60)  # so that what is stale is still younger than the daemon
        award = await guest.award_after_bid(a)
        assert await refusal(guest.node, a, AWARD, change(award, a, guest.identity)) == code
        await trio.sleep(1)
        assert not a.deployed


async def test_an_award_from_a_stranger_deploys_nothing_and_our_promise_stands(
    autojump_clock: MockClock,
) -> None:
    async with with_guest(2) as ((a, b), guest):
        award = await guest.award_after_bid(a)
        mine = changed(award, b.identity, owner_identity=b.id, owner_pubkey=b.id.raw, nonce=new_nonce())
        assert await refusal(b.node, a, AWARD, mine) == "award.not-the-owner"
        await guest.node.call(a.id, AWARD, award.to_body())
        await until(lambda: len(a.deployed) == 1)


async def test_an_award_passed_on_by_another_is_refused_and_does_not_use_it_up(
    autojump_clock: MockClock,
) -> None:
    async with with_guest(2) as ((a, b), guest):
        award = await guest.award_after_bid(a)
        assert await refusal(b.node, a, AWARD, award) == "message.not-the-sender"
        assert not a.deployed
        await guest.node.call(a.id, AWARD, award.to_body())
        await until(lambda: len(a.deployed) == 1)


async def test_a_forged_award_is_refused(autojump_clock: MockClock) -> None:
    async with with_guest(1) as ((a,), guest):
        award = await guest.award_after_bid(a)
        forged = evolve(award, award=evolve(award.award, generation=2))
        assert await refusal(guest.node, a, AWARD, forged) == "signature.invalid"
        assert not a.deployed


@pytest.mark.parametrize("body", [b"", b"\xff", b"x" * 100, None, {"a": 1}])
@pytest.mark.parametrize("method", [BID, AWARD, EVENT])
async def test_what_is_no_message_is_refused_with_a_rule(
    method: str, body: object, autojump_clock: MockClock
) -> None:
    async with with_guest(1) as ((a,), guest):
        with pytest.raises(RpcFailed) as refused:
            await guest.node.call(a.id, method, body)
        assert refused.value.code.startswith(("codec", "message", "award.body"))


# -- roles


async def test_a_member_that_may_only_run_cannot_own_tenders_or_dispose(autojump_clock: MockClock) -> None:
    async with with_guest(1, roles=frozenset({"run"})) as ((a,), guest):
        work = workload(guest.identity)
        await guest.node.publish(FABRIC_TOPIC, encode_message(tender_of(guest.identity, work)))
        await guest.node.publish(FABRIC_TOPIC, encode_message(disposal_of(guest.identity, work)))
        await trio.sleep(1)
        assert a.reserved == Capacity() and not a.disposed
        award = award_of(guest.identity, a, tender_of(guest.identity, work), work)
        assert await refusal(guest.node, a, AWARD, award) == "membership.role"
        assert not a.deployed


async def test_a_member_that_may_not_run_gets_no_award(autojump_clock: MockClock) -> None:
    async with with_guest(1, roles=frozenset({"submit"})) as ((a,), guest):
        result: list[Any] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place_into, a, job(a.identity, taken={a.id: 9}), result)
            bid = bid_for(await guest.tenders.receive(), guest.identity, SealingKey.generate().public)
            assert await refusal(guest.node, a, BID, bid) == "membership.role"
        assert dict(result[0].placed) == {a.id: 1}


# -- gossip


async def test_a_tender_is_answered_once_however_often_it_comes(autojump_clock: MockClock) -> None:
    async with with_guest(1) as ((a,), guest):
        tender = encode_message(tender_of(guest.identity, workload(guest.identity)))
        assert await a.market._on_gossip(guest.node.id, tender) == Accept(guest.node.id)
        assert await a.market._on_gossip(guest.node.id, tender) is Verdict.IGNORE
        await trio.sleep(1)
        assert len(guest.bids) == 1


@pytest.mark.parametrize("late", [31_000, -31_000])
async def test_a_tender_of_another_time_is_ignored(late: int, autojump_clock: MockClock) -> None:
    async with with_guest(1) as ((a,), guest):
        await trio.sleep(60)
        tender = tender_of(guest.identity, workload(guest.identity), timestamp=wall() - late)
        assert await a.market._on_gossip(guest.node.id, encode_message(tender)) is Verdict.IGNORE
        assert a.reserved == Capacity()


async def test_forged_gossip_is_rejected(autojump_clock: MockClock) -> None:
    async with with_guest(1) as ((a,), guest):
        work = workload(guest.identity)
        forged = [
            encode_message(evolve(tender_of(guest.identity, work), priority=9)),
            encode_message(evolve(disposal_of(guest.identity, work), generation=9)),
            encode_message(
                bid_for(tender_of(guest.identity, work), guest.identity, bytes(32))
            ),  # true, but no gossip
            b"",
            b"\xa1\x00\x00",
        ]
        assert [await a.market._on_gossip(guest.node.id, data) for data in forged] == [Verdict.REJECT] * len(
            forged
        )
        assert a.reserved == Capacity() and not a.disposed


async def test_gossip_of_a_machine_nobody_knows_is_ignored_without_blame(autojump_clock: MockClock) -> None:
    async with with_guest(1) as ((a,), guest):
        unknown = Identity.generate()
        tender = encode_message(tender_of(unknown, workload(unknown)))
        assert await a.market._on_gossip(guest.node.id, tender) is Verdict.IGNORE
        assert a.reserved == Capacity()


async def test_a_disposal_reaches_every_machine_once(autojump_clock: MockClock) -> None:
    async with machines(3) as (_, (a, b, c)):
        disposal = disposal_of(a.identity, workload(a.identity))
        await a.market.dispose(disposal)
        await until(lambda: b.disposed == c.disposed == [disposal])
        await trio.sleep(5)
        assert b.disposed == c.disposed == [disposal]


# -- support


async def never_done(award: Award) -> list[str]:
    await trio.sleep_forever()
    return []


async def place_into(machine: Machine, what: Any, result: list[Any]) -> None:
    result.append(await machine.market.place(what))
