"""Whom to dial, when, and when to give up: a plan without I/O.

Every peer that is wanted and has no connection is due at some time. A dial that fails puts it off by
exponential back-off with jitter; a peer that has been away for `forget_after` seconds and was not heard of
meanwhile is forgotten. Bootstrap peers are never forgotten. In a large fabric the plan is narrowed to chosen
peers (`DialPlan.narrow`): others are dialled only once, right after their connection was lost.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import nsmallest

from attrs import define, field, frozen

from magik_mesh.config import Timings
from magik_proto.identity import PeerId

# Exponents above this no longer change a delay and would only make large numbers.
_MAX_EXPONENT = 32


def backoff(attempt: int, timings: Timings, unit: float) -> float:
    """Seconds to wait after failed attempt number `attempt` (1, 2, …); `unit` in [0, 1) is the jitter.

    Doubles from `backoff_first` to `backoff_cap`; the jitter takes up to half of it away, so that machines
    that lost the same peer at the same time do not come back at the same time.
    """
    full = min(timings.backoff_cap, timings.backoff_first * 2.0 ** min(attempt - 1, _MAX_EXPONENT))
    return full * (1.0 - unit / 2.0)


@frozen
class Failure:
    """What follows a failed dial."""

    attempt: int  # how many have failed in a row
    retry_in: float | None  # seconds, or None: forgotten
    worth_logging: bool  # true at attempts 1, 2, 4, 8, …: the log grows by a logarithm


@define
class _Wanted:
    permanent: bool
    next_at: float
    heard_at: float
    attempts: int = 0
    dialing: bool = False
    linked: bool = False
    lost: bool = False  # silently, and not dialled since: the dial that decides is due


@define
class DialPlan:
    """The dialling state of all wanted peers. Each method takes `now` in monotonic seconds."""

    timings: Timings
    _random: Callable[[], float]
    _peers: dict[PeerId, _Wanted] = field(factory=dict)
    _only: frozenset[PeerId] | None = None  # None: everybody

    def narrow(self, only: frozenset[PeerId] | None, now: float) -> None:
        """Dial these and no others from now on; None: everybody that is heard of."""
        self._only = only
        if only is None:
            return
        for peer in sorted(only):  # a set has no order of its own
            self._note(peer, now)
        for peer, wanted in list(self._peers.items()):
            spare = not (wanted.permanent or wanted.linked or wanted.dialing or wanted.lost)
            if spare and peer not in only:
                del self._peers[peer]

    def _is_chosen(self, peer: PeerId) -> bool:
        return self._only is None or peer in self._only

    def __len__(self) -> int:
        """How many peers are wanted."""
        return len(self._peers)

    def want(self, peer: PeerId, now: float, *, permanent: bool = False) -> None:
        """`peer` exists (a record was heard, or it is a bootstrap peer). Due at once if it is new."""
        if permanent or peer in self._peers or self._is_chosen(peer):
            self._note(peer, now, permanent=permanent)

    def _note(self, peer: PeerId, now: float, *, permanent: bool = False) -> None:
        wanted = self._peers.get(peer)
        if wanted is None:
            self._peers[peer] = _Wanted(permanent, now, now)
        else:
            wanted.permanent |= permanent
            wanted.heard_at = now

    def hurry(self, peer: PeerId, now: float) -> None:
        """Something new was heard (another address, another start):

        Try again without waiting out the back-off.
        """
        if (wanted := self._peers.get(peer)) is not None:
            wanted.next_at, wanted.attempts = now, 0

    def take_due(self, now: float, room: int) -> list[PeerId]:
        """At most `room` peers to dial now, the longest due first;

        Each is being dialled until told otherwise.
        """
        if room <= 0:
            return []
        due = [peer for peer, wanted in self._waiting() if wanted.next_at <= now]
        chosen = nsmallest(room, due, key=lambda peer: (self._peers[peer].next_at, peer.raw))
        for peer in chosen:
            self._peers[peer].dialing = True
        return chosen

    def _waiting(self) -> list[tuple[PeerId, _Wanted]]:
        """Who is to be dialled, now or later."""
        return [
            (peer, wanted)
            for peer, wanted in self._peers.items()
            if not wanted.dialing and not wanted.linked and (wanted.lost or self._is_chosen(peer))
        ]

    def begin(self, peer: PeerId) -> None:
        """`peer` is being dialled now, due or not."""
        if (wanted := self._peers.get(peer)) is not None:
            wanted.dialing = True

    def next_due(self) -> float | None:
        """When to call `take_due` again; None when there is nobody to wait for."""
        return min((wanted.next_at for _, wanted in self._waiting()), default=None)

    def linked(self, peer: PeerId, now: float) -> None:
        """There is a connection with `peer`, by whichever side."""
        self._note(peer, now)
        self._peers[peer].linked, self._peers[peer].lost = True, False

    def lost(self, peer: PeerId, now: float, lasted: float) -> None:
        """The connection is gone after `lasted` seconds: away from now on, and due at once.

        One that did not last is due only after a back-off, so that two machines that cannot stand each
        other do not connect and part in a tight loop.
        """
        wanted = self._peers.get(peer)
        if wanted is None:
            return
        wanted.linked, wanted.heard_at, wanted.lost = False, now, lasted > 0
        wanted.attempts = wanted.attempts + 1 if lasted < self.timings.backoff_cap else 0
        wanted.next_at = now + (
            backoff(wanted.attempts, self.timings, self._random()) if wanted.attempts else 0.0
        )

    def finished(self, peer: PeerId) -> None:
        """A dial ended, however."""
        if (wanted := self._peers.get(peer)) is not None:
            wanted.dialing = False

    def put_off(self, peer: PeerId, now: float) -> Failure:
        """A dial failed: when to try again, or forget."""
        wanted = self._peers.get(peer)
        if wanted is None:
            return Failure(1, None, worth_logging=False)
        wanted.attempts += 1
        wanted.lost = False
        power_of_two = wanted.attempts & (wanted.attempts - 1) == 0
        away = now - wanted.heard_at >= self.timings.forget_after
        if not wanted.permanent and (away or not self._is_chosen(peer)):
            del self._peers[peer]
            return Failure(wanted.attempts, None, worth_logging=True)
        delay = backoff(wanted.attempts, self.timings, self._random())
        wanted.next_at = now + delay
        return Failure(wanted.attempts, delay, worth_logging=power_of_two)

    def left(self, peer: PeerId, now: float) -> None:
        """`peer` said goodbye:

        Not wanted any more, unless for ever; that one is tried at the slowest pace.
        """
        wanted = self._peers.get(peer)
        if wanted is None:
            return
        if not wanted.permanent:
            del self._peers[peer]
            return
        wanted.linked = False
        wanted.next_at = now + backoff(_MAX_EXPONENT, self.timings, self._random())

    def wanted(self) -> tuple[PeerId, ...]:
        """All peers in the plan."""
        return tuple(self._peers)

    def is_wanted(self, peer: PeerId) -> bool:
        """Whether `peer` is in the plan at all."""
        return peer in self._peers
