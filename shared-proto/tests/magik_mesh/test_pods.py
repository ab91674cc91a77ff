"""Pods on their own plane: who has a pass of the fabric and the namespace meets, and nobody else gets in."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import attrs
import pytest
import trio
from cryptography import x509
from mesh_support import ROOT, STRANGERS_ROOT, closed, member_of, refused
from trio.testing import MockClock

from magik_mesh import NodeConfig
from magik_mesh.testing import EPOCH_MS, MemoryFabric, config_of, identity_of, peers_of
from magik_mesh.tls import make_credentials
from magik_proto import signing
from magik_proto.identity import Identity
from magik_proto.invites import RootKey
from magik_proto.membership import MembershipPolicy
from magik_proto.messages import Award, ResourceId
from magik_proto.passes import POD, Pass, PassPolicy, issue_pass
from magik_proto.wire import decode_as, encode_message

PLANE = "magik-workload/1"
OWNER, MACHINE, ROGUE = (Identity.from_seed(bytes([n]) * 32) for n in (91, 92, 93))


def pass_of(seed: int, *, namespace: str = "default", root: RootKey = ROOT, **changes: Any) -> bytes:
    award = Award(
        tender_id=UUID(int=3 << 64),
        owner_identity=OWNER.peer_id,
        owner_pubkey=OWNER.peer_id.raw,
        winner=MACHINE.peer_id,
        resource=ResourceId(namespace, "Deployment", "web"),
        uid=UUID(int=1 << 64),
        generation=1,
        replicas=9,
        manifest_digest=bytes(32),
        sealed_digest=bytes(32),
        timestamp=EPOCH_MS,
        nonce=1,
    )
    return issue_pass(
        changes.pop("machine", MACHINE),
        encode_message(signing.sign(award, OWNER)),
        root.invite(EPOCH_MS).accept(OWNER, EPOCH_MS).encode(),
        pod=identity_of(changes.pop("key", seed)).peer_id,
        pod_uid=UUID(int=(9 << 64) + seed),
        pod_name=f"web-{seed}",
        ordinal=None,
        now_ms=EPOCH_MS,
    )


def forged(shown: bytes) -> bytes:
    return encode_message(attrs.evolve(decode_as(Pass, shown), pod_name="web-9"))


def pod(seed: int, shown: bytes | None, namespace: str = "default", **changes: Any) -> NodeConfig:
    policy = PassPolicy(MembershipPolicy(ROOT.peer_id), namespace)
    named = {
        "policy": policy,
        "member": shown,
        "plane": PLANE,
        "subject": "default/Deployment/web",
        **changes,
    }
    return config_of(seed, **named)


async def test_pods_of_a_workload_meet(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    async with fabric.open(pod(1, pass_of(1))) as a, fabric.open(pod(2, pass_of(2))) as b:
        await fabric.connected()
        assert [peer.roles for peer in (*a.peers(), *b.peers())] == [frozenset({POD})] * 2
        for node, peer in ((a, b.id), (b, a.id), (a, a.id)):
            assert decode_as(Pass, node.shown(peer) or b"").pod == peer


# What the intruder itself would admit is anybody: the refusal is the pod's.
ANYBODY = {"policy": MembershipPolicy(None)}


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        ("pass.missing", None),
        ("pass.namespace", pass_of(2, namespace="other")),
        ("pass.signature", forged(pass_of(2))),
        ("pass.not-the-winner", pass_of(2, machine=ROGUE)),
        ("pass.other-identity", pass_of(2, key=3)),
        ("membership.other-fabric", pass_of(2, root=STRANGERS_ROOT)),
        ("pass.malformed", member_of(2)),
    ],
    ids=["none", "namespace", "forged", "rogue machine", "stolen", "fabric", "machine"],
)
async def test_who_is_no_pod_of_the_namespace_is_refused(
    rule: str, shown: bytes | None, autojump_clock: MockClock
) -> None:
    victim = pod(1, pass_of(1))
    intruder = config_of(2, plane=PLANE, member=shown, **ANYBODY)
    changes = {name: getattr(victim, name) for name in ("policy", "member", "plane", "subject")}
    assert rule in await refused(intruder, **changes)


async def test_a_pod_is_refused_at_a_machine_s_socket(autojump_clock: MockClock) -> None:
    """By the plane's name, and where it gives a machine's, by what it shows."""
    await refused(pod(2, pass_of(2)))
    reason = await refused(config_of(2, member=pass_of(2), **ANYBODY))
    assert "membership.malformed" in reason and "refused us" in reason


async def test_a_machine_is_refused_at_a_pod_s_socket(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    async with fabric.open(pod(1, pass_of(1))) as door, fabric.open(closed(2, member_of(2))) as machine:
        await trio.sleep(30.0)
        assert peers_of(door) == peers_of(machine) == []


def test_the_certificate_names_the_workload() -> None:
    config = pod(1, pass_of(1))
    names = make_credentials(config).certificate.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    (name,) = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    peer = identity_of(1).peer_id
    assert name == f"spiffe://{ROOT.peer_id}/magik-workload/default/Deployment/web/{peer}"
