"""Messages that are asked for, and whose word they were asked on."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from magik_proto.identity import PeerId

MAX_OTHERS = 64  # peers that say to have one message and may be asked next; a guess; at it: not remembered


@attrs.define
class _Want:
    again: float  # when to ask others
    count: int = 1  # as many as that, and twice as many the time after
    trusted: bool = False  # somebody was asked who has shown to be of use
    asked: dict[PeerId, float] = attrs.field(factory=dict)  # until when each has to keep its word
    others: dict[PeerId, float] = attrs.field(factory=dict)  # may be asked next, until then: they forget too


class Wants:
    """Ids of messages that we lack, with the peers that have them: each is asked of one peer, then, while it does
    not come, of others, twice as many each time.  One that is trusted is asked at once if none was before.

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

    def __len__(self) -> int:
        return len(self._wants)

    def told(self, key: bytes, peer: PeerId, now: float, *, trusted: bool = False) -> bool:
        """A peer says to have a message; whether to ask it now, which is taken as done."""
        want = self._wants.get(key)
        better = want is not None and trusted and not want.trusted
        if want is not None and peer in want.asked:
            # It says so again: what we asked, or what it sent, was dropped on the way.
            return now >= want.asked[peer] - self._promise_s + self._again_s
        if want is not None and now < want.again and not better:
            if len(want.others) < MAX_OTHERS:
                want.others[peer] = now + self._kept_s
            return False
        if self._open.get(peer, 0) >= self._per_peer:
            return False
        if want is None:
            want = self._wants[key] = _Want(now)
        want.trusted = want.trusted or trusted
        self._ask(want, peer, now)
        return True

    def came(self, key: bytes, peer: PeerId) -> bool:
        """A message is here; whether `peer` had been asked for it."""
        want = self._wants.pop(key, None)
        if want is None:
            return False
        for asked in want.asked:
            self._close(asked)
        return peer in want.asked

    def gone(self, peer: PeerId) -> None:
        """Nothing can be had of a peer any more."""
        for want in self._wants.values():
            want.others.pop(peer, None)
            if want.asked.pop(peer, None) is not None:
                want.again = 0.0  # somebody else, at the next tick
        self._open.pop(peer, None)

    def tick(
        self, now: float, worth: Callable[[PeerId], float]
    ) -> tuple[dict[PeerId, list[bytes]], list[PeerId]]:
        """What to ask of whom now, and who broke its word; once in a heartbeat.

        Of all who have a message those of most `worth` are asked next, for liars are quick to tell.
        """
        ask: dict[PeerId, list[bytes]] = {}
        broken: dict[PeerId, None] = {}
        for key, want in list(self._wants.items()):
            for peer in [peer for peer, until in want.asked.items() if now >= until]:
                del want.asked[peer]
                self._close(peer)
                broken[peer] = None
            others = self._next(want, now, worth) if now >= want.again else []
            for peer in others:
                self._ask(want, peer, now)
                ask.setdefault(peer, []).append(key)
            if not want.asked:
                del self._wants[key]
        return ask, list(broken)

    def _next(self, want: _Want, now: float, worth: Callable[[PeerId], float]) -> list[PeerId]:
        for peer in [peer for peer, until in want.others.items() if now >= until]:
            del want.others[peer]
        free = [peer for peer in want.others if self._open.get(peer, 0) < self._per_peer]
        want.count *= 2
        return sorted(free, key=worth, reverse=True)[: want.count // 2]

    def _ask(self, want: _Want, peer: PeerId, now: float) -> None:
        want.others.pop(peer, None)
        want.asked[peer] = now + self._promise_s
        want.again = now + self._again_s
        self._open[peer] = self._open.get(peer, 0) + 1

    def _close(self, peer: PeerId) -> None:
        left = self._open.get(peer, 0) - 1
        if left > 0:
            self._open[peer] = left
        else:
            self._open.pop(peer, None)
