"""What holds for whatever comes."""

import random
from collections.abc import Sequence

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from magik_proto.auction import (
    Auction,
    AuctionConfig,
    AuctionOutput,
    AwardAccepted,
    AwardRefused,
    AwardUnreachable,
    BidderGone,
    BidReceived,
    EventReceived,
    Finished,
    SendAward,
    Start,
)
from magik_proto.bidder import AwardReceived, BidDeclined, Bidder, Deployed, MakeBid, TenderSeen
from magik_proto.codec import decode, encode
from magik_proto.errors import RemoteProtocolError
from magik_proto.gossip_frames import Frame, parse_frame, to_value
from magik_proto.messages import Bid, EventType
from magik_proto.placement import PPM, Capacity, Readings, choose_winners, needs, score, slots
from magik_proto.testing import strategies
from magik_proto.testing.builders import TENDER_ID, award, bid, event, machine, peer, tender

few_bids = st.lists(st.builds(bid, st.integers(0, 8), st.integers(0, 5), st.integers(1, 4)), max_size=12)


@given(
    few_bids,
    st.integers(1, 30),
    st.dictionaries(st.integers(0, 8).map(peer), st.integers(0, 5)),
    st.randoms(),
)
def test_winners_do_not_depend_on_the_order_and_keep_within_bids(
    bids: list[Bid], replicas: int, taken: dict[object, int], order: random.Random
) -> None:
    winners = choose_winners(bids, replicas, taken)  # type: ignore[arg-type]
    again = list(bids)
    order.shuffle(again)
    assert choose_winners(again, replicas, taken) == winners  # type: ignore[arg-type]
    assert all(1 <= count <= won.slots for won, count in winners)
    assert len({won.node_id for won, _ in winners}) == len(winners)
    best: dict[object, Bid] = {}
    for one in sorted(bids, key=lambda b: (-b.score, -b.slots)):
        best.setdefault(one.node_id, one)
    room = sum(one.slots for one in best.values())
    assert sum(count for _, count in winners) == min(replicas, room)


@given(few_bids, st.integers(1, 30))
def test_nobody_doubles_up_while_another_has_room(bids: list[Bid], replicas: int) -> None:
    winners = choose_winners(bids, replicas)
    most = max((count for _, count in winners), default=0)
    assert all(count >= most - 1 or count == won.slots for won, count in winners)


@given(strategies.requirements, st.integers(0, 1 << 40), st.integers(0, 200), st.integers(0, 200))
def test_slots_fit_and_scores_are_ppm(wanted: object, amount: int, pods: int, limit: int) -> None:
    free = Capacity(amount % 64_000, amount, amount, pods)
    count = slots(wanted, free, limit)  # type: ignore[arg-type]
    assert 0 <= count <= limit
    assert count == 0 or free.covers(needs(wanted) * count)  # type: ignore[arg-type]
    worth = score(wanted, free, free, Readings(amount, -amount, 5))  # type: ignore[arg-type]
    assert all(0 <= part <= PPM for part in attrs.astuple(worth))


nodes = st.integers(0, 4)
steps = st.one_of(
    st.tuples(st.just("bid"), nodes, st.integers(1, 3)),
    st.tuples(
        st.sampled_from(("accept", "refuse", "unreachable", "gone", "deploy", "fail")), nodes, st.just(0)
    ),
    st.tuples(st.just("wait"), st.sampled_from((0, 1, 6, 130)), st.just(0)),
)
_EVENTS = {
    "bid": lambda node, count: BidReceived(bid(node, node, count)),
    "accept": lambda node, _: AwardAccepted(peer(node)),
    "refuse": lambda node, _: AwardRefused(peer(node), "no"),
    "unreachable": lambda node, _: AwardUnreachable(peer(node)),
    "gone": lambda node, _: BidderGone(peer(node)),
    "deploy": lambda node, _: EventReceived(event(node, EventType.Deployed)),
    "fail": lambda node, _: EventReceived(event(node, EventType.Failed)),
}


