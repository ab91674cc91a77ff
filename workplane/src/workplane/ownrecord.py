"""The own replica's service record: what it says, and its versions. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import define, field

from magik_proto import signing
from magik_proto.identity import Identity, RandomSource
from magik_proto.messages import ResourceId
from magik_proto.records import ServiceRecord

Caps = Mapping[str, bool | int | str]


@define
class OwnRecord:
    """Facts about this replica; `sign` makes a record of them that outranks all before."""

    identity: Identity
    resource: ResourceId
    pod_name: str
    ordinal: int | None
    wall: Callable[[], int]
    random: RandomSource
    member: bytes | None = None
    addrs: tuple[str, ...] = ()
    ports: Mapping[str, int] = field(factory=dict)
    caps: Caps = field(factory=dict)
    ready: bool = False
    healthy: bool = False
    _version: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        # With a key that is kept (manual use) an earlier run's records may still be about.
        self._version = self.wall()

    def change(
        self, *, ready: bool | None = None, healthy: bool | None = None, caps: Caps | None = None
    ) -> bool:
        """Take in what is given; caps are added to those there are. Whether anything is another than before."""
        before = (self.ready, self.healthy, self.caps)
        self.ready = self.ready if ready is None else ready
        self.healthy = self.healthy if healthy is None else healthy
        self.caps = {**self.caps, **(caps or {})}
        changed = before != (self.ready, self.healthy, self.caps)
        self._version += changed
        return changed

    def sign(self) -> ServiceRecord:
        """The record as of now."""
        record = ServiceRecord(
            workload_id=str(self.resource),
            namespace=self.resource.namespace,
            workload_kind=self.resource.kind,
            workload_name=self.resource.name,
            peer_id=self.identity.peer_id,
            pod_name=self.pod_name,
            ordinal=self.ordinal,
            addrs=self.addrs,
            caps=self.caps,
            ports=self.ports,
            version=self._version,
            ts=self.wall(),
            ready=self.ready,
            healthy=self.healthy,
            member=self.member,
            nonce=signing.new_nonce(self.random),
        )
        return signing.sign(record, self.identity)
