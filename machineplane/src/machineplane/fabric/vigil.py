"""Watching over machines that no connection tells of: whom to ask when, and when one is lost. Without I/O."""

from collections.abc import Mapping

from attrs import define, field

from magik_proto.identity import PeerId

PERIOD_S = 5.0  # half the life of an idle brief connection: few machines cost no handshakes
PER_SECOND = 8.0  # calls of one machine for this, at most; a guess: some percent of a processor
AGAIN_S = 2.0  # after a failure
TRIES = 3  # a guess: one lost packet and one busy moment are no death
SILENCE_S = 10.0  # from the first failure on: a daemon that only restarts is back by then
LOST_PERIOD_S = 30.0  # who is lost is asked on, for it may come back with its pods
STRANGERS_MAX = 4_096  # machines of which failures are remembered without watching over them; the oldest goes


@define
class _State:
    next_at: float
    resources: frozenset[str] = frozenset()
    failures: int = 0
    first_failure: float = 0.0
    heard_at: float | None = None
    under_way: bool = False
    lost: bool = False


@define
class Vigil:
    """``want`` says whom to watch over and for which resources; ``due`` whom to ask now. ``now``: monotonic seconds."""

    _watched: dict[PeerId, _State] = field(factory=dict)
    _strangers: dict[PeerId, tuple[int, float]] = field(factory=dict)  # failures, and when the first was

    def want(self, wanted: Mapping[PeerId, frozenset[str]], now: float) -> None:
        """From now on these, and no others. One that is new, or of which more is wanted, is asked at once."""
        for peer in [p for p in self._watched if p not in wanted]:
            del self._watched[peer]
        for peer, resources in wanted.items():
            state = self._watched.get(peer)
            if state is None:
                self._watched[peer] = _State(now, resources)
                self._strangers.pop(peer, None)
            elif state.resources != resources:
                if not resources <= state.resources and not state.lost:
                    state.next_at = now
                state.resources = resources

    def due(self, now: float) -> list[tuple[PeerId, frozenset[str]]]:
        """Whom to ask, and for what; each counts as being asked until it is answered or failed."""
        found = []
        for peer, state in self._watched.items():
            if state.next_at <= now and not state.under_way:
                state.under_way = True
                found.append((peer, state.resources))
        return found

    def answered(self, peer: PeerId, now: float) -> None:
        """It has answered, whatever it was asked by whomever of us."""
        self._strangers.pop(peer, None)
        state = self._watched.get(peer)
        if state is not None:
            state.failures, state.lost, state.under_way = 0, False, False
            state.heard_at, state.next_at = now, now + self.period

    def failed(self, peer: PeerId, now: float) -> bool:
        """It has not; True if it counts as lost from now on."""
        state = self._watched.get(peer)
        if state is None:
            return self._stranger_failed(peer, now)
        state.under_way = False
        if state.lost:
            state.next_at = now + LOST_PERIOD_S
            return False
        if not state.failures:
            state.first_failure = now
        state.failures += 1
        state.next_at = now + AGAIN_S
        if state.failures < TRIES or now - state.first_failure < SILENCE_S:
            return False
        state.lost = True
        state.next_at = now + LOST_PERIOD_S
        return True

    def _stranger_failed(self, peer: PeerId, now: float) -> bool:
        failures, first = self._strangers.pop(peer, (0, now))
        if failures + 1 >= TRIES and now - first >= SILENCE_S:
            return True
        if len(self._strangers) >= STRANGERS_MAX:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[peer] = (failures + 1, first)
        return False

    def is_lost(self, peer: PeerId) -> bool:
        """Whether it was watched over and is lost."""
        state = self._watched.get(peer)
        return state is not None and state.lost

    def is_watched(self, peer: PeerId) -> bool:
        """Whether something depends on it."""
        return peer in self._watched

    def heard_at(self, peer: PeerId) -> float | None:
        """When it answered last since it is watched over."""
        state = self._watched.get(peer)
        return None if state is None else state.heard_at

    @property
    def period(self) -> float:
        """How often each is asked: seldomer the more there are."""
        return max(PERIOD_S, len(self._watched) / PER_SECOND)
