"""The bidder's side, event by event."""

from uuid import UUID

import attrs
import pytest

from magik_proto.bidder import (
    AwardReceived,
    AwardRepeated,
    BidDeclined,
    Bidder,
    BidderConfig,
    CapacityChanged,
    Deploy,
    Deployed,
    DeployFailed,
    FactsChanged,
    MakeBid,
    NoBid,
    OwnerGone,
    Preempted,
    RefuseAward,
    Release,
    TenderSeen,
    TenderState,
)
from magik_proto.errors import LocalProtocolError
from magik_proto.messages import Award
from magik_proto.placement import Capacity, Taint, needs
from magik_proto.testing.builders import TENDER_ID, award, machine, peer, requirements, tender

ONE = needs(requirements())


def bidder_with_a_bid(**config: object) -> Bidder:
    bidder = Bidder(machine(1), BidderConfig(**config))  # type: ignore[arg-type]
    [made] = bidder.receive(TenderSeen(tender(9), 3), 0.0)
    assert isinstance(made, MakeBid)
    assert (made.owner, made.round, made.slots) == (peer(9), 1, 4)
    return bidder


def test_a_bid_reserves_what_it_promises_and_an_award_keeps_what_it_takes() -> None:
    bidder = bidder_with_a_bid()
    assert bidder.reserved == ONE * 4
    assert bidder.state(TENDER_ID) is TenderState.BIDDING
    given = award(9, 1, 2)
    assert bidder.receive(AwardReceived(given), 1.0) == [Deploy(given)]
    assert bidder.reserved == ONE * 2
    assert bidder.state(TENDER_ID) is TenderState.DEPLOYING
    assert bidder.receive(Deployed(TENDER_ID), 2.0) == []
    assert bidder.state(TENDER_ID) is TenderState.IDLE
    assert bidder.reserved == Capacity()
    assert bidder.free == machine(1).capacity - ONE * 2
    bidder.receive(CapacityChanged(ONE), 3.0)
    assert bidder.free == machine(1).capacity - ONE


def test_a_promise_without_an_award_ends() -> None:
    bidder = bidder_with_a_bid()
    assert bidder.next_timeout() == 10.0
    assert bidder.poll(9.9) == []
    assert bidder.poll(10.0) == [Release(TENDER_ID, "no award within 10 s")]
    assert bidder.free == machine(1).capacity
    assert bidder.next_timeout() is None
    assert bidder.receive(AwardReceived(award(9, 1)), 10.1) == [RefuseAward(TENDER_ID, "award.no-bid")]


def test_an_award_at_the_deadline_is_too_late_even_if_nobody_polled() -> None:
    bidder = bidder_with_a_bid()
    outputs = bidder.receive(AwardReceived(award(9, 1)), 10.0)
    assert outputs[-1] == RefuseAward(TENDER_ID, "award.no-bid")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (award(9, 1, id=UUID(int=4)), "award.no-bid"),
        (award(8, 1), "award.not-the-owner"),
        (award(9, 2), "award.not-for-us"),
        (award(9, 1, digest=b"x" * 32), "award.other-manifest"),
        (award(9, 1, 5), "award.too-many"),
    ],
)
def test_only_an_award_for_our_bid_is_obeyed(given: Award, reason: str) -> None:
    bidder = bidder_with_a_bid()
    assert bidder.receive(AwardReceived(given), 1.0) == [RefuseAward(given.tender_id, reason)]
    assert bidder.reserved == ONE * 4, "a refused award must not take the promise away"
    assert bidder.receive(AwardReceived(award(9, 1, 4)), 1.1) == [Deploy(award(9, 1, 4))]


def test_no_award_is_obeyed_twice() -> None:
    bidder = bidder_with_a_bid()
    given, second = award(9, 1, nonce=1), award(9, 1, nonce=2)
    bidder.receive(AwardReceived(given), 1.0)
    assert bidder.receive(AwardReceived(given), 1.1) == [AwardRepeated(given)]
    assert bidder.receive(AwardReceived(second), 1.1) == [RefuseAward(TENDER_ID, "award.twice")]
    bidder.receive(Deployed(TENDER_ID), 2.0)
    bidder.receive(TenderSeen(tender(9, round=2), 3), 3.0)
    assert bidder.receive(AwardReceived(given), 3.1) == [AwardRepeated(given)]
    assert bidder.receive(AwardReceived(second), 3.2) == [Deploy(second)]


def test_a_failed_deployment_gives_back() -> None:
    for end in (DeployFailed(TENDER_ID, "no image"), Preempted(TENDER_ID, "no image")):
        bidder = bidder_with_a_bid()
        bidder.receive(AwardReceived(award(9, 1)), 1.0)
        assert bidder.receive(end, 2.0) == [Release(TENDER_ID, "no image")]
        assert bidder.free == machine(1).capacity


