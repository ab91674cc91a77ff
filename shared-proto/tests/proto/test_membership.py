"""Membership: the chain from the root, and a reason for every refusal."""

from __future__ import annotations

import base64
import copy
import pickle
from typing import Any

import attrs
import pytest

from magik_proto import codec, signing
from magik_proto.errors import LocalProtocolError, RemoteProtocolError
from magik_proto.identity import BootstrapPeer, Identity, PeerId
from magik_proto.membership import (
    ALL_ROLES,
    CLOCK_SKEW_MS,
    INVITE_LIFE_MS,
    INVITE_PREFIX,
    MAX_MEMBER_BYTES,
    MEMBER_LIFE_MS,
    Delegation,
    Invite,
    Member,
    MembershipError,
    MembershipPolicy,
    RootKey,
)
from magik_proto.wire import decode_as, encode_message

NOW = 1_700_000_000_000


@pytest.fixture
def root() -> RootKey:
    return RootKey.from_seed(b"\x21" * 32)


@pytest.fixture
def invite(root: RootKey) -> Invite:
    return root.invite(NOW, random=lambda size: b"\x22" * size)


@pytest.fixture
def member(invite: Invite, node: Identity) -> Member:
    return invite.accept(node, NOW)


@pytest.fixture
def policy(root: RootKey) -> MembershipPolicy:
    return MembershipPolicy(root.peer_id)


def refusal(policy: MembershipPolicy, peer: PeerId, member: bytes | None, now: int = NOW) -> str:
    with pytest.raises(MembershipError) as caught:
        policy.admit(peer, member, now)
    assert caught.value.detail
    return caught.value.rule


def delegate_key() -> Identity:
    """The secret key of the `invite` fixture: what a thief of it would have."""
    return Identity.from_seed(b"\x22" * 32)


def resigned(member: Member, **changes: Any) -> bytes:
    """`member` with other values, signed with the invite's key."""
    return signing.sign(attrs.evolve(member, **changes), delegate_key()).encode()


def test_a_member_by_invite_is_admitted_with_its_roles(
    root: RootKey, policy: MembershipPolicy, node: Identity, member: Member
) -> None:
    assert policy.admit(node.peer_id, member.encode(), NOW) == ALL_ROLES
    only_run = root.invite(NOW, roles={"run"}).accept(node, NOW)
    assert policy.admit(node.peer_id, only_run.encode(), NOW) == {"run"}
    assert policy.check(node.peer_id, member.encode(), NOW) == member


def test_lives_are_as_stated(invite: Invite, member: Member, node: Identity) -> None:
    assert invite.expires == NOW + INVITE_LIFE_MS == NOW + 3_600_000
    assert member.expires == NOW + MEMBER_LIFE_MS == NOW + 365 * 86_400_000
    assert invite.accept(node, NOW, 1000).expires == NOW + 1000
    assert invite.accept(node, NOW, 2 * MEMBER_LIFE_MS).expires == NOW + MEMBER_LIFE_MS


def test_a_member_fits_in_a_certificate(member: Member) -> None:
    assert len(member.encode()) < 600 < MAX_MEMBER_BYTES


def test_without_or_with_broken_bytes_nobody_is_admitted(
    policy: MembershipPolicy, node: Identity, member: Member
) -> None:
    data = member.encode()
    assert refusal(policy, node.peer_id, None) == "membership.missing"
    assert refusal(policy, node.peer_id, b"") == "membership.missing"
    assert refusal(policy, node.peer_id, data[:-1]) == "membership.malformed"
    assert refusal(policy, node.peer_id, b"\0" * (MAX_MEMBER_BYTES + 1)) == "membership.malformed"
    assert refusal(policy, node.peer_id, resigned(member, delegation=b"x")) == "membership.malformed"


