"""Scripts of one replica while the number of voters changes."""

from __future__ import annotations

import attrs
import pytest
from leadership_support import CONFIG, due, leading, started, tell

from magik_proto import leadership as lead
from magik_proto.errors import LocalProtocolError
from magik_proto.leadership import (
    Heartbeat,
    HeartbeatReply,
    LeaderChanged,
    Leadership,
    LeaseHeld,
    NewGeneration,
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
