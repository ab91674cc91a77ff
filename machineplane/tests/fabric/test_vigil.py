"""Watching over machines, crawling from one to the next, and telling the index: what decides, without I/O."""

import pytest

from machineplane.fabric.crawl import Crawl, Named, named_from_wire
from machineplane.fabric.index import IMAGE, LIVES, WORKLOAD, Agenda
from machineplane.fabric.vigil import AGAIN_S, LOST_PERIOD_S, PERIOD_S, SILENCE_S, Vigil
from magik_mesh.testing import identity_of

A, B, C, D = (identity_of(n).peer_id for n in range(1, 5))
WEB = frozenset({"default/Deployment/web"})


def test_who_is_watched_over_is_asked_at_once_and_then_again() -> None:
    vigil = Vigil()
    vigil.want({A: WEB}, 0.0)
    assert vigil.due(0.0) == [(A, WEB)]
    assert vigil.due(60.0) == [], "it is being asked"
    vigil.answered(A, 1.0)
    assert vigil.due(0.9 + PERIOD_S) == [] and vigil.due(1.0 + PERIOD_S) == [(A, WEB)]


def test_the_more_machines_the_seldomer_each() -> None:
    vigil = Vigil()
    vigil.want({identity_of(n).peer_id: WEB for n in range(1, 161)}, 0.0)
    assert vigil.period == 20.0


def test_more_to_know_of_a_machine_is_asked_for_at_once() -> None:
    vigil = Vigil()
    vigil.want({A: WEB}, 0.0)
    vigil.due(0.0)
    vigil.answered(A, 0.0)
    more = WEB | {"default/Pod/once"}
    vigil.want({A: more}, 1.0)
    assert vigil.due(1.0) == [(A, more)]


def test_a_machine_is_lost_after_three_failures_and_ten_seconds_and_back_with_one_answer() -> None:
    vigil = Vigil()
    vigil.want({A: WEB}, 0.0)
    now, lost = 0.0, []
    while not vigil.is_lost(A):
        if vigil.due(now):
            lost.append(vigil.failed(A, now))
            assert not vigil.due(now + AGAIN_S - 0.1)
        now += 1.0
    assert now > SILENCE_S and lost.count(True) == 1 and len(lost) >= 3
    assert vigil.due(now + AGAIN_S) == [] and vigil.due(now + LOST_PERIOD_S) == [(A, WEB)]
    assert vigil.failed(A, now + LOST_PERIOD_S) is False, "it was lost before"
    vigil.answered(A, now + 40)
    assert not vigil.is_lost(A)
    assert vigil.failed(A, now + 50) is False


def test_one_answer_between_failures_begins_anew() -> None:
    vigil = Vigil()
    vigil.want({A: WEB}, 0.0)
    for now in (0.0, 6.0, 12.0, 18.0):
        assert vigil.failed(A, now) is False
        vigil.answered(A, now + 1)


def test_failures_of_others_count_too_and_who_is_not_wanted_any_more_is_not_asked() -> None:
    vigil = Vigil()
    assert [vigil.failed(B, now) for now in (0.0, 1.0, 2.0, 11.0)] == [False, False, False, True]
    vigil.want({A: WEB}, 0.0)
    vigil.want({}, 1.0)
    assert vigil.due(100.0) == [] and not vigil.is_watched(A)


def test_a_crawl_asks_each_once_and_knows_who_is_missing() -> None:
    crawl = Crawl(A, frozenset({D}))
    assert [n.peer for n in crawl.fresh([Named(B, connected=True), Named(A), Named(C)])] == [B, C]
    assert crawl.fresh([Named(C), Named(B)]) == []
    crawl.answered(B)
    assert crawl.lacking == 1, "D was there not long ago; C is hearsay"
    crawl.fresh([Named(C, connected=True)])
    assert crawl.lacking == 2 and "2 of 4 machines" in crawl.warning()
    crawl.answered(C)
    crawl.answered(D)
    assert crawl.warning() == ""


def test_a_crawl_ends_at_its_limit_and_says_so() -> None:
    crawl = Crawl(A, machines_max=1)
    assert len(crawl.fresh([Named(B), Named(C)])) == 1
    crawl.answered(B)
    assert crawl.lacking == 1


def test_contacts_travel_and_nonsense_is_refused() -> None:
    named = (Named(B, ("10.0.0.1:4001",), True), Named(C))
    assert named_from_wire([one.to_wire() for one in named]) == named
    for wire in (
        None,
        [[b"short", [], True]],
        [[B.raw, ["host"], True]],
        [[B.raw, [1], True]],
        [[B.raw]] * 200,
    ):
        with pytest.raises(ValueError, match=r"contacts|peer id"):
            named_from_wire(wire)


def test_what_is_there_is_told_at_once_and_renewed_within_its_life() -> None:
    agenda = Agenda(lambda: 0.5)
    web, image = (WORKLOAD, "default/Deployment/web"), (IMAGE, "sha256:ab")
    agenda.have([web, image], 0.0)
    assert agenda.take_due(0.0) == [web, image] and agenda.take_due(99.0) == []
    assert agenda.take_due(LIVES[WORKLOAD].renewed_s) == [web]
    agenda.have([image], 150.0)
    assert agenda.take_due(5000.0) == [image], "what is gone is not renewed"
    for life in LIVES.values():
        assert 2 * 1.25 * life.renewed_s < life.life_s, "one renewal may be lost"
