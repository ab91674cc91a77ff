"""The owner's side, event by event."""

from uuid import UUID

import pytest

from magik_proto.auction import (
    AWARD_TABLE,
    Auction,
    AuctionConfig,
    AuctionOutput,
    AuctionState,
    AwardAccepted,
    AwardRefused,
    AwardState,
    AwardUnreachable,
    BidderGone,
    BidReceived,
    DeclineBid,
    EventReceived,
    Finished,
    Placed,
    PublishTender,
    SendAward,
    Signal,
    Start,
    Surplus,
)
from magik_proto.errors import LocalProtocolError
from magik_proto.messages import EventType
from magik_proto.testing.builders import TENDER_ID, bid, event, peer

DEPLOYED, FAILED = EventType.Deployed, EventType.Failed


def started(replicas: int = 1, expected: int | None = None, **options: object) -> Auction:
    auction = Auction(TENDER_ID, replicas, expected_bidders=expected, **options)  # type: ignore[arg-type]
    assert auction.receive(Start(), 0.0) == [PublishTender(1, max(16, 4 * replicas))]
    return auction


def bidding(auction: Auction, *bids: tuple[int, int, int], now: float = 0.1) -> list[AuctionOutput]:
    outputs: list[AuctionOutput] = []
    for node, score, slots in bids:
        outputs += auction.receive(BidReceived(bid(node, score, slots)), now)
    return outputs


def test_the_whole_way_of_one_replica() -> None:
    auction = started()
    assert auction.next_timeout() == 0.25
    assert bidding(auction, (1, 10, 1), (2, 20, 1)) == []
    assert auction.poll(0.2) == []
    assert auction.poll(0.25) == [SendAward(bid(2, 20, 1), 1, ())]
    assert auction.state is AuctionState.AWARDING
    assert auction.next_timeout() == 5.25
    assert auction.receive(AwardAccepted(peer(2)), 0.3) == [DeclineBid(peer(1), "all replicas are awarded")]
    assert auction.state is AuctionState.AWAITING
    assert auction.next_timeout() == 120.3
    outputs = auction.receive(EventReceived(event(2, DEPLOYED, ("web-x",))), 2.0)
    assert outputs == [Placed(peer(2), ("web-x",), 1), Finished({peer(2): 1}, 0, ())]
    assert auction.state is AuctionState.DONE
    assert auction.next_timeout() is None
    assert auction.poll(1e9) == []


def test_the_window_closes_early_when_all_have_bid() -> None:
    auction = started(2, expected=2)
    assert bidding(auction, (1, 10, 1)) == []
    assert len(bidding(auction, (2, 10, 1))) == 2


def test_a_bidder_that_left_is_not_waited_for() -> None:
    auction = started(1, expected=2)
    bidding(auction, (1, 10, 1))
    assert auction.receive(BidderGone(peer(2)), 0.1) == [SendAward(bid(1, 10, 1), 1, ())]


def test_a_fabric_wider_than_the_sample_is_not_waited_for_by_count() -> None:
    auction = started(1, expected=17)
    assert bidding(auction, *((n, 10, 1) for n in range(17))) == []


def test_strangers_duplicates_and_late_bids_do_not_count() -> None:
    auction = started(1)
    assert auction.receive(BidReceived(bid(9, 999_999, id=UUID(int=5))), 0.1) == []
    bidding(auction, (1, 10, 1), (1, 999, 1))
    assert auction.poll(0.25) == [SendAward(bid(1, 10, 1), 1, ())]
    assert bidding(auction, (2, 999, 1)) == [DeclineBid(peer(2), "the window is closed")]
    auction.receive(AwardAccepted(peer(1)), 0.3)
    assert auction.receive(EventReceived(event(1, DEPLOYED, id=UUID(int=5))), 1) == []
    assert auction.receive(EventReceived(event(2, DEPLOYED)), 1) == []


def test_bids_beyond_the_cap_are_declined() -> None:
    auction = started(1, config=AuctionConfig(max_bids=1))
    assert bidding(auction, (1, 10, 1), (2, 20, 1)) == [DeclineBid(peer(2), "enough bids")]


def test_machines_to_avoid_are_declined() -> None:
    auction = started(1, avoid=(peer(1),))
    assert bidding(auction, (1, 10, 1)) == [DeclineBid(peer(1), "no more awards to this machine")]


@pytest.mark.parametrize(
    "loss",
    [
        AwardRefused(peer(2), "full"),
        AwardUnreachable(peer(2)),
        BidderGone(peer(2)),
        EventReceived(event(2, FAILED, reason="no image")),
        EventReceived(event(2, EventType.Preempted)),
        EventReceived(event(2, EventType.Cancelled)),
    ],
)
def test_the_next_bid_takes_the_place_of_a_lost_award(loss: object) -> None:
    auction = started()
    bidding(auction, (1, 10, 1), (2, 20, 1))
    auction.poll(0.25)
    assert auction.receive(loss, 0.3) == [SendAward(bid(1, 10, 1), 1, ())]  # type: ignore[arg-type]


def test_a_silent_winner_is_given_up_at_its_deadline() -> None:
    auction = started()
    bidding(auction, (1, 10, 1), (2, 20, 1))
    auction.poll(0.25)
    assert auction.poll(5.2) == []
    assert auction.poll(5.25) == [SendAward(bid(1, 10, 1), 1, ())]


