"""Who a pod is, checked by any other pod alone.

The chain: the fabric's root made the award's owner a member that may submit; the owner's `Award` gave a
workload to one machine; that machine's `Pass` names the key of a pod which it runs by that award. So a machine,
even a rogue one, can name pods of those workloads only that it was awarded, and a pod speaks for nobody but
itself. The pod shows its pass in its TLS certificate, where a machine shows its membership.

What this does not do: it does not count. A rogue machine can make more pods of a workload than it was awarded
(it could as well run none of them); it ends when the machine is revoked. And who may submit can submit a namesake
of another's workload: the uid tells the two apart, and replicas of one workload go by it.
"""

from __future__ import annotations

import re
from typing import ClassVar, Final
from uuid import UUID

from attrs import field, frozen

from magik_proto import fields, signing
from magik_proto.credentials import (
    CLOCK_SKEW_MS,
    MAX_MEMBER_BYTES,
    MEMBER_LIFE_MS,
    SUBMIT,
    MembershipError,
    Revocations,
    check_signature,
)
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import Identity, PeerId, RandomSource
from magik_proto.membership import MembershipPolicy
from magik_proto.messages import Award, ResourceId
from magik_proto.wire import SignedMessage, decode_as, encode_message

POD: Final = "pod"
"""The one role of the workload plane."""
MAX_PASS_BYTES: Final = MAX_MEMBER_BYTES
"""Bytes of a pass with its award and the owner's membership: it has to fit in a certificate. At it: refused."""
MAX_PASS_LIFE_MS: Final = MEMBER_LIFE_MS
"""A pass ends with its pod at the latest; this bounds what a stolen one is good for, as a membership's life does."""

_ORDINAL = re.compile(r"-(0|[1-9][0-9]{0,9})")
_peer = fields.instance(PeerId)


@frozen(kw_only=True)
class Pass(SignedMessage):
    """`machine` runs the pod `pod_name` (`pod_uid`) by `award`, and `pod` is the key that it has.

    `award` is the encoded `Award`, `member` the encoded membership of its owner (None in an open fabric),
    `ordinal` that of a StatefulSet's pod. Times are ms since the epoch.
    """

    TYPE: ClassVar[str] = "pass"
    MAX_SIZE: ClassVar[int] = MAX_PASS_BYTES

    machine: PeerId = field(validator=_peer)
    pod: PeerId = field(validator=_peer)
    pod_uid: UUID = field(validator=fields.uuid)
    pod_name: str = field(validator=fields.object_name)
    ordinal: int | None = field(default=None, validator=fields.optional(fields.integer(0, (1 << 31) - 1)))
    issued: int = field(validator=fields.timestamp)
    expires: int = field(validator=fields.timestamp)
    award: bytes = field(validator=fields.octets(1, MAX_PASS_BYTES), repr=False)
    member: bytes | None = field(
        default=None, validator=fields.optional(fields.octets(1, MAX_PASS_BYTES)), repr=False
    )

    @property
    def signer(self) -> PeerId:
        """The machine that runs the pod."""
        return self.machine

    @property
    def replay_id(self) -> bytes:
        """Type and the pod's uid."""
        return b"pass" + self.pod_uid.bytes


@frozen(kw_only=True)
class PodIdentity:
    """What a pass proves: which replica of which workload holds the key `peer`, and on which machine it runs."""

    peer: PeerId
    resource: ResourceId
    uid: UUID
    generation: int
    pod_uid: UUID
    pod_name: str
    ordinal: int | None
    machine: PeerId


def issue_pass(
    machine: Identity,
    award: bytes,
    member: bytes | None,
    *,
    pod: PeerId,
    pod_uid: UUID,
    pod_name: str,
    ordinal: int | None,
    now_ms: int,
    life_ms: int = MAX_PASS_LIFE_MS,
    random: RandomSource | None = None,
) -> bytes:
    """The encoded pass of a pod that `machine` runs by the encoded `award`, whose owner's membership is `member`.

    Raises `LocalProtocolError` if all of it does not fit into `MAX_PASS_BYTES`.
    """
    made = Pass(
        machine=machine.peer_id,
        pod=pod,
        pod_uid=pod_uid,
        pod_name=pod_name,
        ordinal=ordinal,
        issued=now_ms,
        expires=now_ms + life_ms,
        award=award,
        member=member,
        nonce=signing.new_nonce() if random is None else signing.new_nonce(random),
    )
    return encode_message(signing.sign(made, machine))