@settings(max_examples=150)
@given(st.lists(steps, max_size=40), st.integers(1, 5), st.booleans())
def test_an_auction_always_ends_and_gives_out_no_more_than_was_bid(
    script: Sequence[tuple[str, int, int]], replicas: int, numbered: bool
) -> None:
    ordinals = tuple(range(replicas)) if numbered else ()
    auction = Auction(TENDER_ID, replicas, ordinals=ordinals, config=AuctionConfig(), expected_bidders=5)
    outputs: list[AuctionOutput] = auction.receive(Start(), 0.0)
    now = 0.0
    for kind, node, count in script:
        now += node if kind == "wait" else 0.01
        outputs += auction.poll(now) if kind == "wait" else auction.receive(_EVENTS[kind](node, count), now)
    while (deadline := auction.next_timeout()) is not None:
        outputs += auction.poll(deadline)
    finished = [output for output in outputs if isinstance(output, Finished)]
    assert len(finished) == 1
    assert sum(finished[0].placed.values()) + finished[0].unplaced == replicas
    for sent in (output for output in outputs if isinstance(output, SendAward)):
        assert 1 <= sent.replicas <= sent.bid.slots
        assert len(sent.ordinals) == (sent.replicas if numbered else 0)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from(("tender", "award", "done", "decline", "wait")), nodes), max_size=40)
)
def test_a_bidder_never_promises_more_than_it_has_and_gets_all_back(
    script: Sequence[tuple[str, int]],
) -> None:
    bidder, now, nonce = Bidder(machine(1)), 0.0, 0
    promised: dict[int, int] = {}
    for kind, number in script:
        now, nonce = now + 0.1, nonce + 1
        key = attrs.evolve(tender(9), id=_uuid(number))
        match kind:
            case "tender":
                for made in bidder.receive(TenderSeen(attrs.evolve(key, round=nonce), 3), now):
                    promised[number] = made.slots if isinstance(made, MakeBid) else 0
            case "award":
                given_now = award(9, 1, promised.get(number) or 1, id=_uuid(number), nonce=nonce)
                bidder.receive(AwardReceived(given_now), now)
            case "done" if bidder.state(_uuid(number)).value == "deploying":
                bidder.receive(Deployed(_uuid(number)), now)
            case "decline":
                bidder.receive(BidDeclined(_uuid(number)), now)
            case "wait":
                now += 11
                bidder.poll(now)
        assert all(amount >= 0 for amount in bidder.free.amounts())
    for number in range(5):
        if bidder.state(_uuid(number)).value == "deploying":
            bidder.receive(Deployed(_uuid(number)), now)
    bidder.poll(now + 100)
    assert bidder.reserved == Capacity()


def _uuid(number: int):  # type: ignore[no-untyped-def]
    return type(TENDER_ID)(int=number)


topics = st.text("abc-", min_size=1, max_size=8)
ids = st.lists(st.binary(min_size=32, max_size=32), max_size=3).map(tuple)
frames = st.builds(
    Frame,
    subscribe=st.lists(st.tuples(topics, st.booleans()), max_size=3).map(tuple),
    publish=st.lists(st.tuples(topics, st.binary(max_size=9)), max_size=3).map(tuple),
    ihave=st.lists(st.tuples(topics, ids), max_size=3).map(tuple),
    iwant=ids,
    graft=st.lists(topics, max_size=3).map(tuple),
    prune=st.lists(st.tuples(topics, st.integers(0, 3600)), max_size=3).map(tuple),
    idontwant=ids,
)


@given(frames)
def test_frames_survive_the_wire(frame: Frame) -> None:
    assert parse_frame(decode(encode(to_value(frame)))) == frame


plain = st.recursive(
    st.none() | st.booleans() | st.integers(0, 99) | st.binary(max_size=33) | topics,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(Frame._fields)), inner),
    max_leaves=10,
)


@given(plain)
def test_any_value_is_a_frame_or_the_peers_error(value: object) -> None:
    try:
        parse_frame(value)
    except RemoteProtocolError as error:
        assert error.rule == "gossip.frame"


@given(strategies.messages)
def test_the_strategies_make_valid_messages(message: object) -> None:
    assert message == attrs.evolve(message)  # type: ignore[type-var]
