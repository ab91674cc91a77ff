"""Scripts of one replica: what it is told, and what must come out, storage before speech."""

from __future__ import annotations

from itertools import pairwise

import attrs
import pytest

from magik_proto import leadership as lead
from magik_proto.errors import LocalProtocolError, RemoteProtocolError
from magik_proto.leadership import (
    Heartbeat,
    HeartbeatReply,
    LeaderChanged,
    Leadership,
    LeadershipConfig,
    LeaseHeld,
    LeaseLost,
    Life,
    NewGeneration,
    Persist,
    PreVote,
    PreVoteReply,
    Rejoin,
    RejoinReply,
    RequestVote,
    Role,
    Send,
    Start,
    Stored,
    Token,
    VoteReply,
)
from magik_proto.testing.seeded import SeededRandom

CONFIG = LeadershipConfig(lease_s=3.0, heartbeat_s=0.5, max_drift=0.0, election_s=0.5)


def replica(voters: int = 3, own: int = 0, stored: Stored | None = None, *, lost: bool = False) -> Leadership:
    kept = None if lost else stored or lead.new_voter(1, voters)
    return Leadership(own, 1, voters, kept, SeededRandom(own), CONFIG)


def started(voters: int = 3, own: int = 0, stored: Stored | None = None) -> Leadership:
    machine = replica(voters, own, stored)
    machine.receive(Start(), 0.0)
    return machine


def tell(machine: Leadership, source: int, message: lead.Message, now: float) -> list[lead.LeadershipOutput]:
    return machine.receive(lead.MessageReceived(source, message), now)