def test_every_changed_byte_is_refused(policy: MembershipPolicy, node: Identity, member: Member) -> None:
    data = member.encode()
    for at in range(len(data)):
        refusal(policy, node.peer_id, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_anothers_membership_is_refused(policy: MembershipPolicy, owner: Identity, member: Member) -> None:
    assert refusal(policy, owner.peer_id, member.encode()) == "membership.other-identity"


def test_another_fabrics_membership_is_refused(policy: MembershipPolicy, node: Identity) -> None:
    foreign = RootKey.generate().invite(NOW).accept(node, NOW)
    assert refusal(policy, node.peer_id, foreign.encode()) == "membership.other-fabric"


def test_a_delegation_that_the_root_did_not_sign_is_refused(
    policy: MembershipPolicy, node: Identity, member: Member
) -> None:
    delegation = decode_as(Delegation, member.delegation)
    forged = attrs.evolve(delegation, expires=delegation.expires + 1)
    data = resigned(member, delegation=encode_message(forged))
    assert refusal(policy, node.peer_id, data) == "membership.root-signature"


def test_a_member_signed_by_another_key_is_refused(
    policy: MembershipPolicy, node: Identity, owner: Identity, member: Member
) -> None:
    forged = attrs.evolve(member, signature=b"\0" * 64)
    assert refusal(policy, node.peer_id, forged.encode()) == "membership.invite-signature"
    own = signing.sign(attrs.evolve(member, delegate=owner.peer_id), owner)
    assert refusal(policy, node.peer_id, own.encode()) == "membership.invite-mismatch"


def test_an_invite_gives_only_its_own_roles(root: RootKey, policy: MembershipPolicy, node: Identity) -> None:
    invite = root.invite(NOW, roles={"run"}, random=lambda size: b"\x22" * size)
    member = invite.accept(node, NOW)
    data = resigned(member, roles=("run", "submit"))
    assert refusal(policy, node.peer_id, data) == "membership.roles"
    assert policy.admit(node.peer_id, resigned(member, roles=("run",)), NOW) == {"run"}


def test_memberships_end_and_do_not_begin_in_the_future(
    policy: MembershipPolicy, node: Identity, member: Member
) -> None:
    data = member.encode()
    assert policy.admit(node.peer_id, data, member.expires - 1)
    assert refusal(policy, node.peer_id, data, member.expires) == "membership.expired"
    assert policy.admit(node.peer_id, data, NOW - CLOCK_SKEW_MS)
    assert refusal(policy, node.peer_id, data, NOW - CLOCK_SKEW_MS - 1) == "membership.not-yet"


def test_an_invite_cannot_be_used_outside_its_time(
    policy: MembershipPolicy, node: Identity, invite: Invite, member: Member
) -> None:
    for at in (invite.expires, NOW - CLOCK_SKEW_MS - 1):
        with pytest.raises(MembershipError) as caught:
            invite.accept(node, at)
        assert caught.value.rule == "membership.invite-expired"
    late = resigned(member, issued=invite.expires, expires=invite.expires + 1)
    assert refusal(policy, node.peer_id, late, invite.expires) == "membership.invite-expired"


def test_a_member_cannot_outlive_what_the_root_allows(
    policy: MembershipPolicy, node: Identity, member: Member
) -> None:
    data = resigned(member, expires=member.expires + 1)
    assert refusal(policy, node.peer_id, data) == "membership.life"


def test_a_revoked_machine_is_refused(
    root: RootKey, policy: MembershipPolicy, node: Identity, owner: Identity, invite: Invite, member: Member
) -> None:
    assert policy.revoke(root.revoke(1, NOW, peers=(node.peer_id,)))
    assert refusal(policy, node.peer_id, member.encode()) == "membership.revoked"
    assert policy.admit(owner.peer_id, invite.accept(owner, NOW).encode(), NOW)


def test_revoking_an_invite_revokes_its_members(
    root: RootKey, policy: MembershipPolicy, node: Identity, owner: Identity, invite: Invite, member: Member
) -> None:
    other = root.invite(NOW).accept(owner, NOW)
    assert policy.revoke(root.revoke(1, NOW, invites=(invite.id,)))
    assert refusal(policy, node.peer_id, member.encode()) == "membership.invite-revoked"
    assert policy.admit(owner.peer_id, other.encode(), NOW)


def test_the_list_with_the_highest_serial_counts(
    root: RootKey, policy: MembershipPolicy, node: Identity, member: Member
) -> None:
    second = root.revoke(2, NOW, peers=(node.peer_id,))
    assert policy.revoke(second)
    assert not policy.revoke(second)
    assert not policy.revoke(root.revoke(1, NOW))
    assert policy.revocations == second
    assert refusal(policy, node.peer_id, member.encode()) == "membership.revoked"
    assert policy.revoke(root.revoke(3, NOW))
    assert policy.admit(node.peer_id, member.encode(), NOW)


def test_two_lists_with_one_serial_are_a_conflict(
    root: RootKey, policy: MembershipPolicy, node: Identity
) -> None:
    policy.revoke(root.revoke(1, NOW))
    with pytest.raises(MembershipError, match=r"membership\.revocations-conflict"):
        policy.revoke(root.revoke(1, NOW, peers=(node.peer_id,)))


def test_only_the_root_revokes(
    root: RootKey, policy: MembershipPolicy, node: Identity, member: Member
) -> None:
    with pytest.raises(MembershipError, match=r"membership\.other-fabric"):
        policy.revoke(RootKey.generate().revoke(9, NOW, peers=(node.peer_id,)))
    forged = attrs.evolve(root.revoke(9, NOW), peers=(node.peer_id,))
    with pytest.raises(MembershipError, match=r"membership\.root-signature"):
        policy.revoke(forged)
    assert policy.revocations is None
    assert policy.admit(node.peer_id, member.encode(), NOW)


def test_an_open_fabric_admits_anyone(root: RootKey, node: Identity) -> None:
    policy = MembershipPolicy(None)
    assert policy.open
    assert policy.root is None
    assert policy.admit(node.peer_id, None, NOW) == ALL_ROLES
    with pytest.raises(LocalProtocolError):
        policy.check(node.peer_id, b"", NOW)
    with pytest.raises(MembershipError):
        policy.revoke(root.revoke(1, NOW))


def test_an_invite_is_one_line_that_carries_everything(root: RootKey, node: Identity) -> None:
    peer = BootstrapPeer(node.peer_id, "10.0.0.1", 4001)
    invite = root.invite(NOW, roles={"run"}, bootstrap=(peer,))
    text = invite.text()
    assert text.startswith("magik-invite-1.")
    assert set(text.removeprefix(INVITE_PREFIX)) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    )
    back = Invite.parse(f"  {text}\n")
    assert (back.root, back.id, back.roles) == (root.peer_id, invite.id, {"run"})
    assert (back.bootstrap, back.expires) == ((peer,), NOW + INVITE_LIFE_MS)
    assert back.accept(node, NOW).delegate == invite.id


