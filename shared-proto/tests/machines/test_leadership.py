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
        tell(machine, voter, VoteReply(1, True, 0), now)
    assert machine.role is Role.LEADER
    return machine, now


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
    assert machine.poll(now) == [Send(1, PreVote(1, 1)), Send(2, PreVote(1, 1))]
    asked = tell(machine, 1, PreVoteReply(1, True), now + 0.1)
    stored = Stored(1, (3,), term=1, vote=0)
    assert asked == [Persist(stored, (Send(1, RequestVote(1, 1)), Send(2, RequestVote(1, 1))))]
    won = tell(machine, 2, VoteReply(1, True, 0), now + 0.2)
    beat = Heartbeat(1, 1, 1, True)
    assert won == [LeaderChanged(0), Send(1, beat), Send(2, beat)]
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
    assert machine.poll(later) == [Send(1, Heartbeat(1, 1, 2, True)), Send(2, Heartbeat(1, 1, 2, True))]
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
    granted = VoteReply(4, True, 0)
    assert tell(machine, 0, RequestVote(4, 1), 3.0) == [Persist(stored, (Send(0, granted),))]
    assert tell(machine, 1, RequestVote(4, 1), 3.1) == [Send(1, VoteReply(4, False, 0))]
    assert tell(machine, 0, RequestVote(4, 1), 3.1) == [Persist(stored, (Send(0, granted),))]
    assert tell(machine, 1, RequestVote(3, 1), 3.1) == [Send(1, VoteReply(4, False, 0))]
    again = started(own=2, stored=stored)
    assert tell(again, 1, RequestVote(4, 1), 9.0) == [Send(1, VoteReply(4, False, 0))], "over a restart too"


def test_no_vote_within_a_promise() -> None:
    machine = started(own=2)
    assert tell(machine, 0, RequestVote(1, 1), 2.9) == [Send(0, VoteReply(0, False, 0))], "just started"
    assert tell(machine, 0, PreVote(1, 1), 2.9) == [Send(0, PreVoteReply(0, False))]
    assert tell(machine, 0, PreVote(1, 1), 3.0) == [Send(0, PreVoteReply(1, True))]
    beat = tell(machine, 0, Heartbeat(2, 1, 7, True), 5.0)
    reply = Send(0, HeartbeatReply(2, 1, 7))
    assert beat == [LeaderChanged(0), Persist(Stored(1, (3,), term=2), (reply,))]
    assert tell(machine, 1, RequestVote(3, 1), 7.9) == [Send(1, VoteReply(2, False, 0))]
    assert tell(machine, 1, PreVote(3, 1), 7.9) == [Send(1, PreVoteReply(2, False))]
    assert machine.stored.term == 2, "a candidate that nobody needs moves no term"
    (vote,) = tell(machine, 1, RequestVote(3, 1), 8.0)[1:]
    assert isinstance(vote, Persist)
    assert vote.then == (Send(1, VoteReply(3, True, 0)),)


def test_the_drift_of_clocks_lengthens_promises() -> None:
    assert LeadershipConfig(lease_s=3.0, max_drift=0.5).promise_s == pytest.approx(9.0)
    for bad in ({"lease_s": 0.5}, {"max_drift": 1.0}, {"heartbeat_s": 0.0}, {"election_s": 0.0}):
        with pytest.raises(LocalProtocolError):
            attrs.evolve(CONFIG, **bad)


def test_a_heartbeat_of_an_earlier_term_promises_nothing() -> None:
    machine = started(own=2, stored=Stored(1, (3,), term=5))
    assert tell(machine, 0, Heartbeat(4, 1, 1, True), 4.0) == [Send(0, HeartbeatReply(5, 1, None))]
    assert tell(machine, 1, PreVote(6, 1), 4.0) == [Send(1, PreVoteReply(6, True))]


def test_heartbeats_of_a_known_leader_need_no_storage() -> None:
    machine = started(own=2)
    tell(machine, 0, Heartbeat(1, 1, 1, True), 4.0)
    assert tell(machine, 0, Heartbeat(1, 1, 2, True), 4.5) == [Send(0, HeartbeatReply(1, 1, 2))]
    assert machine.poll(7.4) == []
    assert machine.poll(due(machine))[0] == LeaderChanged(None)


def test_votes_only_within_a_generation() -> None:
    machine = started(own=2)
    for other in (0, 2):
        assert tell(machine, 0, PreVote(1, other), 4.0) == [Send(0, PreVoteReply(0, False))]
        assert tell(machine, 0, RequestVote(1, other), 4.0) == [Send(0, VoteReply(0, False, 0))]


