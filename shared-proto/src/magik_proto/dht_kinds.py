"""Which records a hash table knows: for each kind its class, its key, its life, and who may sign it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar

import attrs

from magik_proto import signing, wire
from magik_proto.dht_frames import MAX_RECORD
from magik_proto.dht_types import Judged
from magik_proto.errors import RemoteProtocolError
from magik_proto.kademlia import key_of, position
from magik_proto.records import SERVICE_LIFE_MS, HoldingRecord, MachineRecord, ServiceRecord
from magik_proto.replay import SKEW_MS
from magik_proto.wire import SignedMessage

R = TypeVar("R", bound=SignedMessage)

MACHINE_LIFE_MS: Final = 200_000
"""A machine's record is renewed every 60 s: two renewals may be lost, and clocks differ."""


def _anyone(_: Any, __: int) -> None:
    """A valid signature is enough."""


@attrs.frozen
class Kind(Generic[R]):
    """One kind of record.

    `key` gives the 32 bytes under which a record lies: it alone says so, never who hands it over. It lives
    `life_ms` from its own timestamp, or as long as that says of the record. `admit(record, wall_ms)` raises
    RemoteProtocolError for a signer who may not have such records (membership, a workload's identity).
    """

    name: str
    record: type[R]
    life_ms: int | Callable[[R], int]
    key: Callable[[R], bytes]
    precedence: Callable[[R], Any]
    admit: Callable[[R, int], None] = _anyone

    def life_of(self, record: R) -> int:
        """How long a record holds after its timestamp, in ms."""
        return self.life_ms if isinstance(self.life_ms, int) else self.life_ms(record)


def machine_kind(admit: Callable[[MachineRecord, int], None] = _anyone) -> Kind[MachineRecord]:
    """Machine records, each under the position of its machine."""
    return Kind(
        name="machine",
        record=MachineRecord,
        life_ms=MACHINE_LIFE_MS,
        key=lambda record: position(record.peer),
        precedence=lambda record: record.seq,
        admit=admit,
    )


def service_kind(admit: Callable[[ServiceRecord, int], None] = _anyone) -> Kind[ServiceRecord]:
    """Service records, all of a workload under the hash of its id."""
    return Kind(
        name="service",
        record=ServiceRecord,
        life_ms=SERVICE_LIFE_MS,
        key=lambda record: service_key(record.workload_id),
        precedence=lambda record: record.precedence,
        admit=admit,
    )


def service_key(workload_id: str) -> bytes:
    """Where a workload's service records lie; `workload_id` is like ``default/Deployment/nginx``."""
    return key_of(b"service\0" + workload_id.encode())


def holding_kind(admit: Callable[[HoldingRecord, int], None] = _anyone) -> Kind[HoldingRecord]:
    """What machines tell that they have, all who have one thing under the hash of its name."""
    return Kind(
        name="holding",
        record=HoldingRecord,
        life_ms=lambda record: record.life * 1000,
        key=lambda record: holding_key(record.holds, record.id),
        precedence=lambda record: record.timestamp,
        admit=admit,
    )


def holding_key(holds: str, id: str) -> bytes:
    """Where it lies who has something of a thing, as ``workload`` and ``default/Deployment/nginx``."""
    return key_of(holds.encode() + b"\0" + id.encode())


class Kinds:
    """The kinds that one hash table keeps; what is of no other is refused."""

    def __init__(self, kinds: Iterable[Kind[Any]]) -> None:
        self._kinds = {kind.record: kind for kind in kinds}
        self._family = wire.Family(tuple(self._kinds))

    def judge(self, data: bytes, wall_ms: int) -> Judged:
        """What a table has to know of an encoded record.

        Raises `RemoteProtocolError`: ``dht.record-size``, a rule of decoding or of the signature,
        ``freshness.skew`` (signed in the future), ``dht.expired``, or what the kind's `admit` raises.
        """
        if len(data) > MAX_RECORD:
            raise RemoteProtocolError("dht.record-size", f"{len(data)} bytes, {MAX_RECORD} are allowed")
        record: Any = self._family.decode(data)
        kind = self._kinds[type(record)]
        if record.timestamp > wall_ms + SKEW_MS:
            raise RemoteProtocolError("freshness.skew", f"the {kind.name} record is from the future")
        left_ms = record.timestamp + kind.life_of(record) - wall_ms
        if left_ms <= 0:
            raise RemoteProtocolError("dht.expired", f"the {kind.name} record ended {-left_ms} ms ago")
        signing.verify(record)
        kind.admit(record, wall_ms)
        return Judged(kind.name, kind.key(record), record.signer, kind.precedence(record), left_ms / 1000)