class PassPolicy:
    """Decides who is admitted to the workload plane of a fabric, as seen from a pod in `namespace`.

    The fabric's root and what it has revoked are those of `membership`. Pods of other namespaces are refused
    unless `cross_namespace`.
    """

    def __init__(
        self, membership: MembershipPolicy, namespace: str, *, cross_namespace: bool = False
    ) -> None:
        self.membership = membership
        self._namespace = namespace
        self._cross_namespace = cross_namespace

    @property
    def root(self) -> PeerId | None:
        """The fabric's root, or None for an open fabric."""
        return self.membership.root

    @property
    def open(self) -> bool:
        """Whether the fabric has no root."""
        return self.membership.open

    @property
    def revocations(self) -> Revocations | None:
        """The newest list, for passing on."""
        return self.membership.revocations

    def revoke(self, revocations: Revocations) -> bool:
        """See `MembershipPolicy.revoke`."""
        return self.membership.revoke(revocations)

    def admit(self, peer: PeerId, shown: bytes | None, now_ms: int) -> frozenset[str]:
        """The roles of the pod that proved the key `peer` and shows the pass `shown`; errors as of `check`.

        An open fabric takes a pod without a pass, too: who makes up a key there makes up the chain as well.
        """
        if shown is None and self.open:
            return frozenset({POD})
        self.check(peer, shown, now_ms)
        return frozenset({POD})

    def check(self, peer: PeerId, shown: bytes | None, now_ms: int) -> PodIdentity:
        """Who `peer` is, after every check of the chain. Raises `MembershipError`, whose rule is ``pass.…``, or
        ``membership.…`` where the fault is in the membership of the award's owner.
        """
        passport, award = _decode_chain(peer, shown)
        if passport.pod != peer:
            raise MembershipError("pass.other-identity", f"{peer} shows the pass of {passport.pod}")
        _check_times(passport, now_ms)
        self._check_owner(award, passport.member, now_ms)
        self._check_machine(passport, award)
        _check_name(passport, award)
        self._check_namespace(award.resource)
        return PodIdentity(
            peer=peer,
            resource=award.resource,
            uid=award.uid,
            generation=award.generation,
            pod_uid=passport.pod_uid,
            pod_name=passport.pod_name,
            ordinal=passport.ordinal,
            machine=passport.machine,
        )

    def _check_owner(self, award: Award, member: bytes | None, now_ms: int) -> None:
        check_signature(
            award, "pass.award-signature", f"the award of {award.resource} is not signed by its owner"
        )
        if SUBMIT not in self.membership.admit(award.owner_identity, member, now_ms):
            detail = f"{award.owner_identity}, who awarded {award.resource}, has no role {SUBMIT!r}"
            raise MembershipError("pass.role", detail)

    def _check_machine(self, passport: Pass, award: Award) -> None:
        machine = passport.machine
        check_signature(
            passport, "pass.signature", f"the pass of {passport.pod_name} is not signed by {machine}"
        )
        if machine != award.winner:
            detail = f"{machine} names a pod of {award.resource}, which was awarded to {award.winner}"
            raise MembershipError("pass.not-the-winner", detail)
        if self.membership.is_revoked(machine):
            raise MembershipError("pass.revoked", f"{machine}, where the pod runs, was revoked")

    def _check_namespace(self, resource: ResourceId) -> None:
        if resource.namespace != self._namespace and not self._cross_namespace:
            detail = f"{resource} is of another namespace; --allow-cross-namespace would admit it"
            raise MembershipError("pass.namespace", detail)


def _decode_chain(peer: PeerId, shown: bytes | None) -> tuple[Pass, Award]:
    if not shown:
        raise MembershipError("pass.missing", f"{peer} shows no pass: it is no pod of this fabric")
    try:
        passport = decode_as(Pass, shown)
        return passport, decode_as(Award, passport.award)
    except RemoteProtocolError as error:
        raise MembershipError("pass.malformed", str(error)) from error


def _check_times(passport: Pass, now_ms: int) -> None:
    if passport.expires - passport.issued > MAX_PASS_LIFE_MS:
        raise MembershipError("pass.life", f"holds longer than the {MAX_PASS_LIFE_MS} ms allowed")
    if passport.issued > now_ms + CLOCK_SKEW_MS:
        raise MembershipError(
            "pass.not-yet", f"begins at {passport.issued}, it is {now_ms}: check the clocks"
        )
    if now_ms >= passport.expires:
        raise MembershipError("pass.expired", f"ended at {passport.expires}, it is {now_ms}")


def _check_name(passport: Pass, award: Award) -> None:
    """A pod's name is its workload's, or begins with it; an ordinal is one that was awarded, and ends the name."""
    name, workload, ordinal = passport.pod_name, award.resource.name, passport.ordinal
    tail = name.removeprefix(workload)
    fits = name.startswith(workload) and (tail == "" or tail.startswith("-"))
    if ordinal is None:
        fits = fits and not award.ordinals
    else:
        found = _ORDINAL.fullmatch(tail)
        fits = fits and ordinal in award.ordinals and found is not None and int(found[1]) == ordinal
    if not fits:
        detail = f"{name!r} with ordinal {ordinal} is no pod of the {award.resource} awarded"
        raise MembershipError("pass.name", detail)
