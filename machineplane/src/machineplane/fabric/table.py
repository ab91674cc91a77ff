"""A machine's own facts as a versioned table that others can follow by deltas.

Keys are ``(kind, id)`` pairs, values are CBOR-able. Each change carries a stamp of the machine's hybrid clock, which is
at once the table's version and the ``resourceVersion`` of the object that is rendered from the entry. A follower asks for
what changed since a stamp; when the table no longer remembers that far back it answers with everything (`Delta.reset`).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from attrs import frozen

Key = tuple[str, str]
Value = Mapping[str, object]

SECRET = "secret"
"""A key of values, true where only machines that serve the API may see the entry."""

REMOVALS_KEPT = 2_000  # guess: ten minutes of a busy machine; beyond it a follower reads the table anew


@frozen
class Entry:
    """One fact: ``value`` is None where the fact was removed at ``stamp``."""

    key: Key
    stamp: int
    value: Value | None


@frozen
class Delta:
    """Entries changed after ``since`` up to ``stamp``, oldest first; ``reset``: forget what you knew before."""

    epoch: int
    since: int
    stamp: int
    reset: bool
    entries: tuple[Entry, ...]

    def to_wire(self) -> dict[str, object]:
        return {
            "epoch": self.epoch,
            "since": self.since,
            "stamp": self.stamp,
            "reset": self.reset,
            "entries": [[*e.key, e.stamp, e.value] for e in self.entries],
        }

    @classmethod
    def from_wire(cls, wire: object) -> "Delta":
        """Check and take apart what a peer sent; raises ValueError naming the field that is wrong."""
        if not isinstance(wire, dict):
            raise ValueError("delta: not a map")
        numbers = {name: _natural(wire, name) for name in ("epoch", "since", "stamp")}
        entries = wire.get("entries")
        if not isinstance(entries, list) or not isinstance(wire.get("reset"), bool):
            raise ValueError("delta: entries or reset is missing")
        return cls(**numbers, reset=wire["reset"], entries=tuple(_entry(e) for e in entries))


def _natural(wire: Mapping[object, object], name: str) -> int:
    value = wire.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"delta: {name} is not a natural number")
    return value


def _entry(wire: object) -> Entry:
    match wire:
        case [str(kind), str(ident), int(stamp), value] if value is None or isinstance(value, dict):
            return Entry((kind, ident), stamp, value)
    raise ValueError("delta: an entry is not [kind, id, stamp, map or null]")


class Table:
    """The machine's own table. ``stamp`` gives strictly increasing versions (a hybrid clock's ``now``)."""

    def __init__(self, stamp: Callable[[], int]) -> None:
        self._stamp = stamp
        self.epoch = stamp()
        self.version = self.epoch
        self._forgotten = self.epoch
        self._entries: OrderedDict[Key, Entry] = OrderedDict()  # oldest change first
        self._removed = 0
        self._listeners: list[Callable[[Entry], None]] = []

    def on_change(self, listener: Callable[[Entry], None]) -> None:
        """Call ``listener`` at each change, in the changer's task."""
        self._listeners.append(listener)

    def put(self, key: Key, value: Value) -> None:
        """Set a fact; the same value again is no change."""
        old = self._entries.get(key)
        if old is None or old.value != value:
            self._store(key, value)

    def remove(self, key: Key) -> None:
        """Forget a fact; removing what is not there is no change."""
        old = self._entries.get(key)
        if old is not None and old.value is not None:
            self._store(key, None)

    def get(self, key: Key) -> Value | None:
        entry = self._entries.get(key)
        return entry.value if entry else None

    def entries(self, kind: str) -> Iterable[Entry]:
        """Live entries of one kind, oldest change first."""
        return [e for e in self._entries.values() if e.key[0] == kind and e.value is not None]

    def since(self, epoch: int, stamp: int) -> Delta:
        """What changed after ``stamp``; everything where the epoch is another or that stamp is forgotten."""
        reset = epoch != self.epoch or stamp < self._forgotten or stamp > self.version
        if reset:
            found = [e for e in self._entries.values() if e.value is not None]
        else:
            found = []
            for entry in reversed(self._entries.values()):
                if entry.stamp <= stamp:
                    break
                found.append(entry)
            found.reverse()
        return Delta(self.epoch, 0 if reset else stamp, self.version, reset, tuple(found))

    def _store(self, key: Key, value: Value | None) -> None:
        old = self._entries.pop(key, None)
        entry = Entry(key, self._stamp(), value)
        self._entries[key] = entry
        self._removed += (value is None) - (old is not None and old.value is None)
        self.version = entry.stamp
        if self._removed > REMOVALS_KEPT:
            self._drop_oldest_removal()
        for listener in self._listeners:
            listener(entry)

    def _drop_oldest_removal(self) -> None:
        oldest = next(e for e in self._entries.values() if e.value is None)
        del self._entries[oldest.key]
        self._removed -= 1
        self._forgotten = max(self._forgotten, oldest.stamp)
