"""Scripts of replicas that have lost their storage, and of those that hear of it."""

from __future__ import annotations

import pytest
from leadership_support import CONFIG, due, leading, rejoined, replica, said, started, tell

from magik_proto import leadership as lead
from magik_proto.leadership import (
    Heartbeat,
    HeartbeatReply,
    LeaderChanged,
    LeaseHeld,
    LeaseLost,
    Life,
    NewGeneration,
    Persist,
    PreVote,
    PreVoteReply,
    Rejoin,
    RequestVote,
    Role,
    Send,
    Start,
    Stored,
    Token,
    VoteReply,
)


def test_who_lost_its_storage_votes_only_after_a_majority_knows() -> None:
    machine = replica(own=2, lost=True)
    rejoin = machine.receive(Start(), 0.0)
    own = machine.stored.incarnation
    asked = (Send(0, Rejoin(own)), Send(1, Rejoin(own)))
    assert rejoin == [Persist(machine.stored, asked)], "so that it does not outbid itself in its next life"
    assert machine.role is Role.RECOVERING
    assert tell(machine, 0, RequestVote(9, 1, 0, True), 8.0) == []
    assert tell(machine, 0, Heartbeat(9, 1, 1, (3,)), 8.0) == []
    assert tell(machine, 0, Rejoin(5), 8.0) == [], "it can vouch for nobody"
    assert machine.poll(0.4) == []
    assert machine.poll(due(machine)) == list(asked), "asked again"
    assert replica(own=2, stored=machine.stored).receive(Start(), 0.0) == rejoin, "in the next life, too"
    assert machine.stored.voters == (), "what it knew of the voters is lost, too"
    assert tell(machine, 0, rejoined(own, 7), 8.0) == []
    assert tell(machine, 1, rejoined(own - 1, 9), 8.0) == [], "an answer to an earlier life"
    stored = Stored(1, (3,), incarnation=own, term=7, vote=2)
    assert tell(machine, 1, rejoined(own, 4), 8.0) == [Persist(stored)]
    assert tell(machine, 0, RequestVote(7, 1, 0, True), 20.0) == [Send(0, VoteReply(7, False))]
    assert tell(machine, 1, rejoined(own, 4), 8.0) == []


def test_who_lost_its_storage_takes_the_newest_configuration_and_hears_a_majority_of_it() -> None:
    """The manifest says 3, there were 5 since, and one of those that answer knows."""
    machine = replica(own=2, lost=True)
    machine.receive(Start(), 0.0)
    own = machine.stored.incarnation
    assert tell(machine, 0, rejoined(own, 9, 1, (3,), 8), 0.1) == []
    assert tell(machine, 1, rejoined(own, 9, 2, (5,), 9), 0.1) == [], "two of three, but not three of five"
    assert machine.poll(due(machine)) == [Send(other, Rejoin(own)) for other in (0, 1, 3, 4)]
    stored = Stored(2, (5,), since=9, incarnation=own, term=9, vote=2)
    assert tell(machine, 4, rejoined(own, 3, 0, (), 0), 0.6) == [Persist(stored)], "a learner vouches, too"


def test_the_newest_configuration_is_the_latest_leaders_not_the_highest_generation() -> None:
    machine = replica(own=2, lost=True)
    machine.receive(Start(), 0.0)
    own = machine.stored.incarnation
    tell(machine, 0, rejoined(own, 4, 3, (7, 3), 2), 0.1)
    tell(machine, 1, rejoined(own, 4, 2, (3,), 4), 0.1)
    assert (machine.stored.generation, machine.stored.voters, machine.stored.since) == (2, (3,), 4)


def test_while_nobody_knows_who_votes_a_lost_storage_stays_lost() -> None:
    machine = replica(own=2, lost=True)
    machine.receive(Start(), 0.0)
    own = machine.stored.incarnation
    for source in (0, 1):
        assert tell(machine, source, rejoined(own, 0, 0, (), 0), 0.1) == []
    assert machine.role is Role.RECOVERING


def test_each_count_of_a_change_must_vouch_and_a_lone_voter_has_nobody() -> None:
    machine = replica(5, own=0, lost=True)
    machine.receive(Start(), 0.0)
    own = machine.stored.incarnation
    for source in (2, 3, 4):
        assert tell(machine, source, rejoined(own, 4, 2, (5, 3), 2), 0.1) == [], "three of five, one of three"
    assert tell(machine, 1, rejoined(own, 4, 2, (5, 3), 2), 0.1) != []
    lone = replica(3, own=0, lost=True)
    lone.receive(Start(), 0.0)
    for source in (1, 2):
        assert tell(lone, source, rejoined(lone.stored.incarnation, 4, 2, (1, 3), 2), 0.1) == []
    assert lone.role is Role.RECOVERING, "it may have led alone since, or let others in"