def test_declined_or_ownerless_promises_are_given_back() -> None:
    for end, reason in ((BidDeclined(TENDER_ID), "declined"), (OwnerGone(peer(9)), "the owner is gone")):
        bidder = bidder_with_a_bid()
        assert bidder.receive(OwnerGone(peer(8)), 0.5) == []
        assert bidder.receive(end, 1.0) == [Release(TENDER_ID, reason)]
        assert bidder.receive(end, 1.1) == []
        assert bidder.free == machine(1).capacity


def test_a_round_is_answered_once_and_the_next_one_anew() -> None:
    bidder = bidder_with_a_bid()
    assert bidder.receive(TenderSeen(tender(9), 3), 0.1) == [
        NoBid(TENDER_ID, ("this machine has bid already",))
    ]
    released, made = bidder.receive(TenderSeen(tender(9, round=2), 3), 0.2)
    assert released == Release(TENDER_ID, "another round")
    assert isinstance(made, MakeBid)
    assert (made.round, made.slots) == (2, 8), "a later round is promised all that fits"
    assert bidder.reserved == ONE * 8
    bidder.receive(AwardReceived(award(9, 1)), 0.3)
    [no] = bidder.receive(TenderSeen(tender(9, round=3), 3), 0.4)
    assert no == NoBid(TENDER_ID, ("this machine deploys for the tender already",))


def test_an_open_tender_id_belongs_to_its_owner() -> None:
    bidder = bidder_with_a_bid()
    [no] = bidder.receive(TenderSeen(tender(8, round=2), 3), 0.1)
    assert no == NoBid(TENDER_ID, ("the tender's id is in use by another owner",))
    assert bidder.receive(AwardReceived(award(9, 1)), 0.2) == [Deploy(award(9, 1))]


def test_tenders_share_what_is_free() -> None:
    bidder = Bidder(machine(1))
    promised = []
    for number in range(5):
        [made] = bidder.receive(TenderSeen(tender(9, id=UUID(int=number)), 3), 0.0)
        promised.append(made.slots if isinstance(made, MakeBid) else 0)
    assert promised == [4, 2, 1, 1, 0]
    assert bidder.free.cpu_millis == 0


def test_reasons_for_no_bid() -> None:
    facts = attrs.evolve(machine(1), taints=(Taint("off"),))
    [no] = Bidder(facts).receive(TenderSeen(tender(9), 3), 0.0)
    assert isinstance(no, NoBid)
    assert "taint off" in no.reasons[0]
    answers = [Bidder(machine(n)).receive(TenderSeen(tender(9), 10_000), 0.0)[0] for n in range(60)]
    assert NoBid(TENDER_ID, ("not in the sample",)) in answers
    full = Bidder(machine(1), used=machine(1).capacity)
    [no] = full.receive(TenderSeen(tender(9), 3), 0.0)
    assert isinstance(no, NoBid)
    assert "not enough is free" in no.reasons[0]


def test_open_bids_and_awards_are_capped() -> None:
    bidder = bidder_with_a_bid(max_open=1)
    [no] = bidder.receive(TenderSeen(tender(9, id=UUID(int=2)), 3), 0.0)
    assert no == NoBid(UUID(int=2), ("1 bids are open",))
    bidder.receive(AwardReceived(award(9, 1)), 1.0)
    bidder.receive(TenderSeen(tender(9, id=UUID(int=2)), 3), 1.0)
    other = AwardReceived(award(9, 1, id=UUID(int=2)))
    assert bidder.receive(other, 1.1) == [RefuseAward(UUID(int=2), "award.full")]
    bidder.poll(301.0)
    bidder.receive(TenderSeen(tender(9, id=UUID(int=3)), 3), 301.0)
    given = award(9, 1, id=UUID(int=3))
    assert bidder.receive(AwardReceived(given), 301.1) == [Deploy(given)]


def test_new_facts_count_from_the_next_tender_on() -> None:
    bidder = Bidder(machine(1))
    bidder.receive(FactsChanged(machine(1, cpu_millis=100)), 0.0)
    [no] = bidder.receive(TenderSeen(tender(9), 3), 0.0)
    assert isinstance(no, NoBid)


@pytest.mark.parametrize("illegal", [Deployed(TENDER_ID), DeployFailed(TENDER_ID, ""), Preempted(TENDER_ID)])
def test_the_end_of_what_never_began_is_our_error(illegal: Deployed) -> None:
    bidder = bidder_with_a_bid()
    with pytest.raises(LocalProtocolError, match="not legal while bidding"):
        bidder.receive(illegal, 99.0)
    assert bidder.reserved == ONE * 4
