"""A replica for scripts of leadership, and how to talk to it. Clocks are exact: promises are as long as leases."""

from __future__ import annotations

from magik_proto import leadership as lead
from magik_proto.leadership import (
    Leadership,
    LeadershipConfig,
    Life,
    PreVoteReply,
    RejoinReply,
    Role,
    Start,
    Stored,
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


def said(
    machine: Leadership, source: int, message: lead.Message, now: float, life: Life
) -> list[lead.LeadershipOutput]:
    return machine.receive(lead.MessageReceived(source, message, life), now)