def test_a_deployment_that_does_not_end_leads_to_another_round() -> None:
    auction = started()
    bidding(auction, (2, 20, 1))
    auction.poll(0.25)
    auction.receive(AwardAccepted(peer(2)), 1.0)
    assert auction.poll(121.0) == [PublishTender(2, 16)]
    assert bidding(auction, (2, 20, 1), now=121.1) == [DeclineBid(peer(2), "no more awards to this machine")]


def test_who_refused_may_win_the_next_round() -> None:
    auction = started()
    bidding(auction, (1, 10, 1))
    auction.poll(0.25)
    assert auction.receive(AwardRefused(peer(1), "busy"), 0.3) == [PublishTender(2, 16)]
    bidding(auction, (1, 30, 1), now=0.4)
    assert auction.poll(0.55) == [SendAward(bid(1, 30, 1), 1, ())]


def test_without_bids_it_ends_after_the_last_round() -> None:
    auction = started(3)
    assert auction.poll(0.25) == [PublishTender(2, 16)]
    assert auction.poll(0.50) == [PublishTender(3, 16)]
    assert auction.poll(0.75) == [Finished({}, 3, ())]


def test_the_last_round_waits_for_open_awards_so_that_all_may_bid_again() -> None:
    auction = started(2)
    bidding(auction, (1, 10, 1))
    assert auction.poll(0.25) == [SendAward(bid(1, 10, 1), 1, ()), PublishTender(2, 16)]
    auction.receive(AwardAccepted(peer(1)), 0.3)
    assert auction.poll(0.5) == []
    assert auction.state is AuctionState.AWAITING
    outputs = auction.receive(EventReceived(event(1, DEPLOYED)), 9.0)
    assert outputs == [Placed(peer(1), (), 1), PublishTender(3, 16)]
    bidding(auction, (1, 20, 1), now=9.1)
    assert auction.poll(9.25) == [SendAward(bid(1, 20, 1), 1, ())]
    outputs = auction.receive(EventReceived(event(1, DEPLOYED)), 9.5)
    assert outputs[-1] == Finished({peer(1): 2}, 0, ())


def test_ordinals_go_out_once_and_come_back_with_a_lost_award() -> None:
    auction = started(3, ordinals=(2, 0, 1))
    bidding(auction, (1, 30, 2), (2, 20, 1), (3, 10, 1), (4, 5, 1))
    assert auction.poll(0.25) == [
        SendAward(bid(1, 30, 2), 1, (0,)),
        SendAward(bid(2, 20, 1), 1, (1,)),
        SendAward(bid(3, 10, 1), 1, (2,)),
    ]
    assert auction.receive(AwardUnreachable(peer(2)), 0.3) == [SendAward(bid(4, 5, 1), 1, (1,))]


def test_what_a_machine_did_not_deploy_of_its_award_is_short_again() -> None:
    auction = started(2, ordinals=(0, 1))
    bidding(auction, (1, 30, 2))
    auction.poll(0.25)
    outputs = auction.receive(EventReceived(event(1, DEPLOYED, ("redis-1",))), 0.3)
    assert outputs == [Placed(peer(1), ("redis-1",), 1), PublishTender(2, 16)]
    bidding(auction, (2, 30, 2), now=0.4)
    assert auction.poll(0.6) == [SendAward(bid(2, 30, 2), 1, (0,))]


def test_a_late_deployment_is_taken_while_wanted_and_surplus_after() -> None:
    for replaced in (False, True):
        auction = started()
        bidding(auction, (2, 20, 1))
        auction.poll(0.25)
        assert auction.poll(5.25) == [PublishTender(2, 16)]
        if replaced:
            bidding(auction, (1, 20, 1), now=5.3)
            auction.poll(5.5)
        outputs = auction.receive(EventReceived(event(2, DEPLOYED, ("a",))), 6.0)
        if replaced:
            assert outputs == [Surplus(peer(2), ("a",))]
        else:
            assert outputs[0] == Placed(peer(2), ("a",), 1)
            assert isinstance(outputs[1], Finished)
        assert auction.receive(EventReceived(event(2, DEPLOYED, ("a",))), 6.1) == []


def test_reasons_say_what_went_wrong() -> None:
    auction = started(config=AuctionConfig(max_rounds=1))
    bidding(auction, (1, 10, 1))
    auction.poll(0.25)
    [finished] = auction.receive(AwardRefused(peer(1), "award.full"), 0.3)
    assert isinstance(finished, Finished)
    assert finished.unplaced == 1
    assert finished.reasons == (
        f"{peer(1)}: refused: award.full",
        "1 of 1 replicas found no machine in 1 rounds",
    )


def test_illegal_events_raise_and_change_nothing() -> None:
    auction = Auction(TENDER_ID, 1)
    with pytest.raises(LocalProtocolError, match="AwardAccepted is not legal while idle"):
        auction.receive(AwardAccepted(peer(1)), 0.0)
    auction.receive(Start(), 0.0)
    before = auction.next_timeout()
    with pytest.raises(LocalProtocolError, match="Start is not legal while collecting"):
        auction.receive(Start(), 0.1)
    assert auction.next_timeout() == before


@pytest.mark.parametrize(("replicas", "ordinals"), [(0, ()), (2, (1,)), (2, (1, 1))])
def test_nonsense_is_refused_at_once(replicas: int, ordinals: tuple[int, ...]) -> None:
    with pytest.raises(LocalProtocolError):
        Auction(TENDER_ID, replicas, ordinals=ordinals)


def test_the_award_table_has_no_way_out_of_placed() -> None:
    assert all(state is not AwardState.PLACED for state, _ in AWARD_TABLE)
    assert set(Signal) == {signal for _, signal in AWARD_TABLE}
