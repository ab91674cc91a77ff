"""What messages are: maps with a header, whose fields are known, or mostly known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import attrs
from attrs import field, frozen

from magik_proto import fields
from magik_proto.identity import PeerId


def _field_names(extra: Mapping[str, Any]) -> str:
    return f"<{', '.join(sorted(extra))}>"


class Part:
    """A map inside a message. It knows all of its keys: an unknown one is refused, for it could change the
    meaning."""

    __slots__ = ()


@frozen(kw_only=True)
class OpenPart(Part):
    """A part that keeps unknown fields."""

    extra: Mapping[str, Any] = field(
        factory=dict, converter=fields.freeze, validator=fields.unknown_fields, hash=False, repr=_field_names
    )


@frozen(kw_only=True)
class Message(OpenPart):
    """What has a type and a version of its own and can stand alone as bytes."""

    TYPE: ClassVar[str]
    VERSION: ClassVar[int] = 1
    MAX_SIZE: ClassVar[int] = 64 * 1024
    """Bytes of the whole encoding; the default is the limit of a gossip message (protocol.md)."""

    @property
    def has_unknown(self) -> bool:
        """Whether it holds, at any depth, a field that this version does not know."""
        return bool(self.extra)


@frozen(kw_only=True)
class SignedMessage(Message):
    """A message that its author signs. `signature` is empty until `magik_proto.signing.sign` has filled
    it."""

    nonce: int = field(validator=fields.nonce)
    signature: bytes = field(default=b"", validator=fields.signature, repr=False)
    _digest: bytes | None = field(default=None, init=False, eq=False, repr=False)

    @property
    def digest_read(self) -> bytes | None:
        """SHA-256 of the encoding without the signature, where this object was read from bytes; None
        elsewhere."""
        return self._digest

    @property
    def signer(self) -> PeerId:
        """Whose signature it must carry."""
        raise NotImplementedError

    @property
    def replay_id(self) -> bytes:
        """What the message is about, for the replay filter: type and subject."""
        raise NotImplementedError

    def check(self) -> None:
        """Rules that tie fields to the signer; raises `RemoteProtocolError`. Called by
        `magik_proto.signing.verify`."""

    def with_signature(self, signature: bytes) -> Self:
        """A copy with this signature; the other fields are not checked again, for they were when this was
        built."""
        copy = object.__new__(type(self))
        for attribute in attrs.fields(type(self)):
            object.__setattr__(copy, attribute.name, getattr(self, attribute.name))
        object.__setattr__(copy, "signature", signature)
        return copy

    def evolve(self, **changes: Any) -> Self:
        """A copy with other values; drop or renew the signature when you change what it covers."""
        return attrs.evolve(self, **changes)


def header(cls: type[Message]) -> str:
    """The value of the `magik` key for messages of `cls`."""
    return f"{cls.TYPE}/{cls.VERSION}"
