"""Transcripts of several replicas: lines with `>` are what is done, the others what must come of it.

start A B …     begin, at 0 s                          at T        the time from now on, in seconds
poll A          do what is due                         wish A G N  A learns of generation G with N voters
pass A>B        what A has sent to B arrives           lose A      what is under way from and to A is lost
pass            all arrives, until nothing is under way
"""

from __future__ import annotations

from collections import deque

import attrs
import pytest
from leadership_support import CONFIG

from magik_proto import leadership as lead
from magik_proto.leadership import Leadership, Life, Stored
from magik_proto.testing.seeded import SeededRandom


def said(message: lead.Message) -> str:
    """A message in words."""
    match message:
        case lead.PreVote(term):
            return f"would you vote in {term}?"
        case lead.PreVoteReply(term, granted):
            return f"would in {term}" if granted else f"would not, at {term}"
        case lead.RequestVote(term):
            return f"vote in {term}?"
        case lead.VoteReply(term, granted):
            return f"vote in {term}" if granted else f"no vote, at {term}"
        case lead.Heartbeat(term, generation, round, voters):
            return f"beat {round} of {term}, {generation}:{voters_text(voters)}"
        case lead.HeartbeatReply(term, generation, round):
            return f"heard {round} of {term}, have {generation}"
    raise AssertionError(message)


def voters_text(voters: tuple[int, ...]) -> str:
    return "<".join(str(count) for count in voters)


@attrs.define
class Stage:
    """The replicas and what is under way between them."""

    size: int
    now: float = 0.0
    machines: dict[int, Leadership] = attrs.field(factory=dict)
    flying: deque[tuple[int, int, lead.Message, Life]] = attrs.field(factory=deque)
    lines: list[str] = attrs.field(factory=list)

    def do(self, line: str) -> None:
        self.lines.append(f"> {line}")
        match line.split():
            case ["start", *names]:
                for own in map(int, names):
                    first = lead.new_voter(1, self.size) if own < self.size else lead.new_learner()
                    self.machines[own] = Leadership(own, 1, self.size, first, SeededRandom(own), CONFIG)
                    self.tell(own, lead.Start())
            case ["at", seconds]:
                self.now = float(seconds)
            case ["poll", own]:
                self.carry_out(int(own), self.machines[int(own)].poll(self.now))
            case ["wish", own, generation, voters]:
                self.tell(int(own), lead.NewGeneration(int(generation), int(voters)))
            case ["lose", own]:
                self.flying = deque(each for each in self.flying if int(own) not in each[:2])
            case ["pass", link]:
                source, _, to = link.partition(">")
                due = [each for each in self.flying if each[:2] == (int(source), int(to))]
                self.flying = deque(each for each in self.flying if each not in due)
                self.arrive(due)
            case ["pass"]:
                while self.flying:
                    self.arrive([self.flying.popleft()])

    def arrive(self, messages: list[tuple[int, int, lead.Message, Life]]) -> None:
        for source, to, message, life in messages:
            if to in self.machines:
                self.tell(to, lead.MessageReceived(source, message, life))

    def tell(self, own: int, event: lead.LeadershipEvent) -> None:
        self.carry_out(own, self.machines[own].receive(event, self.now))

    def carry_out(self, own: int, outputs: list[lead.LeadershipOutput]) -> None:
        for output in outputs:
            match output:
                case lead.Persist(stored, then):
                    self.lines.append(f"{own} stores {self.stored(stored)}")
                    self.carry_out(own, [*then])
                case lead.Send(to, message):
                    self.lines.append(f"{own}>{to} {said(message)}")
                    self.flying.append((own, to, message, self.machines[own].stored.life))
                case lead.LeaderChanged(leader):
                    self.lines.append(f"{own} follows {leader}")
                case lead.LeaseHeld(token, until):
                    self.lines.append(f"{own} leads by {token.generation}.{token.term} until {until:g}")
                case lead.LeaseLost():
                    self.lines.append(f"{own} leads no more")

    def stored(self, stored: Stored) -> str:
        vote = "" if stored.vote is None else f", voted {stored.vote}"
        return (
            f"{stored.generation}:{voters_text(stored.voters)} since {stored.since}, term {stored.term}{vote}"
        )


def played(script: str, size: int) -> list[str]:
    stage = Stage(size)
    for line in script.strip().splitlines():
        if line.startswith("> "):
            stage.do(line[2:])
    return stage.lines


