"""The vectors of passes: pods that another pod admits or refuses."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from refusals import INVITED, NODE, NOW, ROOT, STRANGER, delegation_of, member_of, rule_of

from magik_proto import signing
from magik_proto.credentials import Revocations
from magik_proto.membership import MembershipPolicy
from magik_proto.messages import Award, ResourceId, encode_message
from magik_proto.passes import Pass, PassPolicy


def passes() -> list[dict[str, Any]]:
    """Pods as another pod of the namespace ``default`` judges them."""
    award = Award(
        tender_id=UUID(int=1), owner_identity=STRANGER.peer_id, owner_pubkey=STRANGER.peer_id.raw, winner=NODE.peer_id,
        resource=ResourceId("default", "StatefulSet", "db"), uid=UUID(int=2), generation=1, replicas=1, ordinals=(1,),
        manifest_digest=bytes(32), sealed_digest=bytes(32), timestamp=NOW, nonce=1,
    )  # fmt: skip
    submits = delegation_of(roles=("run", "submit"))
    owner = member_of(submits, peer=STRANGER.peer_id, roles=("run", "submit"))
    runs = member_of(delegation_of(), peer=STRANGER.peer_id)

    def shown(given: Award = award, member: bytes = owner, signed: bool = True, **changes: Any) -> bytes:
        signature = STRANGER.sign(signing.signed_bytes(given)) if signed else bytes(64)
        names: dict[str, Any] = {
            "machine": NODE.peer_id, "pod": INVITED.peer_id, "pod_uid": UUID(int=3), "pod_name": "db-1", "ordinal": 1,
            "issued": NOW, "expires": NOW + 60_000, **changes,
        }  # fmt: skip
        made = Pass(award=encode_message(given.evolve(signature=signature)), member=member, nonce=1, **names)
        return encode_message(made.evolve(signature=NODE.sign(signing.signed_bytes(made))))

    elsewhere = award.evolve(resource=ResourceId("other", "StatefulSet", "db"))
    machine_revoked = ROOT.revoke(1, NOW, peers=(NODE.peer_id,), random=bytes)
    rows: list[tuple[str, bytes, int, Revocations | None]] = [
        ("a pod", shown(), NOW + 2000, None),
        ("nothing shown", b"", NOW + 2000, None),
        ("no pass", b"\xa0", NOW + 2000, None),
        ("another pod's", shown(pod=NODE.peer_id), NOW + 2000, None),
        ("a pass that its machine did not sign", shown(machine=STRANGER.peer_id), NOW + 2000, None),
        ("an award that its owner did not sign", shown(signed=False), NOW + 2000, None),
        ("an award of another machine", shown(award.evolve(winner=STRANGER.peer_id)), NOW + 2000, None),
        ("an owner that may not submit", shown(member=runs), NOW + 2000, None),
        ("a machine that was revoked", shown(), NOW + 2000, machine_revoked),
        ("an ordinal that was not awarded", shown(pod_name="db-2", ordinal=2), NOW + 2000, None),
        ("a name that is not the workload's", shown(pod_name="web-1"), NOW + 2000, None),
        ("another namespace's", shown(elsewhere), NOW + 2000, None),
        ("longer than a pass may hold", shown(expires=NOW + 365 * 86_400_000 + 1), NOW + 2000, None),
        ("more than the skew in the future", shown(issued=NOW + 40_000), NOW + 2000, None),
        ("expired", shown(expires=NOW + 2000), NOW + 2000, None),
    ]  # fmt: skip
    return [_judged(*row) for row in rows]


def _judged(what: str, shown: bytes, now: int, revoked: Revocations | None) -> dict[str, Any]:
    membership = MembershipPolicy(ROOT.peer_id)
    if revoked is not None:
        membership.revoke(revoked)
    rule = rule_of(lambda: PassPolicy(membership, "default").admit(INVITED.peer_id, shown, now))
    row = {"what": what, "pass": shown.hex(), "peer": str(INVITED.peer_id), "now": now, "rule": rule}
    return row if revoked is None else {**row, "revocations": encode_message(revoked).hex()}