@pytest.mark.parametrize("reply", [PreVoteReply(8, False), VoteReply(8, False, 0)])
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
    assert lost == [LeaseLost(), LeaderChanged(None), Persist(Stored(1, (3,), term=6))]
    assert tell(machine, 1, HeartbeatReply(6, 1, 1), now + 1) == [], "not leading any more"


def test_replies_that_do_not_fit_are_ignored() -> None:
    machine = started()
    assert tell(machine, 1, PreVoteReply(1, True), 1.0) == []
    assert tell(machine, 1, VoteReply(0, True, 0), 1.0) == []
    machine.poll(due(machine))
    assert tell(machine, 1, VoteReply(1, True, 0), 4.0) == []
    assert tell(machine, 1, PreVoteReply(2, True), 4.0) == []


def test_an_election_that_fails_is_tried_again() -> None:
    machine = started()
    machine.poll(due(machine))
    assert Send(1, PreVote(1, 1)) in machine.poll(due(machine)), "nobody answered"
    tell(machine, 1, PreVoteReply(1, True), 5.0)
    assert machine.role is Role.CANDIDATE
    assert Send(1, PreVote(2, 1)) in machine.poll(due(machine)), "votes were split"


def test_a_candidate_follows_who_was_elected() -> None:
    machine = started()
    machine.poll(due(machine))
    tell(machine, 1, PreVoteReply(1, True), 4.0)
    followed = tell(machine, 2, Heartbeat(1, 1, 1, True), 4.1)
    assert followed == [LeaderChanged(2), Send(2, HeartbeatReply(1, 1, 1))]


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
        LeaseHeld(Token(1, 1), now + 3),
    ]
    assert machine.poll(now + 0.5) == [LeaseHeld(Token(1, 1), now + 3.5)]


# -- lost storage ----------------------------------------------------------------------------------


def test_who_lost_its_storage_votes_only_after_a_majority_knows() -> None:
    machine = replica(own=2, lost=True)
    rejoin = machine.receive(Start(), 0.0)
    own = machine.stored.incarnation
    assert rejoin == [Send(0, Rejoin(own)), Send(1, Rejoin(own))]
    assert machine.role is Role.RECOVERING
    assert tell(machine, 0, RequestVote(9, 1), 8.0) == []
    assert tell(machine, 0, Heartbeat(9, 1, 1, True), 8.0) == []
    assert tell(machine, 0, Rejoin(5), 8.0) == [], "it can vouch for nobody"
    assert machine.poll(0.4) == []
    assert machine.poll(due(machine)) == rejoin, "asked again"
    assert tell(machine, 0, RejoinReply(own, 7), 8.0) == []
    assert tell(machine, 1, RejoinReply(own - 1, 9), 8.0) == [], "an answer to an earlier life"
    stored = Stored(1, (3,), incarnation=own, term=7, vote=2)
    assert tell(machine, 1, RejoinReply(own, 4), 8.0) == [Persist(stored)]
    assert tell(machine, 0, RequestVote(7, 1), 20.0) == [Send(0, VoteReply(7, False, own))]
    assert tell(machine, 1, RejoinReply(own, 4), 8.0) == []


def test_a_life_after_another_takes_a_later_incarnation() -> None:
    machine = replica(own=2, lost=True)
    machine.receive(Start(), 0.0)
    earlier = machine.stored.incarnation + (5 << 32)
    again = tell(machine, 0, RejoinReply(earlier, 1), 0.1)
    assert machine.stored.incarnation > earlier
    assert again == [Send(0, Rejoin(machine.stored.incarnation)), Send(1, Rejoin(machine.stored.incarnation))]


def test_an_incarnation_is_stored_before_it_is_acknowledged() -> None:
    machine = started(stored=Stored(1, (3,), term=3))
    (stored,) = tell(machine, 2, Rejoin(50), 1.0)
    expected = Stored(1, (3,), term=3, incarnations={2: 50})
    assert stored == Persist(expected, (Send(2, RejoinReply(50, 3)),))
    assert tell(machine, 2, Rejoin(50), 1.0) == [Send(2, RejoinReply(50, 3))]
    assert tell(machine, 2, Rejoin(40), 1.0) == [Send(2, RejoinReply(50, 3))], (
        "a late word of an earlier life"
    )