ELECTED = """
> start 0 1 2
0 stores 1:3 since 0, term 0
1 stores 1:3 since 0, term 0
2 stores 1:3 since 0, term 0
> at 4
> poll 0
0>1 would you vote in 1?
0>2 would you vote in 1?
> pass
1>0 would in 1
2>0 would in 1
0 stores 1:3 since 0, term 1, voted 0
0>1 vote in 1?
0>2 vote in 1?
1 stores 1:3 since 0, term 1, voted 0
1>0 vote in 1
2 stores 1:3 since 0, term 1, voted 0
2>0 vote in 1
0 follows 0
0 stores 1:3 since 1, term 1, voted 0
0>1 beat 1 of 1, 1:3
0>2 beat 1 of 1, 1:3
1 follows 0
1 stores 1:3 since 1, term 1, voted 0
1>0 heard 1 of 1, have 1
2 follows 0
2 stores 1:3 since 1, term 1, voted 0
2>0 heard 1 of 1, have 1
0 leads by 1.1 until 7
"""

PRE_VOTE = (
    ELECTED
    + """> at 4.5
> poll 0
0>1 beat 2 of 1, 1:3
0>2 beat 2 of 1, 1:3
> lose 2
> pass
1>0 heard 2 of 1, have 1
0 leads by 1.1 until 7.5
> at 7
> poll 0
0>1 beat 3 of 1, 1:3
0>2 beat 3 of 1, 1:3
> lose 2
> pass
1>0 heard 3 of 1, have 1
0 leads by 1.1 until 10
> at 8.5
> poll 2
2 follows None
2>0 would you vote in 2?
2>1 would you vote in 2?
> pass
0>2 would not, at 1
1>2 would not, at 1
"""
)
"""Replica 2 is cut off and comes back: it asks before it stands; as others hear a leader, no term moves, no lease ends."""

CHECK_QUORUM = (
    ELECTED
    + """> at 4.5
> poll 0
0>1 beat 2 of 1, 1:3
0>2 beat 2 of 1, 1:3
> lose 0
> at 6.9
> poll 0
0>1 beat 3 of 1, 1:3
0>2 beat 3 of 1, 1:3
> lose 0
> at 7
> poll 0
0 leads no more
0 follows None
> at 8.2
> poll 1
1 follows None
1>0 would you vote in 2?
1>2 would you vote in 2?
> pass 1>2
2>1 would in 2
> pass 2>1
1 stores 1:3 since 1, term 2, voted 1
1>0 vote in 2?
1>2 vote in 2?
> pass 1>2
2 follows None
2 stores 1:3 since 1, term 2, voted 1
2>1 vote in 2
> pass 2>1
1 follows 1
1 stores 1:3 since 2, term 2, voted 1
1>0 beat 1 of 2, 1:3
1>2 beat 1 of 2, 1:3
> pass 1>2
2 follows 1
2 stores 1:3 since 2, term 2, voted 1
2>1 heard 1 of 2, have 1
> pass 2>1
1 leads by 1.2 until 11.2
> pass
0>1 would not, at 1
0>1 no vote, at 1
0 follows 1
0 stores 1:3 since 2, term 2
0>1 heard 1 of 2, have 1
"""
)
"""Nobody answers 0: it gives up when its lease ends, before another can be elected, and follows when it hears of that."""

MEMBERS = (
    ELECTED
    + """> start 3 4
3 stores 0: since 0, term 0
4 stores 0: since 0, term 0
> wish 0 2 5
0 stores 2:5<3 since 1, term 1, voted 0
> at 4.5
> poll 0
0>1 beat 2 of 1, 2:5<3
0>2 beat 2 of 1, 2:5<3
0>3 beat 2 of 1, 2:5<3
0>4 beat 2 of 1, 2:5<3
> pass 0>3
3 follows 0
3 stores 2:5<3 since 1, term 1
3>0 heard 2 of 1, have 2
> pass 0>4
4 follows 0
4 stores 2:5<3 since 1, term 1
4>0 heard 2 of 1, have 2
> pass 3>0
> pass 4>0
> pass 0>1
1 stores 2:5<3 since 1, term 1, voted 0
1>0 heard 2 of 1, have 2
> pass 1>0
0 stores 2:5 since 1, term 1, voted 0
0 leads by 2.1 until 7.5
> poll 0
0>1 beat 3 of 1, 2:5
0>2 beat 3 of 1, 2:5
0>3 beat 3 of 1, 2:5
0>4 beat 3 of 1, 2:5
> pass
2 stores 2:5<3 since 1, term 1, voted 0
2>0 heard 2 of 1, have 2
1 stores 2:5 since 1, term 1, voted 0
1>0 heard 3 of 1, have 2
2 stores 2:5 since 1, term 1, voted 0
2>0 heard 3 of 1, have 2
3 stores 2:5 since 1, term 1
3>0 heard 3 of 1, have 2
4 stores 2:5 since 1, term 1
4>0 heard 3 of 1, have 2
"""
)
"""From three to five: answers of three of five do not settle it, one of the old three more does; then the token rises."""


@pytest.mark.parametrize("script", [PRE_VOTE, CHECK_QUORUM, MEMBERS])
def test_transcript(script: str) -> None:
    assert played(script, 3) == script.strip().splitlines()
