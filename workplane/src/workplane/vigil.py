"""Whether a replica that lets us wait is dead, or it, or we, are only slow. No I/O; times are monotonic seconds.

After Dadgar, Phillips, Currey: "Lifeguard: Local Health Awareness for More Accurate Failure Detection", 2018:
who notices that it is slow itself gives others more time, and others are asked before a replica is taken for dead.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from attrs import define, field

PING_S: Final = 0.5
"""For the answer to a question, where all is well. A guess."""
PINGS: Final = 3
"""Rounds of questions without any sign of life, after which a replica is taken for dead. A guess."""
LAG_S: Final = 0.1
"""What took so much longer than it may was held up here, and says nothing about the other end. A guess."""
MAX_SCORE: Final = 7
"""The paper's S is 8: time-outs are up to 8 times as long, 12 s in all. QUIC ends a connection without a packet for 10 s."""
WORSE_S: Final = 0.5
BETTER_S: Final = 1.0
"""The score changes by one, and not sooner after the last change than this: many connections notice one hiccup. The paper's
changes with each probe, of which there is one a second."""


@define
class LocalHealth:
    """How slow this agent, or all that it sees, has been lately: 0 is well."""

    score: int = 0
    _worse_from: float = float("-inf")
    _better_from: float = float("-inf")

    @property
    def multiplier(self) -> int:
        """By which time-outs are longer than where all is well."""
        return 1 + self.score

    def late(self, now: float) -> None:
        """An own timer was late, an answer slow, or several replicas were silent at one time."""
        self._better_from = now + BETTER_S
        if now >= self._worse_from and self.score < MAX_SCORE:
            self.score += 1
            self._worse_from = now + WORSE_S

    def timely(self, now: float) -> None:
        """Something went as it should."""
        if now >= self._better_from and self.score:
            self.score -= 1
            self._better_from = now + BETTER_S


class Verdict(Enum):
    """What a round of questions showed."""

    ALIVE = auto()
    UNSURE = auto()
    DEAD = auto()


@define
class Inquiry:
    """About one replica that lets us wait: rounds of questions until it is known to live, or taken for dead.

    `ask` begins a round, `alive` or `silent` ends it. Any sign of life, whenever it comes, ends the whole.
    """

    health: LocalHealth
    _due: float | None = None
    _rounds: int = 0
    _counted: int = 0
    verdict: Verdict = Verdict.UNSURE
    _began: float = field(default=0.0)

    @property
    def seeks_witnesses(self) -> bool:
        """Whether others are to be asked in the round that has begun: not in the first, a slow answer is common."""
        return self._rounds > 1

    def ask(self, now: float) -> float:
        """Begin a round; until when a sign of life is waited for."""
        if self._due is not None or self.verdict is not Verdict.UNSURE:
            raise ValueError("a round is under way, or all is said")
        self._rounds += 1
        self._began = now
        self._due = now + PING_S * self.health.multiplier
        return self._due

    def alive(self, now: float) -> None:
        """It has been heard of."""
        due, self._due, self.verdict = self._due, None, Verdict.ALIVE
        prompt = due is not None and self._rounds == 1 and now - self._began < PING_S / 2
        (self.health.timely if prompt else self.health.late)(now)

    def silent(self, now: float, *, others_silent: bool, witnesses: int, asked: int) -> Verdict:
        """The round is over without a sign of life.

        `others_silent`: so are other replicas. `witnesses`: those of the `asked` others that have answered, having heard
        nothing of it either: then the fault is neither our way to the rest of the world nor our slowness.
        """
        if self._due is None:
            raise ValueError("no round is under way")
        own_lag, self._due = now - self._due >= LAG_S, None
        if own_lag or (not witnesses and (others_silent or asked)):
            self.health.late(now)
        self._counted += not own_lag
        if self._counted >= PINGS:
            self.verdict = Verdict.DEAD
        return self.verdict
