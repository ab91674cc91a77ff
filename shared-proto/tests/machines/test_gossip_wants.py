"""Asking for messages, of one peer at a time."""

import pytest

from magik_proto.gossip_wants import MAX_OTHERS, Wants, Worth
from magik_proto.identity import PeerId
from magik_proto.testing.builders import peer

A, B, C = peer(1), peer(2), peer(3)
USEFUL = (1.0, 0.5)


def equal(_: PeerId) -> Worth:
    return 0.0, 0.0


def wants(again_s: float = 1.0, kept_s: float = 99.0, per_peer: int = 100) -> Wants:
    return Wants(again_s, 3.0, kept_s, per_peer)


def test_the_next_who_has_it_is_asked_and_the_first_has_broken_its_word() -> None:
    w = wants()
    assert w.told(b"k", A, 0.0)
    assert not w.told(b"k", B, 0.5)
    assert not w.told(b"k", A, 0.9), "it was asked already"
    assert w.tick(1.0, equal) == {B: [b"k"]}
    assert w.tick(2.0, equal) == {}
    assert w.broken() == []
    assert w.tick(3.0, equal) == {}
    assert w.broken() == [A]
    assert w.broken() == [], "told once"
    assert w.came(b"k", B), "B kept its word"
    assert not w.came(b"k", A)
    assert w.tick(9.0, equal) == {}
    assert w.broken() == []


def test_it_says_when_the_next_is_to_be_asked_and_when_a_word_is_broken() -> None:
    w = wants(again_s=0.25)
    assert w.next_timeout() is None
    w.told(b"k", A, 10.0)
    assert w.next_timeout() == 13.0, "there is nobody else to ask"
    w.told(b"k", B, 10.1)
    assert w.next_timeout() == 10.25
    assert w.tick(10.2, equal) == {}
    assert w.tick(10.25, equal) == {B: [b"k"]}
    assert w.next_timeout() == 13.0
    w.came(b"k", B)
    assert w.next_timeout() is None


def test_it_does_not_ask_to_be_called_without_end_while_nobody_may_be_asked() -> None:
    w = wants(again_s=0.25, per_peer=1)
    w.told(b"j", B, 0.0)
    w.told(b"k", A, 0.0)
    w.told(b"k", B, 0.1)
    now = 0.0
    for _ in range(20):
        due = w.next_timeout()
        if due is None:
            break
        assert due > now
        now = due
        w.tick(now, equal)
    assert due is None
    assert len(w) == 0


def test_one_that_was_of_use_is_asked_at_once_if_none_was() -> None:
    w = wants()
    assert w.told(b"k", A, 0.0)
    assert w.told(b"k", B, 0.1, USEFUL)
    assert not w.told(b"k", C, 0.2, USEFUL)


def test_one_that_owes_as_much_as_it_gave_is_not_asked_at_once() -> None:
    w = wants()
    w.told(b"j", B, 0.0, USEFUL)
    assert w.told(b"k", A, 0.0)
    assert not w.told(b"k", B, 0.1, USEFUL)


def test_who_tells_later_is_asked_at_once_and_nobody_for_ever() -> None:
    w = wants()
    w.told(b"k", A, 0.0)
    assert w.told(b"k", B, 1.0)
    assert w.tick(4.0, equal) == {}
    assert w.broken() == [A, B]
    assert len(w) == 0
    assert w.told(b"k", A, 4.0), "it may try again"


def test_so_many_ids_are_open_with_one_peer() -> None:
    w = wants(per_peer=2)
    assert [w.told(bytes([n]), A, 0.0) for n in range(4)] == [True, True, False, False]
    assert w.told(b"\2", B, 0.0), "others are not held up by it"
    w.came(b"\0", A)
    assert w.told(b"\3", A, 0.0)
    w.tick(3.0, equal)
    assert w.told(b"\4", A, 3.0)


def test_of_one_that_is_gone_nothing_is_expected() -> None:
    w = wants()
    for peer_ in (A, B, C):
        w.told(b"k", peer_, 0.0)
    w.gone(A, 0.1)
    w.gone(B, 0.1)
    assert w.next_timeout() == 0.1
    assert w.tick(0.1, equal) == {C: [b"k"]}, "the next at once"
    w.gone(C, 0.2)
    assert w.tick(0.2, equal) == {}
    assert w.broken() == [], "and no blame"
    assert len(w) == 0


def test_others_are_remembered_up_to_a_limit() -> None:
    w = wants()
    for number in range(99):
        w.told(b"k", peer(number), 0.0)
    asked = [len(w.tick(float(beat), equal)) for beat in range(1, 99)]
    assert asked[:3] == [1, 2, 4], "twice as many each time"
    assert sum(asked) == MAX_OTHERS


@pytest.mark.parametrize(
    "worth",
    [{B: (0.0, -1.0), C: (0.0, 2.0)}, {B: (0.0, 9.0), C: (1.0, 0.0)}, {B: (-1.0, 9.0), C: (0.0, 0.0)}],
)
def test_those_of_use_are_asked_next_then_those_of_best_score(worth: dict[PeerId, Worth]) -> None:
    w = wants()
    for peer_ in (A, B, C):
        w.told(b"k", peer_, 0.0)
    assert w.tick(1.0, worth.__getitem__) == {C: [b"k"]}


def test_who_owes_us_messages_is_asked_last() -> None:
    w = wants()
    w.told(b"j", B, 0.0)
    for peer_ in (A, B, C):
        w.told(b"k", peer_, 0.0)
    assert w.tick(1.0, equal) == {C: [b"k"]}


def test_who_told_too_long_ago_is_not_asked_for_it_has_forgotten_too() -> None:
    w = wants(kept_s=5.0)
    w.told(b"k", A, 0.0)
    w.told(b"k", B, 0.5)
    assert w.tick(5.5, equal) == {}
    assert w.broken() == [A]
    assert len(w) == 0


def test_who_tells_again_is_asked_again_but_has_no_more_time() -> None:
    w = wants(again_s=0.25)
    assert w.told(b"k", A, 0.0)
    assert not w.told(b"k", A, 0.9)
    assert w.told(b"k", A, 1.0)
    assert w.told(b"k", A, 2.9)
    assert w.tick(3.0, equal) == {}
    assert w.broken() == [A]
