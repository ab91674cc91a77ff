"""The hash table of one peer, told event by event."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magik_proto.dht import MAX_CHECKS, MAX_TRIES, Dht, DhtConfig
from magik_proto.dht_types import (
    Answered,
    Ask,
    Cancel,
    DhtEvent,
    DhtOutput,
    Find,
    FindPeer,
    Found,
    Get,
    Got,
    Joined,
    LookedUp,
    LookUp,
    PeerFailed,
    PeerFound,
    PeerProved,
    Put,
    PutDone,
    Reply,
    RequestReceived,
    Store,
    Stored,
    Unanswered,
)
from magik_proto.errors import LocalProtocolError
from magik_proto.kademlia import Contact, key_of, position
from magik_proto.testing.builders import peer
from magik_proto.testing.seeded import SeededRandom
from magik_proto.testing.tables import judge_toy, toy_record

KEY = key_of(b"a key")
OWN = Contact(peer(0), ("10.0.0.1:4001",))


def contact(number: int) -> Contact:
    return Contact(peer(number), (f"10.0.{number >> 8}.{number & 255}:4001",))


def table(config: DhtConfig | None = None) -> Dht:
    return Dht(OWN, SeededRandom(1), judge_toy, config)


def asks(outputs: list[DhtOutput]) -> list[Ask]:
    return [output for output in outputs if isinstance(output, Ask)]


def joined(dht: Dht, *numbers: int) -> None:
    """Peers prove themselves, and know nobody."""
    waiting: list[DhtOutput] = []
    for number in numbers:
        waiting += dht.receive(PeerProved(contact(number)), 0.0)
    while asked := asks(waiting):
        waiting = [out for ask in asked for out in dht.receive(Answered(ask.query, Found()), 0.0)]


def settle(dht: Dht, outputs: list[DhtOutput]) -> list[Ask]:
    """Nobody knows anybody else: answers every find, and gives the stores that follow."""
    stores: list[Ask] = []
    while waiting := asks(outputs):
        outputs = []
        for ask in waiting:
            if isinstance(ask.request, Store):
                stores.append(ask)
            else:
                outputs += dht.receive(Answered(ask.query, Found()), 0.0)
    return stores


class TestOnePeer:
    def test_the_first_peer_starts_a_lookup_of_the_own_position_and_then_it_has_joined(self) -> None:
        dht = table()
        (ask,) = asks(dht.receive(PeerProved(contact(1)), 0.0))
        assert (ask.to.peer, ask.request) == (peer(1), Find(position(OWN.peer)))
        (output,) = dht.receive(Answered(ask.query, Found()), 0.1)
        assert isinstance(output, Joined)
        assert [c.peer for c in output.closest] == [peer(1)]
        assert (len(dht.table), dht.size_estimate()) == (1, 2)

    def test_a_stranger_that_asks_is_called_back_before_it_is_named_to_others(self) -> None:
        dht = table()
        joined(dht, 1)
        outputs = dht.receive(RequestReceived(contact(2), 7, Find(KEY)), 1.0)
        reply, ask = outputs
        assert isinstance(reply, Reply)
        assert (reply.call, [c.peer for c in reply.answer.peers]) == (7, [peer(1)])  # type: ignore[union-attr]
        assert isinstance(ask, Ask)
        assert (ask.to.peer, peer(2) in dht.table) == (peer(2), False)
        dht.receive(Answered(ask.query, Found()), 1.1)
        assert peer(2) in dht.table

    def test_a_stranger_that_cannot_be_called_back_is_named_to_nobody(self) -> None:
        dht = table()
        joined(dht, 1)
        (_, ask) = dht.receive(RequestReceived(contact(2), 7, Find(KEY)), 1.0)
        assert isinstance(ask, Ask)
        dht.receive(Unanswered(ask.query), 1.1)
        assert peer(2) not in dht.table
        assert asks(dht.receive(RequestReceived(Contact(peer(3)), 8, Find(KEY)), 1.2)) == []

    def test_a_putter_hands_the_record_to_the_nearest_replaces_who_fails_and_remembers_the_keepers(
        self,
    ) -> None:
        dht = table(DhtConfig(replicas=2))
        joined(dht, *range(1, 6))
        key, number = KEY, int.from_bytes(KEY, "big")
        near = sorted(map(contact, range(6)), key=lambda c: c.place ^ number)
        near = [c for c in near if c.peer != OWN.peer or near.index(c) < 2]
        record = toy_record(OWN.peer, 1, 500.0, key, "service")
        stores = settle(dht, dht.receive(Put(1, record), 0.0))
        expected = [c.peer for c in near if c.peer != OWN.peer][:2]
        assert {ask.to.peer for ask in stores} <= set(expected)
        first, *rest = stores
        outputs = dht.receive(Unanswered(first.query), 0.1)
        for ask in [*rest, *asks(outputs)]:
            outputs += dht.receive(Answered(ask.query, Stored(("",))), 0.2)
        (done,) = [output for output in outputs if isinstance(output, PutDone)]
        assert (done.id, done.stored, done.refused) == (1, 2, ("dht.unreachable",))

    def test_the_next_renewal_goes_to_the_same_keepers_without_a_search(self) -> None:
        dht = table(DhtConfig(replicas=2))
        joined(dht, 1, 2, 3)
        finds: list[int] = []
        for seq, now in ((1, 0.0), (2, 5.0), (3, 70.0)):
            outputs = dht.receive(Put(seq, toy_record(OWN.peer, seq, 500.0, KEY, "service")), now)
            finds.append(sum(isinstance(ask.request, Find) for ask in asks(outputs)))
            for ask in settle(dht, outputs):
                dht.receive(Answered(ask.query, Stored(("",))), now)
        assert (finds[0] > 0, finds[1], finds[2] > 0) == (True, 0, True), "after a minute it looks again"

    def test_a_record_that_is_none_is_kept_by_nobody_and_said_so(self) -> None:
        assert table().receive(Put(3, toy_record(OWN.peer, 1, 0.0)), 1.0) == [PutDone(3, 0, ("dht.expired",))]

    def test_what_is_answered_under_another_key_or_of_another_kind_does_not_count(self) -> None:
        dht = table()
        joined(dht, 1)
        outputs = dht.receive(Get(5, KEY, "service"), 0.0)
        (ask,) = asks(outputs)
        lies = (
            toy_record(peer(8), 1, 9.0, key_of(b"other"), "service"),
            toy_record(peer(8), 1, 9.0),
            toy_record(peer(8), 1, 0.0, KEY, "service"),
        )
        truth = toy_record(peer(9), 1, 9.0, KEY, "service")
        outputs = dht.receive(Answered(ask.query, Found(records=(*lies, truth))), 1.0)
        assert outputs == [Got(5, (truth,), 1)]

    def test_of_each_signer_the_record_that_outranks_the_others_counts(self) -> None:
        dht = table(DhtConfig(enough=2))
        joined(dht, 1, 2)
        outputs = dht.receive(Get(5, KEY, "service"), 0.0)
        old, new = (toy_record(peer(9), seq, 9.0, KEY, "service") for seq in (1, 2))
        for ask, record in zip(asks(outputs), (new, old), strict=True):
            outputs += dht.receive(Answered(ask.query, Found(records=(record,))), 0.5)
        assert [output for output in outputs if isinstance(output, Got)] == [Got(5, (new,), 2)]

    def test_a_newcomer_gets_the_records_that_it_is_nearest_to_from_the_nearest_holder(self) -> None:
        def newcomer(nearest: Contact, other: Contact) -> Contact:
            """One that `nearest` is nearer to than `other`."""
            each = map(contact, range(2, 100))
            return next(c for c in each if nearest.place ^ c.place < other.place ^ c.place)

        for nearest, other, hands_over in ((OWN, contact(1), True), (contact(1), OWN, False)):
            dht = table()
            joined(dht, 1)
            new = newcomer(nearest, other)
            record = toy_record(new.peer, 1, 90.0)
            dht.receive(RequestReceived(Contact(peer(1)), 1, Store((record,))), 1.0)
            outputs = dht.receive(PeerProved(new), 2.0)
            handed = [ask.request for ask in asks(outputs) if isinstance(ask.request, Store)]
            assert handed == ([Store((record,))] if hands_over else [])

    def test_silence_is_given_up_and_a_late_answer_changes_nothing(self) -> None:
        dht = table()
        (ask,) = asks(dht.receive(PeerProved(contact(1)), 0.0))
        assert dht.next_timeout() == 1.0
        (output,) = dht.poll(1.0)
        assert isinstance(output, Joined)
        assert dht.next_timeout() == 5.0
        dht.poll(5.0)
        assert (len(dht.table), dht.table.stale()) == (0, (peer(1),))
        assert dht.receive(Answered(ask.query, Found()), 6.0) == []

    def test_a_stale_peer_is_tried_again_and_comes_back(self) -> None:
        dht = table(DhtConfig(refresh_s=60.0))
        joined(dht, 1, 2)
        dht.receive(PeerFailed(peer(2)), 1.0)
        assert dht.table.stale() == (peer(2),)
        now = dht.next_timeout()
        assert now is not None
        assert 45.0 <= now <= 75.0
        (ask,) = [ask for ask in asks(dht.poll(now)) if ask.to.peer == peer(2)]
        dht.receive(Answered(ask.query, Found()), now)
        assert dht.table.stale() == ()

    def test_a_finding_too_thin_to_be_true_is_looked_for_again_and_what_the_first_asked_is_forgotten(
        self,
    ) -> None:
        dht = table(DhtConfig(k=4, paths=4))
        joined(dht, *range(1, 200))
        slow, *others = asks(dht.receive(LookUp(9, KEY), 0.0))
        for ask in others:
            assert dht.receive(Unanswered(ask.query), 0.1) == []
        dht.receive(PeerFailed(slow.to.peer), 0.2)
        outputs = dht.poll(1.0)
        again = asks(outputs)
        assert len(again) == len(outputs) == 4, "nobody answered: four others are asked"
        assert not {ask.to.peer for ask in again} & {ask.to.peer for ask in (slow, *others)}
        assert asks(dht.receive(Answered(slow.query, Found((contact(500),))), 1.1)) == []
        rounds = 0
        while again:
            told = [out for ask in again for out in dht.receive(Answered(ask.query, Found()), 1.2)]
            again, rounds = asks(told), rounds + 1
        assert [type(output) for output in told] == [LookedUp]
        assert rounds <= MAX_TRIES

    def test_nobody_waits_any_more(self) -> None:
        dht = table()
        joined(dht, 1)
        (ask,) = asks(dht.receive(LookUp(4, KEY), 0.0))
        dht.receive(Cancel(4), 0.1)
        assert dht.receive(Answered(ask.query, Found()), 0.2) == []
        with pytest.raises(LocalProtocolError, match="under way"):
            dht.receive(LookUp(5, KEY), 0.3)
            dht.receive(FindPeer(5, peer(9)), 0.3)

    def test_a_flood_of_strangers_has_few_called_back_at_once(self) -> None:
        dht = table()
        joined(dht, 1)
        outputs: list[DhtOutput] = []
        for number in range(2, 200):
            outputs += dht.receive(RequestReceived(contact(number), number, Find(KEY)), 1.0)
        assert len(asks(outputs)) == MAX_CHECKS

    def test_a_flood_of_identities_into_a_bucket_takes_nobodys_place(self) -> None:
        dht = table()
        honest = [n for n in range(1, 200) if dht.table.bucket_of(peer(n)) == 0][:20]
        joined(dht, *honest)
        for number in [n for n in range(1000, 1600) if dht.table.bucket_of(peer(n)) == 0]:
            assert asks(dht.receive(RequestReceived(contact(number), number, Find(KEY)), 1.0)) == []
            for ask in asks(dht.receive(PeerProved(contact(number)), 1.0)):
                dht.receive(Answered(ask.query, Found()), 1.0)
        assert all(peer(n) in dht.table for n in honest)


events = st.lists(
    st.tuples(st.sampled_from(("proved", "failed", "asked", "stored", "find", "look", "get", "put", "answer",
                               "lie", "fail", "cancel", "poll")), st.integers(1, 60), st.floats(0.0, 9.0)),
    max_size=80,
)  # fmt: skip


@settings(max_examples=150)
@given(events, st.integers(0, 1 << 32))
def test_whatever_happens_every_request_ends_once_and_memory_is_bounded(
    steps: list[tuple[str, int, float]], seed: int
) -> None:
    dht = Dht(OWN, SeededRandom(seed), judge_toy, DhtConfig(k=4, replicas=2, paths=2))
    now, number = 0.0, 100
    waiting: list[Ask] = []
    wanted: set[int] = set()
    ended: list[int] = []

    def take(outputs: list[DhtOutput]) -> None:
        waiting.extend(asks(outputs))
        ended.extend(o.id for o in outputs if isinstance(o, LookedUp | PeerFound | Got | PutDone))

    for what, which, passes in steps:
        now, number = now + passes, number + 1
        take(dht.poll(now))
        record = toy_record(peer(which), number, now + 50, key_of(bytes([which])), "service")
        who = contact(which)
        match what:
            case "proved":
                take(dht.receive(PeerProved(who), now))
            case "failed":
                take(dht.receive(PeerFailed(who.peer), now))
            case "asked" | "stored":
                request = Find(KEY, "service") if what == "asked" else Store((record,))
                outputs = dht.receive(RequestReceived(who, number, request), now)
                assert [o.call for o in outputs if isinstance(o, Reply)] == [number]
                take(outputs)
            case "find" | "look" | "get" | "put":
                makes: dict[str, DhtEvent] = {
                    "find": FindPeer(number, who.peer),
                    "look": LookUp(number, KEY),
                    "get": Get(number, KEY, "service"),
                    "put": Put(number, record),
                }
                wanted.add(number)
                take(dht.receive(makes[what], now))
            case "cancel" if wanted - set(ended):
                gone = max(wanted - set(ended))
                wanted.discard(gone)
                take(dht.receive(Cancel(gone), now))
            case "answer" | "lie" | "fail" if waiting:
                ask = waiting.pop(which % len(waiting))
                peers = tuple(contact(n) for n in range(which, which + 30))
                answer = Found(peers, (record,)) if what == "answer" else Stored(("",))
                take(
                    dht.receive(Unanswered(ask.query) if what == "fail" else Answered(ask.query, answer), now)
                )
    for _ in range(200):
        now += 6.0
        waiting.clear()
        take(dht.poll(now))
        if wanted <= set(ended):
            break
    assert sorted(ended) == sorted(wanted)
    assert len(dht._queries) <= 50
    assert len(dht.table) <= 4 * 12
