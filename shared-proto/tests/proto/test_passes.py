"""Passes: the chain from the fabric's root to a pod's key, and a reason for every refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import attrs
import pytest

from magik_proto import signing
from magik_proto.errors import LocalProtocolError
from magik_proto.identity import Identity, PeerId
from magik_proto.membership import CLOCK_SKEW_MS, RUN, MembershipError, MembershipPolicy, RootKey
from magik_proto.messages import Award, ResourceId
from magik_proto.passes import MAX_PASS_BYTES, MAX_PASS_LIFE_MS, POD, Pass, PassPolicy, issue_pass
from magik_proto.wire import decode_as, encode_message

NOW = 1_700_000_000_000
OWNER, MACHINE, POD_KEY, ROGUE = (Identity.from_seed(bytes([n]) * 32) for n in (31, 32, 33, 34))
ROOT = RootKey.from_seed(b"\x21" * 32)
UID, POD_UID = UUID(int=1 << 64), UUID(int=2 << 64)


def member_of(identity: Identity, root: RootKey = ROOT, roles: frozenset[str] | None = None) -> bytes:
    invite = root.invite(NOW) if roles is None else root.invite(NOW, roles=roles)
    return invite.accept(identity, NOW).encode()


def award_of(**changes: Any) -> bytes:
    award = Award(
        tender_id=UUID(int=3 << 64),
        owner_identity=OWNER.peer_id,
        owner_pubkey=OWNER.peer_id.raw,
        winner=MACHINE.peer_id,
        resource=ResourceId("default", "StatefulSet", "db"),
        uid=UID,
        generation=4,
        replicas=2,
        ordinals=(1, 2),
        manifest_digest=bytes(32),
        sealed_digest=bytes(32),
        timestamp=NOW,
        nonce=1,
    )
    signer = changes.pop("signer", OWNER)
    changed = attrs.evolve(award, **changes)
    return encode_message(attrs.evolve(changed, signature=signer.sign(signing.signed_bytes(changed))))


def pass_of(award: bytes | None = None, machine: Identity = MACHINE, **changes: Any) -> bytes:
    named: dict[str, Any] = {
        "pod": POD_KEY.peer_id,
        "pod_uid": POD_UID,
        "pod_name": "db-1",
        "ordinal": 1,
        "now_ms": NOW,
        "life_ms": 1000,
        "member": member_of(OWNER),
        **changes,
    }
    return issue_pass(machine, award or award_of(), named.pop("member"), **named)


def policy(**options: Any) -> PassPolicy:
    return PassPolicy(MembershipPolicy(ROOT.peer_id), "default", **options)


def refusal(shown: bytes | None, judge: PassPolicy | None = None, now: int = NOW) -> str:
    with pytest.raises(MembershipError) as caught:
        (judge or policy()).admit(POD_KEY.peer_id, shown, now)
    assert caught.value.detail
    return caught.value.rule


def test_a_pass_says_who_the_pod_is() -> None:
    found = policy().check(POD_KEY.peer_id, pass_of(), NOW)
    assert (str(found.resource), found.uid, found.generation) == ("default/StatefulSet/db", UID, 4)
    assert (found.pod_name, found.ordinal, found.pod_uid) == ("db-1", 1, POD_UID)
    assert (found.peer, found.machine) == (POD_KEY.peer_id, MACHINE.peer_id)
    assert policy().admit(POD_KEY.peer_id, pass_of(), NOW) == {POD}


def deployed(name: str, kind: str = "Deployment") -> bytes:
    award = award_of(ordinals=(), replicas=1, resource=ResourceId("default", kind, "web"))
    return pass_of(award, pod_name=name, ordinal=None)


@pytest.mark.parametrize("shown", [deployed("web-5f-x7b"), deployed("web", "Pod")])
def test_other_kinds_have_no_ordinals(shown: bytes) -> None:
    assert policy().check(POD_KEY.peer_id, shown, NOW).ordinal is None


def forged(shown: bytes) -> bytes:
    return encode_message(attrs.evolve(decode_as(Pass, shown), pod_name="db-2", ordinal=2))


def forged_award() -> bytes:
    return encode_message(attrs.evolve(decode_as(Award, award_of()), generation=5))


BAD: list[tuple[str, Callable[[], bytes | None]]] = [
    ("pass.missing", lambda: None),
    ("pass.missing", lambda: b""),
    ("pass.malformed", lambda: b"\xa0"),
    ("pass.malformed", lambda: pass_of(b"\xa0")),
    ("pass.malformed", lambda: member_of(OWNER)),
    ("pass.other-identity", lambda: pass_of(pod=ROGUE.peer_id)),
    ("pass.signature", lambda: forged(pass_of())),
    ("pass.not-the-winner", lambda: pass_of(machine=ROGUE)),
    ("pass.award-signature", lambda: pass_of(forged_award())),
    ("pass.award-signature", lambda: pass_of(award_of(signer=ROGUE))),
    ("pass.role", lambda: pass_of(member=member_of(OWNER, roles=frozenset({RUN})))),
    ("membership.missing", lambda: pass_of(member=None)),
    ("membership.other-fabric", lambda: pass_of(member=member_of(OWNER, RootKey.from_seed(bytes(32))))),
    ("membership.other-identity", lambda: pass_of(member=member_of(MACHINE))),
    ("pass.name", lambda: pass_of(pod_name="db-3", ordinal=3)),
    ("pass.name", lambda: pass_of(pod_name="db-2", ordinal=1)),
    ("pass.name", lambda: pass_of(pod_name="db-01", ordinal=1)),
    ("pass.name", lambda: pass_of(pod_name="db-1", ordinal=None)),
    ("pass.name", lambda: pass_of(pod_name="other-1", ordinal=1)),
    ("pass.name", lambda: deployed("webshop-1")),
    ("pass.life", lambda: pass_of(life_ms=MAX_PASS_LIFE_MS + 1)),
    ("pass.not-yet", lambda: pass_of(now_ms=NOW + CLOCK_SKEW_MS + 1)),
    ("pass.expired", lambda: pass_of(now_ms=NOW - 1000)),
]


@pytest.mark.parametrize(("rule", "shown"), BAD)
def test_what_does_not_hold_together_is_refused(rule: str, shown: Callable[[], bytes | None]) -> None:
    assert refusal(shown()) == rule


def test_a_rogue_machine_names_pods_of_its_own_awards_only() -> None:
    own = award_of(winner=ROGUE.peer_id, resource=ResourceId("default", "StatefulSet", "toy"))
    assert refusal(pass_of(own, ROGUE)) == "pass.name"  # a pod of the db, by an award of the toy
    assert refusal(pass_of(award_of(), ROGUE)) == "pass.not-the-winner"
    tendered_by_itself = award_of(winner=ROGUE.peer_id, signer=ROGUE)
    assert refusal(pass_of(tendered_by_itself, ROGUE)) == "pass.award-signature"


@pytest.mark.parametrize(
    ("revoked", "rule"), [(MACHINE, "pass.revoked"), (OWNER, "membership.revoked")], ids=["machine", "owner"]
)
def test_who_is_revoked_vouches_for_nobody(revoked: Identity, rule: str) -> None:
    judge, shown = policy(), pass_of()
    judge.admit(POD_KEY.peer_id, shown, NOW)
    judge.membership.revoke(ROOT.revoke(1, NOW, peers=(revoked.peer_id,)))
    assert refusal(shown, judge) == rule


def test_namespaces_are_closed_unless_opened() -> None:
    other = award_of(resource=ResourceId("other", "StatefulSet", "db"))
    assert refusal(pass_of(other)) == "pass.namespace"
    found = policy(cross_namespace=True).check(POD_KEY.peer_id, pass_of(other), NOW)
    assert found.resource.namespace == "other"


def test_an_open_fabric_has_no_memberships() -> None:
    judge = PassPolicy(MembershipPolicy(None), "default")
    assert judge.root is None
    assert judge.check(POD_KEY.peer_id, pass_of(member=None), NOW).pod_name == "db-1"
    assert judge.admit(POD_KEY.peer_id, None, NOW) == {POD}
    assert refusal(forged(pass_of(member=None)), judge) == "pass.signature"


def test_the_skew_of_clocks_is_borne() -> None:
    assert policy().admit(POD_KEY.peer_id, pass_of(now_ms=NOW + CLOCK_SKEW_MS), NOW)


def test_a_pass_fits_a_certificate_or_is_not_made() -> None:
    assert len(pass_of()) < MAX_PASS_BYTES // 2
    many = award_of(ordinals=tuple(range(5000)), replicas=5000)
    with pytest.raises(LocalProtocolError):
        pass_of(many)


def test_a_machine_is_no_pod(node: Identity) -> None:
    """The membership of a machine admits nobody here, nor a pass over there."""
    assert refusal(member_of(node)) == "pass.malformed"
    with pytest.raises(MembershipError, match=r"membership\.malformed"):
        MembershipPolicy(ROOT.peer_id).admit(PeerId(POD_KEY.peer_id.raw), pass_of(), NOW)
