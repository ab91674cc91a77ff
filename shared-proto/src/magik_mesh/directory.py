"""What a node knows of other machines: their signed records and where they were seen. A table without I/O.

A record is believed as far as its signature goes: *this peer says that it is there*. Whether it is, and
whether it may be in the fabric, the handshake tells. Records are kept for `RECORD_LIFE` after they were
signed, connected or not, so that an old record of a machine that is gone does not come back as news.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import define, field

from magik_mesh.addresses import Address, is_dialable, parse
from magik_mesh.config import MeshLimits
from magik_proto import signing
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.records import MachineRecord
from magik_proto.wire import decode_as

# Presence is gossiped every 60 s; a record that was not renewed three times over says nothing any more. In
# ms.
RECORD_LIFE = 200_000
# Clocks differ by at most this much (protocol.md "clock skew"), in ms.
CLOCK_SKEW = 30_000


@define
class Known:
    """One machine.

    Addresses are tried in the order: where it last proved itself, said by itself, told by others, configured.
    """

    heard_at: float
    record: MachineRecord | None = None
    encoded: bytes = b""
    observed: Address | None = None
    told: tuple[Address, ...] = ()  # by the hash table
    configured: list[Address] = field(factory=list)


@define
class Directory:
    """All known machines but this one. `now` is monotonic seconds, `timestamp` ms since the epoch."""

    own: PeerId
    limits: MeshLimits
    _known: dict[PeerId, Known] = field(factory=dict)

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, peer: PeerId) -> bool:
        return peer in self._known

    def peers(self) -> tuple[PeerId, ...]:
        """All known, in the order in which they were first heard of."""
        return tuple(self._known)

    def configure(self, peer: PeerId, address: Address, now: float) -> None:
        """A bootstrap peer: never forgotten."""
        known = self._known.setdefault(peer, Known(now))
        if address not in known.configured:
            known.configured.append(address)

    def learn(
        self,
        encoded: bytes,
        now: float,
        timestamp: int,
        keep: Iterable[PeerId],
        check: Callable[[MachineRecord], None],
    ) -> MachineRecord | None:
        """Take an encoded record in: the record if it is news, None if not.

        Raises `RemoteProtocolError` for one that is malformed, too large, wrongly signed, or signed in the
        future, and what `check` raises. When the directory is full the one unheard of for longest goes,
        save those in `keep` and configured ones.
        """
        if len(encoded) > self.limits.record_bytes:
            raise RemoteProtocolError(
                "record.size", f"{len(encoded)} bytes, {self.limits.record_bytes} are allowed"
            )
        record = decode_as(MachineRecord, encoded)
        if record.timestamp > timestamp + CLOCK_SKEW:
            raise RemoteProtocolError("freshness.skew", f"the record of {record.peer} is from the future")
        if not self._is_news(record, timestamp):
            return None
        signing.verify(record)
        check(record)
        known = self._entry(record.peer, now, keep)
        if known is None:
            return None
        known.record, known.encoded, known.heard_at = record, encoded, now
        return record

    def observe(self, peer: PeerId, address: Address, now: float, keep: Iterable[PeerId]) -> None:
        """`peer` proved itself at `address`: worth a try again, unless that is the virtual one of a relay."""
        known = self._entry(peer, now, keep)
        if known is not None:
            known.observed, known.heard_at = address if is_dialable(address) else known.observed, now

    def tell(self, peer: PeerId, addresses: Iterable[Address], now: float, keep: Iterable[PeerId]) -> None:
        """`peer` was at these addresses when it answered the hash table."""
        known = self._entry(peer, now, keep)
        if known is not None:
            known.told = tuple(addresses)

    def misled(self, peer: PeerId, address: Address) -> None:
        """Another machine answered at `address`:

        Not to be tried for `peer` because it was seen there once.
        """
        if (known := self._known.get(peer)) is not None:
            known.observed = None if known.observed == address else known.observed

    def addresses(self, peer: PeerId) -> tuple[Address, ...]:
        """Where to try `peer`, the best first, each once."""
        known = self._known.get(peer)
        if known is None:
            return ()
        said = [] if known.record is None else _parsed(known.record.addrs[: self.limits.addresses_per_peer])
        candidates = [known.observed, *said, *known.told, *known.configured]
        return tuple(dict.fromkeys(a for a in candidates if a is not None and is_dialable(a)))

    def get(self, peer: PeerId) -> Known | None:
        """What is known of `peer`."""
        return self._known.get(peer)

    def has(self, encoded: bytes) -> bool:
        """Whether this very record is the newest of its machine."""
        return any(known.encoded == encoded for known in self._known.values())

    def records(self, timestamp: int) -> list[bytes]:
        """All encoded records that are still alive, for peer exchange."""
        return [known.encoded for known in self._known.values() if _is_alive(known.record, timestamp)]

    def expire(self, timestamp: int, keep: Iterable[PeerId]) -> None:
        """Forget machines whose record has ended, save those in `keep` and configured ones."""
        kept = set(keep)
        for peer, known in list(self._known.items()):
            if peer not in kept and not known.configured and not _is_alive(known.record, timestamp):
                del self._known[peer]

    def _is_news(self, record: MachineRecord, timestamp: int) -> bool:
        if record.peer == self.own or not _is_alive(record, timestamp):
            return False
        known = self._known.get(record.peer)
        return known is None or known.record is None or record.seq > known.record.seq

    def _entry(self, peer: PeerId, now: float, keep: Iterable[PeerId]) -> Known | None:
        if (
            peer not in self._known
            and len(self._known) >= self.limits.known_peers
            and not self._make_room(keep)
        ):
            return None
        return self._known.setdefault(peer, Known(now))

    def _make_room(self, keep: Iterable[PeerId]) -> bool:
        kept = set(keep)
        spare = [(k.heard_at, p) for p, k in self._known.items() if p not in kept and not k.configured]
        if not spare:
            return False
        del self._known[min(spare)[1]]
        return True


def _is_alive(record: MachineRecord | None, timestamp: int) -> bool:
    return record is not None and timestamp - record.timestamp < RECORD_LIFE


def _parsed(texts: Iterable[str]) -> list[Address]:
    addresses = []
    for text in texts:
        try:
            addresses.append(parse(text))
        except RemoteProtocolError:
            continue
    return addresses