def test_a_life_after_another_takes_a_later_incarnation() -> None:
    machine = replica(own=2, lost=True)
    machine.receive(Start(), 0.0)
    earlier = machine.stored.incarnation + (5 << 32)
    again = tell(machine, 0, rejoined(earlier, 1), 0.1)
    assert machine.stored.incarnation > earlier
    asked = (Send(0, Rejoin(machine.stored.incarnation)), Send(1, Rejoin(machine.stored.incarnation)))
    assert again == [Persist(machine.stored, asked)]


def test_an_incarnation_is_stored_before_it_is_acknowledged() -> None:
    machine = started(stored=Stored(1, (3,), term=3))
    (stored,) = tell(machine, 2, Rejoin(50), 1.0)
    expected = Stored(1, (3,), term=3, incarnations={2: 50})
    assert stored == Persist(expected, (Send(2, rejoined(50, 3)),))
    again = lead.MessageReceived(2, Rejoin(50), Life(50))
    assert machine.receive(again, 1.0) == [Send(2, rejoined(50, 3))]
    assert tell(machine, 2, Rejoin(40), 1.0) == [Send(2, rejoined(50, 3))], "a late word of an earlier life"


def test_votes_of_an_earlier_life_are_void() -> None:
    machine = started(5)
    machine.poll(due(machine))
    for voter in (1, 2):
        tell(machine, voter, PreVoteReply(1, True), 4.0)
    assert machine.role is Role.CANDIDATE
    tell(machine, 1, VoteReply(1, True), 4.0)
    machine.receive(lead.MessageReceived(3, VoteReply(1, True), Life(0, {1: 9})), 4.0)
    assert machine.role is Role.CANDIDATE, "3 says that 1 has lost its storage since"
    tell(machine, 4, VoteReply(1, True), 4.0)
    assert machine.role is Role.LEADER


def test_an_earlier_life_is_heard_no_more() -> None:
    """Its pod may go on, on the other side of a partition: neither its votes nor its answers nor its leading count."""
    machine = started(stored=Stored(1, (3,), term=3, incarnations={2: 50}))
    for message in (RequestVote(4, 1, 0, True), Heartbeat(4, 1, 1, (3,)), PreVote(4, 1, 0, True)):
        assert said(machine, 2, message, 9.0, Life(49)) == []
    assert said(machine, 2, RequestVote(4, 1, 0, True), 9.0, Life(50))[-1].then == (
        Send(2, VoteReply(4, True)),
    )


def test_answers_of_a_life_that_is_over_hold_no_lease() -> None:
    machine, now = leading(5)
    assert said(machine, 1, HeartbeatReply(1, 1, 1), now + 0.1, Life(0)) == []
    told = Life(0, {1: 9})
    assert said(machine, 2, HeartbeatReply(1, 1, 1), now + 0.1, told) == [], "2 tells that 1 has a later life"
    assert said(machine, 1, HeartbeatReply(1, 1, 1), now + 0.1, Life(0)) == []
    assert said(machine, 1, HeartbeatReply(1, 1, 1), now + 0.2, Life(9)) == [
        LeaseHeld(Token(1, 1), now + 3.0)
    ]


def test_who_hears_of_a_later_life_of_its_own_ordinal_has_lost_all() -> None:
    machine, now = leading(3)
    said(machine, 1, HeartbeatReply(1, 1, 1), now + 0.1, Life())
    outputs = said(machine, 2, HeartbeatReply(1, 1, 1), now + 0.2, Life(0, {0: 5 << 32}))
    assert outputs == [LeaseLost(), LeaderChanged(None), Persist(machine.stored)]
    assert machine.role is Role.RECOVERING and machine.token(now + 0.2) is None
    assert machine.stored.incarnation > 5 << 32 and machine.stored.voters == ()
    assert due(machine) == now + 0.2 + CONFIG.promise_s, "the other is given time to be let in"