def retold(invite: Invite, **changes: Any) -> str:
    """The invite's text with changed parts."""
    body = invite.text().removeprefix(INVITE_PREFIX)
    value = codec.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return INVITE_PREFIX + base64.urlsafe_b64encode(codec.encode({**value, **changes})).decode().rstrip("=")


def test_other_texts_are_no_invite(invite: Invite) -> None:
    text = invite.text()
    broken = [
        "",
        "magik-invite-1.",
        text[1:],
        text[:-3],
        text + "!",
        text.replace("magik-invite-1.", "magik-invite-2."),
        text[:40] + "\n" + text[40:],
        "magik-invite-1." + "A" * 20_000,
        retold(invite, magik="invite/2"),
        retold(invite, seed=b"\x23" * 32),
        retold(invite, seed=b"short"),
        retold(invite, delegation=b"x"),
        retold(invite, bootstrap=["here"]),
        retold(invite, bootstrap=[1]),
    ]
    for bad in broken:
        with pytest.raises(MembershipError) as caught:
            Invite.parse(bad)
        assert caught.value.rule == "membership.invite-malformed"
        assert text[60:90] not in str(caught.value)


def test_an_invite_that_the_root_did_not_sign_is_refused(invite: Invite) -> None:
    forged = encode_message(attrs.evolve(invite.delegation, roles=("admin", "run")))
    with pytest.raises(MembershipError, match=r"membership\.root-signature"):
        Invite.parse(retold(invite, delegation=forged))


def test_secrets_do_not_show_and_can_be_wiped(root: RootKey, invite: Invite, node: Identity) -> None:
    for holder in (root, invite):
        assert "22222222" not in repr(holder)
        assert "21212121" not in repr(holder)
        for escape in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(LocalProtocolError):
                escape(holder)
    with invite:
        pass
    with pytest.raises(LocalProtocolError, match="wiped"):
        invite.accept(node, NOW)
    with root:
        assert root.seed() == b"\x21" * 32
    with pytest.raises(LocalProtocolError, match="wiped"):
        root.invite(NOW)


def test_an_invites_key_is_the_one_it_names(invite: Invite, node: Identity) -> None:
    with pytest.raises(LocalProtocolError):
        Invite(invite.delegation, node)


@pytest.mark.parametrize("roles", [(), ("submit", "run"), ("run", "run"), ("Run",), ("a",) * 17, "run"])
def test_roles_have_one_form(member: Member, roles: Any) -> None:
    with pytest.raises(LocalProtocolError):
        attrs.evolve(member, roles=roles)


def test_errors_of_membership_are_remote(policy: MembershipPolicy, node: Identity) -> None:
    with pytest.raises(RemoteProtocolError):
        policy.admit(node.peer_id, None, NOW)


def test_credentials_say_what_they_are_about(root: RootKey, node: Identity) -> None:
    invite = root.invite(NOW)
    member = invite.accept(node, NOW)
    revoked = root.revoke(1, NOW)
    assert invite.delegation.replay_id == b"delegation" + invite.id.raw
    assert member.replay_id == b"member" + node.peer_id.raw
    assert revoked.replay_id == b"revocations" + root.peer_id.raw
