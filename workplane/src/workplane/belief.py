"""Who peers proved to be, and which records are to be believed by it.

A record carries its signer's pass, and the pass must be of the pod that the record names; in an open fabric, where passes
prove nothing, a record without one is believed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from uuid import UUID

from attrs import define, field

from magik_proto.credentials import MembershipError, Revocations
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.passes import PassPolicy, PodIdentity
from magik_proto.records import ServiceRecord

MAX_CACHED: Final = 1_024
"""Passes whose check is remembered. At it the one that was not used for longest goes. A guess: 16 times the connections."""
CACHED_MS: Final = 60_000
"""After so long a pass is checked anew: it, or the membership of the award's owner, may have ended. A guess."""


@define
class Beliefs:
    """The policy of the plane with a memory. `wall` gives ms since the epoch; `own` is (workload id, uid) of this pod."""

    policy: PassPolicy
    wall: Callable[[], int]
    own: tuple[str, UUID] | None = None
    _checked: OrderedDict[tuple[PeerId, bytes], tuple[int, PodIdentity]] = field(factory=OrderedDict)

    def identify(self, peer: PeerId, shown: bytes | None) -> PodIdentity | None:
        """Who shows this pass for its key; None without one, or with one that does not hold."""
        try:
            return None if shown is None else self._check(peer, shown)
        except MembershipError:
            return None

    def judge(self, record: ServiceRecord) -> None:
        """Return if the signer is the replica that the record names. Raises `RemoteProtocolError`.

        A namesake of the own workload, of another uid, is none of its replicas (technical-spec §6).
        """
        if record.member is None and self.policy.open:
            return
        identity = self._check(record.peer_id, record.member)
        named = (record.workload_id, record.pod_name, record.ordinal)
        if named != (str(identity.resource), identity.pod_name, identity.ordinal):
            detail = f"{identity.pod_name} of {identity.resource} signs for {record.pod_name} of {record.workload_id}"
            raise RemoteProtocolError("record.other-pod", detail)
        if self.own is not None and record.workload_id == self.own[0] and identity.uid != self.own[1]:
            raise RemoteProtocolError("record.namesake", f"{record.pod_name} is of an earlier {self.own[0]}")

    def believes(self, record: ServiceRecord) -> bool:
        """Whether `judge` finds nothing."""
        try:
            self.judge(record)
        except RemoteProtocolError:
            return False
        return True

    def admit(self, record: ServiceRecord, _: int = 0) -> None:
        """`judge`, as the hash table's kinds want it."""
        self.judge(record)

    def revoked(self, _: Revocations) -> None:
        """The policy has changed."""
        self._checked.clear()

    def _check(self, peer: PeerId, shown: bytes | None) -> PodIdentity:
        now = self.wall()
        key = (peer, shown or b"")
        known = self._checked.get(key)
        if known is not None and now - CACHED_MS < known[0] <= now:
            self._checked.move_to_end(key)
            return known[1]
        identity = self.policy.check(peer, shown, now)
        self._checked[key] = (now, identity)
        self._checked.move_to_end(key)
        if len(self._checked) > MAX_CACHED:
            self._checked.popitem(last=False)
        return identity