def test_who_is_let_in_promises_from_then_on() -> None:
    machine = replica(own=2, lost=True)
    machine.receive(Start(), 0.0)
    own = machine.stored.incarnation
    for voter in (0, 1):
        tell(machine, voter, rejoined(own, 7), 100.0)
    assert tell(machine, 0, RequestVote(8, 1, 0, True), 100.0 + 2.9) == [Send(0, VoteReply(7, False))]
    assert tell(machine, 0, RequestVote(8, 1, 0, True), 100.0 + 3.0)[-1].then == (
        Send(0, VoteReply(8, True)),
    )


@pytest.mark.parametrize("voters", [(1,), (3, 1), (2,), (3, 2)])
def test_the_first_of_one_or_two_is_not_let_in_and_not_ended(voters: tuple[int, ...]) -> None:
    machine = started(own=2, stored=Stored(1, voters))
    assert tell(machine, 0, Rejoin(9), 1.0) == []
    assert tell(machine, 1, Rejoin(9), 1.0) != []


def test_who_lost_its_storage_learns_again_whose_lives_it_had_recorded() -> None:
    machine = replica(5, own=4, lost=True)
    machine.receive(Start(), 0.0)
    for voter in (0, 1, 2):
        reply = rejoined(machine.stored.incarnation, 7, voters=(5,))
        said(machine, voter, reply, 1.0, Life(0, {3: 50} if voter == 2 else {}))
    assert machine.role is Role.FOLLOWER and machine.stored.incarnations == {3: 50}


def test_earlier_lives_let_nobody_in() -> None:
    """Each of a family of earlier lives could let the others' twins in, beside a family of the later ones."""
    machine = replica(5, own=4, lost=True)
    machine.receive(Start(), 0.0)
    vouch = rejoined(machine.stored.incarnation, 7, voters=(5,))
    assert said(machine, 0, rejoined(machine.stored.incarnation, 9, voters=(5,)), 1.0, Life()) == []
    assert said(machine, 1, vouch, 1.0, Life()) == []
    assert said(machine, 2, vouch, 1.1, Life(0, {0: 50})) == [], "2 has recorded that the life of 0 is over"
    assert said(machine, 0, vouch, 1.2, Life()) == [], "an earlier life is not heard"
    assert [send.to for send in machine.poll(due(machine))] == [0, 1, 2, 3], "the others are asked again"
    said(machine, 0, vouch, 1.3, Life(50))
    assert machine.role is Role.FOLLOWER
    assert (machine.stored.term, machine.stored.incarnations) == (7, {0: 50}), (
        "what the earlier one told is void"
    )


def test_of_two_the_first_lets_the_second_in() -> None:
    second = replica(2, own=1, lost=True)
    second.receive(Start(), 0.0)
    own = second.stored.incarnation
    first = started(2)
    (stored,) = tell(first, 1, Rejoin(own), 0.1)
    reply = rejoined(own, 0, voters=(2,))
    assert stored == Persist(Stored(1, (2,), incarnations={1: own}), (Send(1, reply),))
    tell(second, 0, reply, 0.1)
    assert second.role is Role.FOLLOWER
    assert tell(second, 0, RequestVote(1, 1, 0, True), 3.0) == [Send(0, VoteReply(0, False))], "it promises"


def test_of_two_in_a_change_the_second_needs_majorities_of_the_other_number_too() -> None:
    second = replica(2, own=1, lost=True)
    second.receive(Start(), 0.0)
    own = second.stored.incarnation
    assert tell(second, 0, rejoined(own, 3, 2, (2, 3), 2), 0.1) == []
    assert tell(second, 2, rejoined(own, 3, 1, (3,), 2), 0.1) != []
    assert (second.role, second.stored.voters) == (Role.FOLLOWER, (2, 3))


def test_the_first_of_two_does_not_come_back_and_a_lone_one_neither() -> None:
    two = replica(2, lost=True)
    two.receive(Start(), 0.0)
    assert tell(two, 1, rejoined(two.stored.incarnation, 3, voters=(2,)), 0.1) == []
    assert two.role is Role.RECOVERING, "behind a partition each could let a twin of the other in"
    one = replica(1, lost=True)
    assert one.receive(Start(), 0.0) == [Persist(one.stored)]
    assert one.receive(NewGeneration(2, 3), 1.0) == []
    assert one.poll(due(one)) == [Send(other, Rejoin(one.stored.incarnation)) for other in (1, 2)]
    for learner in (1, 2):
        assert tell(one, learner, rejoined(one.stored.incarnation, 0, 0, ()), 2.0) == []
    assert one.role is Role.RECOVERING, "nobody else knows what it had promised"