def leading(voters: int = 3) -> tuple[Leadership, float]:
    """A replica that has just been elected, and when."""
    machine = started(voters)
    now = due(machine)
    machine.poll(now)
    for voter in range(1, voters // 2 + 1):
        tell(machine, voter, PreVoteReply(1, True), now)
    for voter in range(1, voters // 2 + 1):
        tell(machine, voter, VoteReply(1, True), now)
    assert machine.role is Role.LEADER
    return machine, now


def rejoined(
    incarnation: int, term: int, generation: int = 1, voters: tuple[int, ...] = (3,), since: int = 0
) -> RejoinReply:
    return RejoinReply(incarnation, term, generation, voters, since)


def due(machine: Leadership) -> float:
    when = machine.next_timeout()
    assert when is not None
    return when


def test_an_election_from_start_to_lease() -> None:
    machine = replica()
    assert machine.receive(Start(), 0.0) == [Persist(Stored(1, (3,)))]
    now = due(machine)
    assert 3.5 <= now <= 4.0, "after what a former life may have promised"
    assert machine.poll(now - 0.01) == []
    assert machine.poll(now) == [Send(1, PreVote(1, 1, 0, True)), Send(2, PreVote(1, 1, 0, True))]
    asked = tell(machine, 1, PreVoteReply(1, True), now + 0.1)
    stored = Stored(1, (3,), term=1, vote=0)
    assert asked == [
        Persist(stored, (Send(1, RequestVote(1, 1, 0, True)), Send(2, RequestVote(1, 1, 0, True))))
    ]
    won = tell(machine, 2, VoteReply(1, True), now + 0.2)
    beat = Heartbeat(1, 1, 1, (3,))
    stamped = attrs.evolve(stored, since=1)
    assert won == [LeaderChanged(0), Persist(stamped), Send(1, beat), Send(2, beat)]
    assert (machine.leader, machine.token(now + 0.2)) == (0, None), "elected, but nobody has answered yet"
    held = tell(machine, 1, HeartbeatReply(1, 1, 1), now + 0.9)
    assert held == [LeaseHeld(Token(1, 1), now + 3.2)], "counted from when the heartbeat was sent"
    assert machine.token(now + 3.1) == Token(1, 1)
    assert machine.token(now + 3.2) is None


def test_a_lease_is_renewed_and_lost() -> None:
    machine, now = leading()
    tell(machine, 1, HeartbeatReply(1, 1, 1), now)
    assert tell(machine, 2, HeartbeatReply(1, 1, 1), now) == [], "the same round gives no more"
    later = due(machine)
    assert later == now + 0.5
    assert machine.poll(later) == [Send(1, Heartbeat(1, 1, 2, (3,))), Send(2, Heartbeat(1, 1, 2, (3,)))]
    assert tell(machine, 2, HeartbeatReply(1, 1, 2), later + 1) == [LeaseHeld(Token(1, 1), later + 3)]
    end = later + 3.0
    for _ in range(5):
        machine.poll(due(machine))
    assert machine.poll(end) == [LeaseLost(), LeaderChanged(None)]
    assert (machine.role, machine.token(end)) == (Role.FOLLOWER, None)


def test_an_old_round_counts_from_its_own_time_and_a_forgotten_one_not_at_all() -> None:
    machine, now = leading()
    machine.poll(now + 0.5)
    assert tell(machine, 1, HeartbeatReply(1, 1, 2), now + 0.6) == [LeaseHeld(Token(1, 1), now + 3.5)]
    assert tell(machine, 1, HeartbeatReply(1, 1, 1), now + 0.7) == [], "would be shorter"
    for step in range(2, 9):
        machine.poll(now + step * 0.5)
        tell(machine, 1, HeartbeatReply(1, 1, step + 1), now + step * 0.5)
    assert tell(machine, 1, HeartbeatReply(1, 1, 1), now + 4.1) == []
    assert tell(machine, 1, HeartbeatReply(1, 1, 99), now + 4.1) == []
    assert tell(machine, 1, HeartbeatReply(1, 1, None), now + 4.1) == []


def test_a_leader_that_nobody_answers_gives_up() -> None:
    machine, now = leading()
    assert machine.poll(now + 2.99) != []
    assert machine.poll(now + 3.0) == [LeaderChanged(None)]


def test_a_vote_is_stored_before_it_is_sent_and_given_once_a_term() -> None:
    machine = started(own=2)
    stored = Stored(1, (3,), term=4, vote=0)
    granted = VoteReply(4, True)
    assert tell(machine, 0, RequestVote(4, 1, 0, True), 3.0) == [Persist(stored, (Send(0, granted),))]
    assert tell(machine, 1, RequestVote(4, 1, 0, True), 3.1) == [Send(1, VoteReply(4, False))]
    assert tell(machine, 0, RequestVote(4, 1, 0, True), 3.1) == [Persist(stored, (Send(0, granted),))]
    assert tell(machine, 1, RequestVote(3, 1, 0, True), 3.1) == [Send(1, VoteReply(4, False))]
    again = started(own=2, stored=stored)
    assert tell(again, 1, RequestVote(4, 1, 0, True), 9.0) == [Send(1, VoteReply(4, False))], (
        "over a restart too"
    )


def test_no_vote_within_a_promise() -> None:
    machine = started(own=2)
    assert tell(machine, 0, RequestVote(1, 1, 0, True), 2.9) == [Send(0, VoteReply(0, False))], "just started"
    assert tell(machine, 0, PreVote(1, 1, 0, True), 2.9) == [Send(0, PreVoteReply(0, False))]
    assert tell(machine, 0, PreVote(1, 1, 0, True), 3.0) == [Send(0, PreVoteReply(1, True))]
    beat = tell(machine, 0, Heartbeat(2, 1, 7, (3,)), 5.0)
    reply = Send(0, HeartbeatReply(2, 1, 7))
    assert beat == [LeaderChanged(0), Persist(Stored(1, (3,), since=2, term=2), (reply,))]
    assert tell(machine, 1, RequestVote(3, 1, 0, True), 7.9) == [Send(1, VoteReply(2, False))]
    assert tell(machine, 1, PreVote(3, 1, 0, True), 7.9) == [Send(1, PreVoteReply(2, False))]
    assert machine.stored.term == 2, "a candidate that nobody needs moves no term"
    (vote,) = tell(machine, 1, RequestVote(3, 1, 2, True), 8.0)[1:]
    assert isinstance(vote, Persist)
    assert vote.then == (Send(1, VoteReply(3, True)),)


def test_the_drift_of_clocks_lengthens_promises() -> None:
    assert LeadershipConfig(lease_s=3.0, max_drift=0.5).promise_s == pytest.approx(9.0)
    for bad in ({"lease_s": 0.5}, {"max_drift": 1.0}, {"heartbeat_s": 0.0}, {"election_s": 0.0}):
        with pytest.raises(LocalProtocolError):
            attrs.evolve(CONFIG, **bad)


def test_a_heartbeat_of_an_earlier_term_promises_nothing() -> None:
    machine = started(own=2, stored=Stored(1, (3,), term=5))
    assert tell(machine, 0, Heartbeat(4, 1, 1, (3,)), 4.0) == [Send(0, HeartbeatReply(5, 1, None))]
    assert tell(machine, 1, PreVote(6, 1, 0, True), 4.0) == [Send(1, PreVoteReply(6, True))]


def test_heartbeats_of_a_known_leader_need_no_storage() -> None:
    machine = started(own=2)
    tell(machine, 0, Heartbeat(1, 1, 1, (3,)), 4.0)
    assert tell(machine, 0, Heartbeat(1, 1, 2, (3,)), 4.5) == [Send(0, HeartbeatReply(1, 1, 2))]
    assert machine.poll(7.4) == []
    assert machine.poll(due(machine))[0] == LeaderChanged(None)


OLDER = [(2, 3, True), (3, 2, True), (2, 4, False), (0, 0, False)]
AS_NEW = [(2, 4, True), (3, 4, False), (1, 5, False), (1, 5, True)]


@pytest.mark.parametrize(("asks", "granted"), [*((a, False) for a in OLDER), *((a, True) for a in AS_NEW)])
def test_votes_only_for_a_configuration_as_new(asks: tuple[int, int, bool], granted: bool) -> None:
    """(generation, since, settled): by who vouched for it last, then the generation, then whether it is settled. The
    generation alone does not do: one that a cut-off leader stored, and nobody else, would outrank what others settled."""
    # The voter has generation 2, settled, of the leader of term 4.
    machine = started(own=2, stored=Stored(2, (3,), since=4, term=5))
    answer = PreVoteReply(6 if granted else 5, granted)
    assert tell(machine, 0, PreVote(6, *asks), 4.0) == [Send(0, answer)]
    (vote,) = tell(machine, 0, RequestVote(6, *asks), 4.0)
    if granted:
        stored = Stored(2, (3,), since=4, term=6, vote=0)
        assert vote == Persist(stored, (Send(0, VoteReply(6, True)),))
    else:
        assert vote == Send(0, VoteReply(5, False))


def test_a_candidate_asks_with_its_own_configuration() -> None:
    machine = started(stored=Stored(3, (5, 3), since=4, term=6))
    asked = machine.poll(due(machine))
    assert asked == [Send(other, PreVote(7, 3, 4, False)) for other in (1, 2, 3, 4)]
    tell(machine, 1, PreVoteReply(7, True), 4.0)
    request = tell(machine, 3, PreVoteReply(7, True), 4.0)
    then = tuple(Send(other, RequestVote(7, 3, 4, False)) for other in (1, 2, 3, 4))
    assert request == [Persist(Stored(3, (5, 3), since=4, term=7, vote=0), then)]


@pytest.mark.parametrize("reply", [PreVoteReply(8, False), VoteReply(8, False)])
def test_a_refusal_tells_the_term(reply: lead.Message) -> None:
    machine = started()
    machine.poll(due(machine))
    assert tell(machine, 1, reply, 4.0) == [Persist(Stored(1, (3,), term=8))]
    assert machine.role is Role.FOLLOWER
    assert tell(machine, 1, PreVoteReply(3, False), 4.0) == []


def test_a_leader_hears_of_a_later_term() -> None:
    machine, now = leading()
    tell(machine, 1, HeartbeatReply(1, 1, 1), now)
    lost = tell(machine, 2, HeartbeatReply(6, 1, None), now + 1)
    assert lost == [LeaseLost(), LeaderChanged(None), Persist(Stored(1, (3,), since=1, term=6))]
    assert tell(machine, 1, HeartbeatReply(6, 1, 1), now + 1) == [], "not leading any more"


def test_replies_that_do_not_fit_are_ignored() -> None:
    machine = started()
    assert tell(machine, 1, PreVoteReply(1, True), 1.0) == []
    assert tell(machine, 1, VoteReply(0, True), 1.0) == []
    machine.poll(due(machine))
    assert tell(machine, 1, VoteReply(1, True), 4.0) == []
    assert tell(machine, 1, PreVoteReply(2, True), 4.0) == []


def test_an_election_that_fails_is_tried_again() -> None:
    machine = started()
    machine.poll(due(machine))
    assert Send(1, PreVote(1, 1, 0, True)) in machine.poll(due(machine)), "nobody answered"
    tell(machine, 1, PreVoteReply(1, True), 5.0)
    assert machine.role is Role.CANDIDATE
    assert Send(1, PreVote(2, 1, 0, True)) in machine.poll(due(machine)), "votes were split"


def test_a_candidate_follows_who_was_elected() -> None:
    machine = started()
    machine.poll(due(machine))
    tell(machine, 1, PreVoteReply(1, True), 4.0)
    followed = tell(machine, 2, Heartbeat(1, 1, 1, (3,)), 4.1)
    stored = Stored(1, (3,), since=1, term=1, vote=0)
    assert followed == [LeaderChanged(2), Persist(stored, (Send(2, HeartbeatReply(1, 1, 1)),))]


def test_five_need_three() -> None:
    machine = started(5)
    now = due(machine)
    machine.poll(now)
    assert tell(machine, 4, PreVoteReply(1, True), now) == []
    assert tell(machine, 4, PreVoteReply(1, True), now) == [], "one voice each"
    assert tell(machine, 3, PreVoteReply(1, True), now) != []


def test_a_lone_voter_leads_at_once() -> None:
    machine = started(1)
    now = due(machine)
    assert machine.poll(now) == [
        Persist(Stored(1, (1,), term=1, vote=0)),
        LeaderChanged(0),
        Persist(Stored(1, (1,), since=1, term=1, vote=0)),
        LeaseHeld(Token(1, 1), now + 3),
    ]
    assert machine.poll(now + 0.5) == [LeaseHeld(Token(1, 1), now + 3.5)]


# -- lost storage ----------------------------------------------------------------------------------


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


def said(
    machine: Leadership, source: int, message: lead.Message, now: float, life: Life
) -> list[lead.LeadershipOutput]:
    return machine.receive(lead.MessageReceived(source, message, life), now)


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


# -- changing the number of voters -----------------------------------------------------------------


def test_growing_needs_majorities_of_both() -> None:
    machine, now = leading()
    tell(machine, 1, HeartbeatReply(1, 1, 1), now)
    joint = Stored(2, (5, 3), since=1, term=1, vote=0)
    assert machine.receive(NewGeneration(2, 5), now) == [Persist(joint)]
    beats = machine.poll(now + 0.5)
    assert beats == [Send(other, Heartbeat(1, 2, 2, (5, 3))) for other in (1, 2, 3, 4)]
    tell(machine, 3, HeartbeatReply(1, 2, 2), now + 0.6)
    assert tell(machine, 4, HeartbeatReply(1, 2, 2), now + 0.6) == [], "three of five, but one of three"
    held = tell(machine, 1, HeartbeatReply(1, 1, 2), now + 0.6)
    assert held[-1] == LeaseHeld(Token(1, 1), now + 3.5), "1 has not stored the generation: the old token"
    settled = tell(machine, 1, HeartbeatReply(1, 2, 2), now + 0.7)
    assert settled == [Persist(attrs.evolve(joint, voters=(5,))), LeaseHeld(Token(2, 1), now + 3.5)]
    assert machine.poll(now + 1.0)[0] == Send(1, Heartbeat(1, 2, 3, (5,)))


def test_a_round_from_before_the_change_renews_the_old_token_only() -> None:
    machine, now = leading()
    tell(machine, 1, HeartbeatReply(1, 1, 1), now)
    machine.poll(now + 0.5)
    machine.receive(NewGeneration(2, 3), now + 0.6)
    held = tell(machine, 1, HeartbeatReply(1, 1, 2), now + 0.7)
    assert held == [LeaseHeld(Token(1, 1), now + 3.5)]
    assert machine.stored.voters == (3, 3), "the same number is settled in the same way"


def test_one_change_after_the_other() -> None:
    machine, now = leading()
    tell(machine, 1, HeartbeatReply(1, 1, 1), now)
    machine.receive(NewGeneration(2, 3), now)
    assert machine.receive(NewGeneration(4, 5), now) == [], "one is under way"
    assert machine.receive(NewGeneration(3, 1), now) == [], "an older wish"
    machine.poll(now + 0.5)
    answered = tell(machine, 2, HeartbeatReply(1, 2, 2), now + 0.6)
    assert answered == [
        Persist(Stored(2, (3,), since=1, term=1, vote=0)),
        LeaseHeld(Token(2, 1), now + 3.5),
        Persist(Stored(4, (5, 3), since=1, term=1, vote=0)),
    ]


def test_only_a_leader_with_a_lease_begins_a_change() -> None:
    machine = started()
    assert machine.receive(NewGeneration(2, 5), 0.0) == []
    now = due(machine)
    assert machine.poll(now) == [Send(1, PreVote(1, 1, 0, True)), Send(2, PreVote(1, 1, 0, True))]
    tell(machine, 1, PreVoteReply(1, True), now)
    assert machine.receive(NewGeneration(3, 7), now) == [], "the votes are for the one before"
    tell(machine, 1, VoteReply(1, True), now)
    assert machine.receive(NewGeneration(4, 5), now) == []
    held = tell(machine, 1, HeartbeatReply(1, 1, 1), now)
    assert held == [LeaseHeld(Token(1, 1), now + 3), Persist(Stored(4, (5, 3), since=1, term=1, vote=0))]


def test_a_manifest_known_at_the_start_is_a_wish() -> None:
    machine = Leadership(0, 2, 3, lead.new_voter(1, 1), SeededRandom(1), CONFIG)
    machine.receive(Start(), 0.0)
    machine.poll(due(machine))
    assert (machine.stored.generation, machine.stored.voters) == (2, (3, 1))


def test_a_leader_elected_in_a_change_has_no_lease_before_it_is_settled() -> None:
    machine = started(stored=Stored(3, (1, 3), since=4, term=4))
    now = due(machine)
    machine.poll(now)
    tell(machine, 1, PreVoteReply(5, True), now)
    won = tell(machine, 1, VoteReply(5, True), now)
    assert won[1] == Persist(Stored(3, (1, 3), since=5, term=5, vote=0)), "its own from now on"
    assert machine.token(now) is None
    assert tell(machine, 1, HeartbeatReply(5, 2, 1), now) == [], "who has not stored it does not count"
    settled = Persist(Stored(3, (1,), since=5, term=5, vote=0))
    assert tell(machine, 2, HeartbeatReply(5, 3, 1), now) == [settled, LeaseHeld(Token(3, 5), now + 3)]


def test_a_follower_takes_its_leaders_configuration_and_no_older_one() -> None:
    machine = started(own=1)
    assert machine.receive(NewGeneration(2, 5), 0.0) == [], "a wish"
    joint = Stored(2, (5, 3), since=1, term=1)
    reply = Send(0, HeartbeatReply(1, 2, 1))
    told = tell(machine, 0, Heartbeat(1, 2, 1, (5, 3)), 4.0)
    assert told == [LeaderChanged(0), Persist(joint, (reply,))], "stored before it is answered"
    tell(machine, 0, Heartbeat(1, 2, 3, (5,)), 4.0)
    assert machine.stored == attrs.evolve(joint, voters=(5,))
    late = tell(machine, 0, Heartbeat(1, 2, 2, (5, 3)), 4.0)
    assert late == [Send(0, HeartbeatReply(1, 2, 2))], "a late one"
    tell(machine, 2, Heartbeat(2, 1, 1, (3,)), 4.0)
    assert machine.stored == Stored(1, (3,), since=2, term=2), "of a later leader: the other was in vain"


def test_a_learner_votes_and_stands_only_when_it_was_told_who_votes() -> None:
    machine = started(own=3, stored=lead.new_learner())
    machine.receive(NewGeneration(2, 5), 0.0)
    assert machine.poll(due(machine)) == []
    assert machine.role is Role.FOLLOWER
    (vote,) = tell(machine, 4, RequestVote(3, 2, 1, False), 5.0)
    assert vote == Persist(Stored(0, (), term=3, vote=4), (Send(4, VoteReply(3, True)),))
    tell(machine, 4, Heartbeat(3, 2, 1, (5, 3)), 6.0)
    assert machine.stored == Stored(2, (5, 3), since=3, term=3, vote=4)
    assert Send(0, PreVote(4, 2, 3, False)) in machine.poll(due(machine))


def test_two_learners_cannot_elect_each_other() -> None:
    """What overlapped: replicas of a later generation that held it for settled, beside a leader of the earlier one."""
    for own in (1, 2):
        machine = Leadership(own, 3, 3, lead.new_learner(), SeededRandom(own), CONFIG)
        machine.receive(Start(), 0.0)
        for _ in range(3):
            assert machine.poll(due(machine)) == []


def test_who_is_no_voter_any_more_stands_for_nothing() -> None:
    machine = started(own=2, stored=Stored(2, (1,), since=1, term=1))
    assert machine.poll(due(machine)) == []
    assert machine.role is Role.FOLLOWER


def test_wishes_only_rise_and_have_voters() -> None:
    machine, now = leading()
    tell(machine, 1, HeartbeatReply(1, 1, 1), now)
    for generation, voters in ((1, 3), (0, 5)):
        assert machine.receive(NewGeneration(generation, voters), now) == []
    for voters in (0, 100):
        with pytest.raises(LocalProtocolError):
            machine.receive(NewGeneration(2, voters), now)


# -- what is not allowed ---------------------------------------------------------------------------


def test_illegal_events_change_nothing() -> None:
    machine = replica()
    with pytest.raises(LocalProtocolError):
        tell(machine, 1, PreVote(1, 1, 0, True), 0.0)
    machine.receive(Start(), 0.0)
    with pytest.raises(LocalProtocolError):
        machine.receive(Start(), 0.0)
    for source in (-1, 0, 99):
        with pytest.raises(RemoteProtocolError, match=r"leadership\.not-a-replica"):
            tell(machine, source, PreVote(1, 1, 0, True), 0.0)
    for ordinal, voters in ((-1, 3), (0, 0), (0, 100), (99, 3)):
        with pytest.raises(LocalProtocolError):
            Leadership(ordinal, 1, voters, None, SeededRandom(1))


def test_the_table_leaves_out_what_would_be_wrong() -> None:
    reach = lead.TRANSITIONS
    assert Role.LEADER not in reach[Role.FOLLOWER] | reach[Role.PRE_CANDIDATE] | reach[Role.RECOVERING]
    assert all(Role.IDLE not in targets for targets in reach.values())
    machine = started()
    with pytest.raises(LocalProtocolError, match="no way"):
        machine._become(Role.LEADER)
    assert [a.value for a, b in pairwise([Role.FOLLOWER, Role.CANDIDATE]) if b in reach[a]] == []
