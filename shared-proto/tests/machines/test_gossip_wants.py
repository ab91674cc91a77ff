"""Asking for messages, of one peer at a time."""

from magik_proto.gossip_wants import MAX_OTHERS, Wants
from magik_proto.identity import PeerId
from magik_proto.testing.builders import peer

A, B, C = peer(1), peer(2), peer(3)


def equal(_: PeerId) -> float:
    return 0.0


def test_the_next_who_has_it_is_asked_and_the_first_has_broken_its_word() -> None:
    wants = Wants(1.0, 3.0, 99.0, 100)
    assert wants.told(b"k", A, 0.0)
    assert not wants.told(b"k", B, 0.5)
    assert not wants.told(b"k", A, 0.9), "it was asked already"
    assert wants.tick(1.0, equal) == ({B: [b"k"]}, [])
    assert wants.tick(2.0, equal) == ({}, [])
    assert wants.tick(3.0, equal) == ({}, [A])
    assert wants.came(b"k", B), "B kept its word"
    assert not wants.came(b"k", A)
    assert wants.tick(9.0, equal) == ({}, [])


def test_one_that_is_trusted_is_asked_at_once_if_none_was() -> None:
    wants = Wants(1.0, 3.0, 99.0, 100)
    assert wants.told(b"k", A, 0.0)
    assert wants.told(b"k", B, 0.1, trusted=True)
    assert not wants.told(b"k", C, 0.2, trusted=True)


def test_who_tells_later_is_asked_at_once_and_nobody_for_ever() -> None:
    wants = Wants(1.0, 3.0, 99.0, 100)
    wants.told(b"k", A, 0.0)
    assert wants.told(b"k", B, 1.0)
    assert wants.tick(4.0, equal) == ({}, [A, B])
    assert len(wants) == 0
    assert wants.told(b"k", A, 4.0), "it may try again"


def test_so_many_ids_are_open_with_one_peer() -> None:
    wants = Wants(1.0, 3.0, 99.0, 2)
    assert [wants.told(bytes([n]), A, 0.0) for n in range(4)] == [True, True, False, False]
    assert wants.told(b"\2", B, 0.0), "others are not held up by it"
    wants.came(b"\0", A)
    assert wants.told(b"\3", A, 0.0)
    wants.tick(3.0, equal)
    assert wants.told(b"\4", A, 3.0)


def test_of_one_that_is_gone_nothing_is_expected() -> None:
    wants = Wants(1.0, 3.0, 99.0, 100)
    for peer_ in (A, B, C):
        wants.told(b"k", peer_, 0.0)
    wants.gone(A)
    wants.gone(B)
    assert wants.tick(0.1, equal) == ({C: [b"k"]}, []), "the next at once, and no blame"
    wants.gone(C)
    assert wants.tick(0.2, equal) == ({}, [])
    assert len(wants) == 0


def test_others_are_remembered_up_to_a_limit() -> None:
    wants = Wants(1.0, 3.0, 99.0, 100)
    for number in range(99):
        wants.told(b"k", peer(number), 0.0)
    asked = [len(wants.tick(float(beat), equal)[0]) for beat in range(1, 99)]
    assert asked[:3] == [1, 2, 4], "twice as many each time"
    assert sum(asked) == MAX_OTHERS


def test_the_most_trusted_is_asked_next() -> None:
    wants = Wants(1.0, 3.0, 99.0, 100)
    for peer_ in (A, B, C):
        wants.told(b"k", peer_, 0.0)
    assert wants.tick(1.0, lambda p: {B: -1.0, C: 2.0}[p]) == ({C: [b"k"]}, [])


def test_who_told_too_long_ago_is_not_asked_for_it_has_forgotten_too() -> None:
    wants = Wants(1.0, 3.0, 5.0, 100)
    wants.told(b"k", A, 0.0)
    wants.told(b"k", B, 0.5)
    assert wants.tick(5.5, equal) == ({}, [A])
    assert len(wants) == 0


def test_who_tells_again_is_asked_again_but_has_no_more_time() -> None:
    wants = Wants(1.0, 3.0, 5.0, 100)
    assert wants.told(b"k", A, 0.0)
    assert not wants.told(b"k", A, 0.9)
    assert wants.told(b"k", A, 1.0)
    assert wants.told(b"k", A, 2.9)
    assert wants.tick(3.0, equal) == ({}, [A])
