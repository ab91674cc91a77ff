"""The secret side of membership: a fabric's root key and the invites made with it (see
`magik_proto.membership`)."""

from __future__ import annotations

import base64
import binascii
import os
from typing import Any, Final, NoReturn, Self

from magik_proto import codec, signing
from magik_proto.credentials import (
    ALL_ROLES,
    INVITE_LIFE_MS,
    MEMBER_LIFE_MS,
    Delegation,
    Member,
    MembershipError,
    Revocations,
    as_roles,
    check_signature,
    check_window,
)
from magik_proto.errors import LocalProtocolError, RemoteProtocolError
from magik_proto.fields import HEADER
from magik_proto.identity import BootstrapPeer, Identity, PeerId, RandomSource
from magik_proto.wire import decode_as, encode_message

INVITE_PREFIX: Final = "magik-invite-1."
MAX_INVITE_TEXT: Final = 16 * 1024


class RootKey:
    """A fabric's root key, which its operator keeps offline. As a context manager it wipes its secret at the
    end."""

    __slots__ = ("_identity",)

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    @classmethod
    def generate(cls, random: RandomSource = os.urandom) -> Self:
        """The root of a new fabric."""
        return cls(Identity.generate(random))

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """The root that `seed` (32 bytes) stands for."""
        return cls(Identity.from_seed(seed))

    @property
    def peer_id(self) -> PeerId:
        """The fabric's name: what every member knows of the root."""
        return self._identity.peer_id

    def seed(self) -> bytes:
        """The 32 secret bytes, for the operator's safe."""
        return self._identity.seed()

    def wipe(self) -> None:
        """Overwrite the secret."""
        self._identity.wipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return f"<RootKey {self.peer_id}>"

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("a root key is secret: it cannot be pickled or copied")

    def invite(
        self,
        now_ms: int,
        *,
        roles: frozenset[str] | set[str] = ALL_ROLES,
        life_ms: int = INVITE_LIFE_MS,
        member_life_ms: int = MEMBER_LIFE_MS,
        bootstrap: tuple[BootstrapPeer, ...] = (),
        random: RandomSource = os.urandom,
    ) -> Invite:
        """An invite to this fabric, good for `life_ms` from `now_ms`; whoever holds its text can join with
        `roles`."""
        key = Identity.generate(random)
        delegation = Delegation(
            root=self.peer_id,
            delegate=key.peer_id,
            roles=as_roles(frozenset(roles)),
            issued=now_ms,
            expires=now_ms + life_ms,
            member_life_ms=member_life_ms,
            nonce=signing.new_nonce(random),
        )
        return Invite(signing.sign(delegation, self._identity), key, bootstrap)

    def revoke(
        self,
        serial: int,
        now_ms: int,
        *,
        peers: tuple[PeerId, ...] = (),
        invites: tuple[PeerId, ...] = (),
        random: RandomSource = os.urandom,
    ) -> Revocations:
        """The complete list of what is revoked; `serial` must be higher than that of every list before."""
        revocations = Revocations(
            root=self.peer_id,
            serial=serial,
            peers=tuple(sorted(set(peers))),
            invites=tuple(sorted(set(invites))),
            issued=now_ms,
            nonce=signing.new_nonce(random),
        )
        return signing.sign(revocations, self._identity)


