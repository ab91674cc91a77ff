"""What a relay grants: reservations and circuits, within its limits. Decides; carries nothing."""

from __future__ import annotations

from collections import Counter

from attrs import define, field

from magik_mesh import codes
from magik_mesh.config import RelayLimits
from magik_mesh.errors import CallRefused
from magik_proto.identity import PeerId


@define
class Bucket:
    """A token bucket that may go into debt: whoever took too much waits until it is paid back."""

    rate: float  # bytes per second
    burst: float  # bytes that may go at once
    _level: float = field(init=False)
    _at: float = field(default=float("-inf"), init=False)

    def __attrs_post_init__(self) -> None:
        self._level = self.burst

    def take(self, size: int, now: float) -> float:
        """Take `size` bytes; seconds to wait before anything more is taken."""
        self._level = min(self.burst, self._level + self.rate * max(0.0, now - self._at)) - size
        self._at = now
        return max(0.0, -self._level / self.rate)


@define(eq=False)
class Circuit:
    """One way through the relay, between two members."""

    caller: PeerId
    target: PeerId
    limits: RelayLimits
    opened: float
    carried: int = 0
    _last: float = field(init=False)
    _bucket: Bucket = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._last = self.opened
        self._bucket = Bucket(self.limits.rate, self.limits.burst)

    def carry(self, size: int, now: float) -> float | None:
        """`size` bytes want through: seconds to wait after them, or None if the circuit has carried its all."""
        self.carried += size
        self._last = now
        return None if self.carried > self.limits.circuit_bytes else self._bucket.take(size, now)

    @property
    def ends_at(self) -> float:
        """When it ends, if nothing more goes through."""
        return min(self.opened + self.limits.circuit_life, self._last + self.limits.circuit_idle)


@define
class Desk:
    """The relay's books. Refusals are answers to the caller (`CallRefused`), each with what to do."""

    own: PeerId
    limits: RelayLimits
    _reserved: Counter[PeerId] = field(factory=Counter)
    _circuits: list[Circuit] = field(factory=list)
    _ends: Counter[PeerId] = field(factory=Counter)

    @property
    def reservations(self) -> int:
        """How many machines can be reached by this one."""
        return len(self._reserved)

    @property
    def circuits(self) -> tuple[Circuit, ...]:
        """All that are open."""
        return tuple(self._circuits)

    def reserve(self, peer: PeerId) -> None:
        """`peer` wants to be reached by us. A second one of the same peer (it lost the first) is fine."""
        if peer not in self._reserved and len(self._reserved) >= self.limits.reservations:
            raise CallRefused(
                codes.RELAY_FULL, f"{self.limits.reservations} machines are relayed for already"
            )
        self._reserved[peer] += 1

    def give_back(self, peer: PeerId) -> None:
        """A reservation has ended."""
        self._reserved[peer] -= 1
        if self._reserved[peer] <= 0:
            del self._reserved[peer]

    def open(self, caller: PeerId, target: PeerId, now: float) -> Circuit:
        """A circuit from `caller` to `target`, who has to have a reservation."""
        if target in (caller, self.own):
            raise CallRefused(codes.RELAY_TARGET, "a circuit is between two other machines")
        if target not in self._reserved:
            raise CallRefused(codes.RELAY_TARGET, f"{target} has no reservation here")
        if len(self._circuits) >= self.limits.circuits:
            raise CallRefused(codes.RELAY_FULL, f"all {self.limits.circuits} circuits are in use")
        for peer in (caller, target):
            if self._ends[peer] >= self.limits.circuits_per_peer:
                raise CallRefused(
                    codes.RELAY_QUOTA, f"{peer} has {self.limits.circuits_per_peer} circuits here already"
                )
        pair = sum({c.caller, c.target} == {caller, target} for c in self._circuits)
        if pair >= self.limits.circuits_per_pair:
            raise CallRefused(codes.RELAY_QUOTA, f"{pair} circuits are between these two already")
        circuit = Circuit(caller, target, self.limits, now)
        self._circuits.append(circuit)
        self._ends.update((caller, target))
        return circuit

    def close(self, circuit: Circuit) -> None:
        """A circuit has ended."""
        self._circuits.remove(circuit)
        for peer in (circuit.caller, circuit.target):
            self._ends[peer] -= 1
            if self._ends[peer] <= 0:
                del self._ends[peer]
