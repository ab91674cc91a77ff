"""Who may be in a fabric, and in what role, checked by any member alone.

The chain: the fabric's root key signs a `Delegation` for a short-lived key; that key, carried by an `Invite`,
signs a `Member` for a machine, which shows it in its TLS certificate. Revocation is a list signed by the
root, with a serial. Nothing here proves *when* a member was signed: who steals an invite's key after it
expired can still date a member back, but not past ``delegation.expires + delegation.member_life_ms``, and
revoking the invite ends all its members.
"""

from __future__ import annotations

from magik_proto.credentials import (
    ALL_ROLES,
    CLOCK_SKEW_MS,
    INVITE_LIFE_MS,
    MAX_MEMBER_BYTES,
    MEMBER_LIFE_MS,
    RUN,
    SUBMIT,
    Delegation,
    Member,
    MembershipError,
    Revocations,
    check_signature,
    check_window,
)
from magik_proto.errors import LocalProtocolError, RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.invites import INVITE_PREFIX, Invite, RootKey
from magik_proto.wire import decode_as

__all__ = [
    "ALL_ROLES",
    "CLOCK_SKEW_MS",
    "INVITE_LIFE_MS",
    "INVITE_PREFIX",
    "MAX_MEMBER_BYTES",
    "MEMBER_LIFE_MS",
    "RUN",
    "SUBMIT",
    "Delegation",
    "Invite",
    "Member",
    "MembershipError",
    "MembershipPolicy",
    "Revocations",
    "RootKey",
]


class MembershipPolicy:
    """Decides who is admitted: to the fabric with this root, or, without a root, to an *open* fabric (anyone,
    all roles).

    Holds the newest revocations it was given. Ask again for connected peers after `revoke` and as time
    passes: admission holds only until the membership's `expires`.
    """

    def __init__(self, root: PeerId | None) -> None:
        self._root = root
        self._revocations: Revocations | None = None
        self._revoked_peers: frozenset[PeerId] = frozenset()
        self._revoked_invites: frozenset[PeerId] = frozenset()

    @property
    def root(self) -> PeerId | None:
        """The fabric's root, or None for an open fabric."""
        return self._root

    @property
    def open(self) -> bool:
        """Whether anyone is admitted."""
        return self._root is None

    @property
    def revocations(self) -> Revocations | None:
        """The newest list, for passing on."""
        return self._revocations

    def admit(self, peer: PeerId, member_bytes: bytes | None, now_ms: int) -> frozenset[str]:
        """The roles that `peer` has by the `Member` in `member_bytes`; `MembershipError` saying why it has
        none."""
        if self._root is None:
            return ALL_ROLES
        if not member_bytes:
            raise MembershipError(
                "membership.missing", f"{peer} shows no membership; it needs an invite to this fabric"
            )
        return frozenset(self.check(peer, member_bytes, now_ms).roles)

    def check(self, peer: PeerId, member_bytes: bytes, now_ms: int) -> Member:
        """The `Member` of `peer`, after every check of the chain; `LocalProtocolError` in an open fabric."""
        if self._root is None:
            raise LocalProtocolError("an open fabric has no memberships to check")
        member, delegation = _decode_chain(member_bytes)
        if delegation.root != self._root:
            detail = f"{peer} is a member of the fabric {delegation.root}, this is {self._root}"
            raise MembershipError("membership.other-fabric", detail)
        if member.peer != peer:
            raise MembershipError(
                "membership.other-identity", f"{peer} shows the membership of {member.peer}"
            )
        self._check_revoked(member)
        _check_chain(member, delegation)
        _check_times(member, delegation, now_ms)
        return member

    def revoke(self, revocations: Revocations) -> bool:
        """Take a list of revocations; returns whether it was news.

        Raises `MembershipError`: ``membership.other-fabric``, ``membership.root-signature``, or
        ``membership.revocations-conflict`` when the root signed two lists with one serial. An older list is
        ignored.
        """
        if self._root is None or revocations.root != self._root:
            raise MembershipError("membership.other-fabric", f"revocations of the fabric {revocations.root}")
        known = self._revocations
        if known is not None and revocations.serial < known.serial:
            return False
        check_signature(
            revocations, "membership.root-signature", "revocations are not signed by the fabric's root"
        )
        if known is not None and revocations.serial == known.serial:
            if (revocations.peers, revocations.invites) != (known.peers, known.invites):
                detail = (
                    f"two lists with serial {known.serial}; the operator must sign one with a higher serial"
                )
                raise MembershipError("membership.revocations-conflict", detail)
            return False
        self._revocations = revocations
        self._revoked_peers = frozenset(revocations.peers)
        self._revoked_invites = frozenset(revocations.invites)
        return True

    def is_revoked(self, peer: PeerId) -> bool:
        """Whether the root has revoked this machine itself (not its invite)."""
        return peer in self._revoked_peers

    def _check_revoked(self, member: Member) -> None:
        if self.is_revoked(member.peer):
            raise MembershipError("membership.revoked", f"{member.peer} was revoked by the fabric's root")
        if member.delegate in self._revoked_invites:
            detail = f"{member.peer} joined by the invite {member.delegate}, which the root revoked"
            raise MembershipError("membership.invite-revoked", detail)


def _decode_chain(member_bytes: bytes) -> tuple[Member, Delegation]:
    try:
        member = decode_as(Member, member_bytes)
        return member, decode_as(Delegation, member.delegation)
    except RemoteProtocolError as error:
        raise MembershipError("membership.malformed", str(error)) from error


def _check_chain(member: Member, delegation: Delegation) -> None:
    check_signature(delegation, "membership.root-signature", "the invite was not signed by the fabric's root")
    if member.delegate != delegation.delegate:
        raise MembershipError(
            "membership.invite-mismatch", "signed by another key than the one that the root invited"
        )
    check_signature(
        member, "membership.invite-signature", "the membership was not signed with the invite's key"
    )
    if not set(member.roles) <= set(delegation.roles):
        raise MembershipError(
            "membership.roles", f"claims {member.roles}, the invite gives {delegation.roles}"
        )


def _check_times(member: Member, delegation: Delegation, now_ms: int) -> None:
    check_window(delegation, member.issued)
    if member.expires - member.issued > delegation.member_life_ms:
        raise MembershipError(
            "membership.life", f"holds longer than the {delegation.member_life_ms} ms allowed"
        )
    if member.issued > now_ms + CLOCK_SKEW_MS:
        raise MembershipError(
            "membership.not-yet", f"begins at {member.issued}, it is {now_ms}: check the clocks"
        )
    if now_ms >= member.expires:
        raise MembershipError(
            "membership.expired", f"ended at {member.expires}, it is {now_ms}; join with a new invite"
        )
