"""Scripts of one replica: what it is told, and what must come out, storage before speech. Elections and leases."""

from __future__ import annotations

from itertools import pairwise

import attrs
import pytest
from leadership_support import CONFIG, due, leading, replica, started, tell

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
    Persist,
    PreVote,
    PreVoteReply,
    RequestVote,
    Role,
    Send,
    Start,
    Stored,
    Token,
    VoteReply,
)
from magik_proto.testing.seeded import SeededRandom


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
