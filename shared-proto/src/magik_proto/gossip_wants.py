"""Messages that are asked for, and whose word they were asked on."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from magik_proto.identity import PeerId

MAX_OTHERS = 64  # peers that say to have one message and may be asked next; a guess; at it: not remembered
REPEAT_S = 1.0  # a peer that tells an id again is asked for it again after so long; a guess

Worth = tuple[float, float]
"""What a peer's word is worth: how often it was of use rather than not, and its score."""
NO_WORTH: Worth = (0.0, 0.0)


@attrs.define
class _Want:
    again: float  # when to ask others
    count: int = 1  # as many as that, and twice as many the time after
    proven: bool = False  # somebody was asked who has shown to be of use
    asked: dict[PeerId, float] = attrs.field(factory=dict)  # until when each has to keep its word
    others: dict[PeerId, float] = attrs.field(factory=dict)  # may be asked next, until then: they forget too


class Wants:
    """Ids of messages that we lack, with the peers that have them: each is asked of one peer, then, while it does
    not come, each `again_s` of others, twice as many each time.  One that has been of use is asked at once if none
    was before.

    At most `per_peer` ids are open with one peer; at it, no more are asked of it.  So whatever peers say, there
    are never more than `per_peer` ids for each of them.
    """

    def __init__(self, again_s: float, promise_s: float, kept_s: float, per_peer: int) -> None:
        self._again_s = again_s
        self._kept_s = kept_s  # for so long, at least, whoever tells an id has its message
        self._promise_s = promise_s
        self._per_peer = per_peer
        self._wants: dict[bytes, _Want] = {}
        self._open: dict[PeerId, int] = {}
        self._broken: dict[PeerId, None] = {}
        self._due: float | None = None  # not after the first time at which there is something to do

    def __len__(self) -> int:
        return len(self._wants)

    def next_timeout(self) -> float | None:
        """When to call `tick`: there may be something to do."""
        return self._due

    def told(self, key: bytes, peer: PeerId, now: float, worth: Worth = NO_WORTH) -> bool:
        """A peer says to have a message; whether to ask it now, which is taken as done."""
        want = self._wants.get(key)
        if want is not None and peer in want.asked:
            # It says so again: what we asked, or what it sent, was dropped on the way.
            return now >= want.asked[peer] - self._promise_s + REPEAT_S
        proven = worth[0] > self._open.get(peer, 0)
        if want is not None and now < want.again and (want.proven or not proven):
            if len(want.others) < MAX_OTHERS:
                want.others[peer] = now + self._kept_s
                self._wake(want)
            return False
        if self._open.get(peer, 0) >= self._per_peer:
            return False
        if want is None:
            want = self._wants[key] = _Want(now)
        want.proven = want.proven or proven
        self._ask(want, peer, now)
        return True

    def came(self, key: bytes, peer: PeerId) -> bool:
        """A message is here; whether `peer` had been asked for it."""
        want = self._wants.pop(key, None)
        if want is None:
            return False
        for asked in want.asked:
            self._close(asked)
        if not self._wants:
            self._due = None
        return peer in want.asked

    def gone(self, peer: PeerId, now: float) -> None:
        """Nothing can be had of a peer any more."""
        for key, want in list(self._wants.items()):
            want.others.pop(peer, None)
            if want.asked.pop(peer, None) is not None:
                want.again = self._due = now  # somebody else
            if not want.asked and not want.others:
                del self._wants[key]
        self._open.pop(peer, None)
        if not self._wants:
            self._due = None

    def tick(self, now: float, worth: Callable[[PeerId], Worth]) -> dict[PeerId, list[bytes]]:
        """What to ask of whom now.

        Of all who have a message those of most worth are asked next, for liars are quick to tell. That of one
        that owes us messages counts less.
        """
        ask: dict[PeerId, list[bytes]] = {}
        if self._due is None or now < self._due:
            return ask
        self._due = None
        for key, want in list(self._wants.items()):
            for peer in [peer for peer, until in want.asked.items() if now >= until]:
                del want.asked[peer]
                self._close(peer)
                self._broken[peer] = None
            if now >= want.again:
                want.again = now + self._again_s
                for peer in self._next(want, now, worth):
                    self._ask(want, peer, now)
                    ask.setdefault(peer, []).append(key)
            if want.asked:
                self._wake(want)
            else:
                del self._wants[key]
        return ask

    def broken(self) -> list[PeerId]:
        """Who broke its word since this was asked last."""
        broken, self._broken = list(self._broken), {}
        return broken

    def _next(self, want: _Want, now: float, worth: Callable[[PeerId], Worth]) -> list[PeerId]:
        for peer in [peer for peer, until in want.others.items() if now >= until]:
            del want.others[peer]
        free = [peer for peer in want.others if self._open.get(peer, 0) < self._per_peer]
        ranks = {peer: self._rank(peer, worth(peer)) for peer in free}
        want.count *= 2
        return sorted(free, key=ranks.__getitem__, reverse=True)[: want.count // 2]

    def _rank(self, peer: PeerId, worth: Worth) -> Worth:
        use, score = worth
        return use - self._open.get(peer, 0), score

    def _ask(self, want: _Want, peer: PeerId, now: float) -> None:
        want.others.pop(peer, None)
        want.asked[peer] = now + self._promise_s
        want.again = now + self._again_s
        self._open[peer] = self._open.get(peer, 0) + 1
        self._wake(want)

    def _wake(self, want: _Want) -> None:
        # Words are broken in the order in which they were given; what is asked again has no more time.
        first = want.again if want.others else next(iter(want.asked.values()), want.again)
        if self._due is None or first < self._due:
            self._due = first

    def _close(self, peer: PeerId) -> None:
        left = self._open.get(peer, 0) - 1
        if left > 0:
            self._open[peer] = left
        else:
            self._open.pop(peer, None)