class Invite:
    """A delegation with its secret key: whoever holds it can make itself a member until it expires. Treat it
    as a password.

    `text` is the form to hand over, `parse` reads it. As a context manager it wipes its secret at the end.
    """

    __slots__ = ("_key", "bootstrap", "delegation")

    def __init__(
        self, delegation: Delegation, key: Identity, bootstrap: tuple[BootstrapPeer, ...] = ()
    ) -> None:
        if delegation.delegate != key.peer_id:
            raise LocalProtocolError("an invite's key must be the one that its delegation names")
        self.delegation = delegation
        self.bootstrap = bootstrap
        self._key = key

    @property
    def root(self) -> PeerId:
        """The fabric that it invites to."""
        return self.delegation.root

    @property
    def id(self) -> PeerId:
        """The delegated key: the name by which the invite can be revoked."""
        return self.delegation.delegate

    @property
    def roles(self) -> frozenset[str]:
        """What its members may do."""
        return frozenset(self.delegation.roles)

    @property
    def expires(self) -> int:
        """Until when it can be used (ms)."""
        return self.delegation.expires

    def text(self) -> str:
        """One line: `INVITE_PREFIX` and URL-safe base64 (no padding). It contains the secret."""
        value = {
            HEADER: "invite/1",
            "delegation": encode_message(self.delegation),
            "seed": self._key.seed(),
            "bootstrap": [str(peer) for peer in self.bootstrap],
        }
        return INVITE_PREFIX + base64.urlsafe_b64encode(codec.encode(value)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The invite in `text` (spaces around it do not matter).

        Raises `MembershipError` (``membership.invite-malformed``, or ``membership.root-signature`` when the
        root did not sign it). Nothing of the text is in the error, for it is secret.
        """
        try:
            value = codec.decode(_invite_bytes(text.strip()))
            delegation, key, bootstrap = _invite_parts(value)
        except RemoteProtocolError as error:
            raise MembershipError("membership.invite-malformed", f"not an invite: {error.rule}") from None
        check_signature(
            delegation, "membership.root-signature", "the invite is not signed by the root that it names"
        )
        return cls(delegation, key, bootstrap)

    def accept(
        self,
        identity: Identity,
        now_ms: int,
        life_ms: int | None = None,
        *,
        random: RandomSource = os.urandom,
    ) -> Member:
        """The membership of `identity`, good for `life_ms` (the most that the invite allows unless said).

        Raises `MembershipError` (``membership.invite-expired``) when the invite is no longer, or not yet,
        good. Call `wipe` afterwards.
        """
        check_window(self.delegation, now_ms)
        life = (
            self.delegation.member_life_ms
            if life_ms is None
            else min(life_ms, self.delegation.member_life_ms)
        )
        member = Member(
            peer=identity.peer_id,
            roles=self.delegation.roles,
            issued=now_ms,
            expires=now_ms + life,
            delegate=self.id,
            delegation=encode_message(self.delegation),
            nonce=signing.new_nonce(random),
        )
        return signing.sign(member, self._key)

    def wipe(self) -> None:
        """Overwrite the secret."""
        self._key.wipe()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()

    def __repr__(self) -> str:
        return f"<Invite {self.id.short} to {self.root.short}: {','.join(self.delegation.roles)}>"

    def __reduce__(self) -> NoReturn:
        raise LocalProtocolError("an invite is secret: use text() where it has to be handed over")


def _invite_bytes(text: str) -> bytes:
    if not text.startswith(INVITE_PREFIX) or len(text) > MAX_INVITE_TEXT:
        raise RemoteProtocolError("prefix", INVITE_PREFIX)
    body = text.removeprefix(INVITE_PREFIX)
    try:
        return base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise RemoteProtocolError("base64", "") from error


def _invite_parts(value: Any) -> tuple[Delegation, Identity, tuple[BootstrapPeer, ...]]:
    if type(value) is not dict or value.get(HEADER) != "invite/1":
        raise RemoteProtocolError("header", "")
    data, seed, bootstrap = value.get("delegation"), value.get("seed"), value.get("bootstrap")
    if type(data) is not bytes or type(seed) is not bytes or len(seed) != 32 or type(bootstrap) is not list:
        raise RemoteProtocolError("fields", "")
    if not all(type(peer) is str for peer in bootstrap):
        raise RemoteProtocolError("bootstrap", "")
    delegation, key = decode_as(Delegation, data), Identity.from_seed(seed)
    if delegation.delegate != key.peer_id:
        raise RemoteProtocolError("key", "")
    return delegation, key, tuple(BootstrapPeer.parse(peer) for peer in bootstrap)