def test_votes_of_an_earlier_life_are_void() -> None:
    machine = started(5)
    machine.poll(due(machine))
    for voter in (1, 2):
        tell(machine, voter, PreVoteReply(1, True), 4.0)
    assert machine.role is Role.CANDIDATE
    tell(machine, 1, VoteReply(1, True, 0), 4.0)
    tell(machine, 3, VoteReply(1, True, 0, {1: 9}), 4.0)
    assert machine.role is Role.CANDIDATE, "3 says that 1 has lost its storage since"
    tell(machine, 4, VoteReply(1, True, 0), 4.0)
    assert machine.role is Role.LEADER


def test_two_need_each_other_and_one_needs_a_new_generation() -> None:
    two = replica(2, own=1, lost=True)
    two.receive(Start(), 0.0)
    assert tell(two, 0, RejoinReply(two.stored.incarnation, 3), 0.1) != []
    assert two.role is Role.FOLLOWER
    one = replica(1, lost=True)
    assert one.receive(Start(), 0.0) == []
    assert one.poll(due(one)) == []
    (stored,) = one.receive(NewGeneration(2, 1), 1.0)
    assert isinstance(stored, Persist)
    assert (one.role, stored.stored.generation) == (Role.FOLLOWER, 2)


# -- changing the number of voters -----------------------------------------------------------------


def test_growing_needs_majorities_of_both() -> None:
    machine, now = leading()
    tell(machine, 1, HeartbeatReply(1, 1, 1), now)
    assert machine.receive(NewGeneration(2, 5), now) == [Persist(Stored(2, (5, 3), term=1, vote=0))]
    beats = machine.poll(now + 0.5)
    assert beats == [Send(other, Heartbeat(1, 2, 2, False)) for other in (1, 2, 3, 4)]
    tell(machine, 3, HeartbeatReply(1, 2, 2), now + 0.6)
    assert tell(machine, 4, HeartbeatReply(1, 2, 2), now + 0.6) == [], "three of five, but one of three"
    held = tell(machine, 1, HeartbeatReply(1, 1, 2), now + 0.6)
    assert held[-1] == LeaseHeld(Token(1, 1), now + 3.5), "1 has not stored the generation: the old token"
    settled = tell(machine, 1, HeartbeatReply(1, 2, 2), now + 0.7)
    assert settled == [
        Persist(Stored(2, (5,), term=1, vote=0)),
        LeaseHeld(Token(2, 1), now + 3.5),
    ]
    assert machine.poll(now + 1.0)[0] == Send(1, Heartbeat(1, 2, 3, True))


def test_a_generation_learnt_while_standing_is_not_the_tokens_yet() -> None:
    """The votes are for the one before; nobody else may have stored the new one, and a later leader may not know of it."""
    machine = started()
    now = due(machine)
    machine.poll(now)
    tell(machine, 1, PreVoteReply(1, True), now)
    assert machine.role is Role.CANDIDATE
    machine.receive(NewGeneration(2, 3), now)
    tell(machine, 1, VoteReply(1, True, 0), now)
    held = tell(machine, 1, HeartbeatReply(1, 1, 1), now)
    assert held == [LeaseHeld(Token(1, 1), now + 3)]
    settled = tell(machine, 2, HeartbeatReply(1, 2, 1), now)
    assert settled[-1] == LeaseHeld(Token(2, 1), now + 3)


def test_a_follower_settles_with_its_leader() -> None:
    machine = started(own=1)
    machine.receive(NewGeneration(2, 5), 0.0)
    tell(machine, 0, Heartbeat(1, 2, 1, False), 4.0)
    assert machine.stored.voters == (5, 3)
    tell(machine, 0, Heartbeat(1, 2, 2, True), 4.0)
    assert machine.stored.voters == (5,)


def test_who_is_no_voter_any_more_stands_for_nothing() -> None:
    machine = started(own=2)
    machine.receive(NewGeneration(2, 1), 0.0)
    assert machine.poll(due(machine)) == []
    assert machine.role is Role.FOLLOWER


def test_generations_only_rise() -> None:
    machine = started()
    for generation, voters in ((1, 3), (0, 3), (2, 0), (2, 100)):
        with pytest.raises(LocalProtocolError):
            machine.receive(NewGeneration(generation, voters), 0.0)


# -- what is not allowed ---------------------------------------------------------------------------


def test_illegal_events_change_nothing() -> None:
    machine = replica()
    with pytest.raises(LocalProtocolError):
        tell(machine, 1, PreVote(1, 1), 0.0)
    machine.receive(Start(), 0.0)
    with pytest.raises(LocalProtocolError):
        machine.receive(Start(), 0.0)
    for source in (-1, 0, 3):
        with pytest.raises(RemoteProtocolError, match=r"leadership\.not-a-replica"):
            tell(machine, source, PreVote(1, 1), 0.0)
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
