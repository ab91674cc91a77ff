"""The signed parts of a membership chain: delegation, member, revocations (see `magik_proto.membership`)."""

from __future__ import annotations

from typing import Any, ClassVar, Final

from attrs import field, frozen

from magik_proto import fields, signing
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import PeerId
from magik_proto.wire import SignedMessage, encode_message

RUN: Final = "run"
"""May bid for tenders and run pods."""
SUBMIT: Final = "submit"
"""May own tenders and dispose of workloads."""
ALL_ROLES: Final = frozenset({RUN, SUBMIT})

INVITE_LIFE_MS: Final = 3600 * 1000
"""How long an invite may be used, unless said otherwise: an hour, as long as setting a machine up takes
(guess)."""
MEMBER_LIFE_MS: Final = 365 * 24 * 3600 * 1000
"""How long a membership holds, unless said otherwise."""
CLOCK_SKEW_MS: Final = 30_000
"""By how much another machine's clock may be ahead of ours (protocol.md)."""
MAX_REVOKED: Final = 10_000
"""Entries of each of the two lists in a revocation. At it: `LocalProtocolError` for the root's operator;
renew the root."""
MAX_MEMBER_BYTES: Final = 4096
"""Bytes of a member with its delegation. At it: refused; it has to fit in a certificate."""

_peer = fields.instance(PeerId)
_role = fields.matching_up_to(r"[a-z](?:[-a-z0-9]{0,30}[a-z0-9])?", 32, "a role name")


def _roles(owner: Any, attribute: Any, value: Any) -> None:
    """One to 16 role names, ascending, so that one set has one form. Unknown roles are kept: they give
    nothing here."""
    fields.sequence(_role, 16)(owner, attribute, value)
    if not value or list(value) != sorted(set(value)):
        raise fields.fail(attribute, "must be one or more role names in ascending order")


def as_roles(value: Any) -> Any:
    """A set of role names in the order that the wire wants; other values pass unchanged."""
    return tuple(sorted(value)) if isinstance(value, set | frozenset) else value


class MembershipError(RemoteProtocolError):
    """A peer is not a member as it claims; `rule` is ``membership.…`` and `detail` says why and what to
    do."""


@frozen(kw_only=True)
class Delegation(SignedMessage):
    """The root lets the key `delegate` sign members with (some of) `roles` from `issued` to `expires` (ms).

    `member_life_ms` bounds how long such a member may hold.
    """

    TYPE: ClassVar[str] = "delegation"
    MAX_SIZE: ClassVar[int] = MAX_MEMBER_BYTES // 2

    root: PeerId = field(validator=_peer)
    delegate: PeerId = field(validator=_peer)
    roles: tuple[str, ...] = field(converter=as_roles, validator=_roles)
    issued: int = field(validator=fields.timestamp)
    expires: int = field(validator=fields.timestamp)
    member_life_ms: int = field(validator=fields.timestamp)

    @property
    def signer(self) -> PeerId:
        """The fabric's root."""
        return self.root

    @property
    def replay_id(self) -> bytes:
        """Type and delegate."""
        return b"delegation" + self.delegate.raw


@frozen(kw_only=True)
class Member(SignedMessage):
    """`peer` is a member of the fabric, with `roles`, from `issued` to `expires` (ms), by the delegation
    inside."""

    TYPE: ClassVar[str] = "member"
    MAX_SIZE: ClassVar[int] = MAX_MEMBER_BYTES

    peer: PeerId = field(validator=_peer)
    roles: tuple[str, ...] = field(converter=as_roles, validator=_roles)
    issued: int = field(validator=fields.timestamp)
    expires: int = field(validator=fields.timestamp)
    delegate: PeerId = field(validator=_peer)
    delegation: bytes = field(validator=fields.octets(1, Delegation.MAX_SIZE), repr=False)

    @property
    def signer(self) -> PeerId:
        """The invite's key."""
        return self.delegate

    @property
    def replay_id(self) -> bytes:
        """Type and peer."""
        return b"member" + self.peer.raw

    def encode(self) -> bytes:
        """The bytes that go into the machine's certificate."""
        return encode_message(self)


@frozen(kw_only=True)
class Revocations(SignedMessage):
    """All that the root has revoked so far: single machines, and invites' keys with all their members.

    Complete, not a difference: the list with the highest `serial` stands alone. A root never leaves out what
    it revoked before until that has expired anyway.
    """

    TYPE: ClassVar[str] = "revocations"
    MAX_SIZE: ClassVar[int] = 1024 * 1024

    root: PeerId = field(validator=_peer)
    serial: int = field(validator=fields.integer(1, fields.MAX_BYTES))
    peers: tuple[PeerId, ...] = field(default=(), validator=fields.sequence(_peer, MAX_REVOKED))
    invites: tuple[PeerId, ...] = field(default=(), validator=fields.sequence(_peer, MAX_REVOKED))
    issued: int = field(validator=fields.timestamp)

    @property
    def signer(self) -> PeerId:
        """The fabric's root."""
        return self.root

    @property
    def replay_id(self) -> bytes:
        """Type and root."""
        return b"revocations" + self.root.raw


def check_signature(message: SignedMessage, rule: str, detail: str) -> None:
    """`magik_proto.signing.verify`, with the failure told as a `MembershipError`."""
    try:
        signing.verify(message)
    except RemoteProtocolError as error:
        raise MembershipError(rule, detail) from error


def check_window(delegation: Delegation, at_ms: int) -> None:
    """Whether an invite may be used at `at_ms`; `MembershipError` (``membership.invite-expired``) if not."""
    if not delegation.issued - CLOCK_SKEW_MS <= at_ms < delegation.expires:
        detail = (
            f"good from {delegation.issued} to {delegation.expires}, used at {at_ms}; ask for a new invite"
        )
        raise MembershipError("membership.invite-expired", detail)
