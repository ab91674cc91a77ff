"""Wire ⇄ object: how every message and record of this package becomes bytes and comes back.

A message is one CBOR map. The key ``magik`` holds type and version (``tender/1``); the other keys are the
fields by name. A field that is None is absent; every other field is there, so that one message has one form.
Fields that this version does not know are kept in `extra`, written again, and covered by the signature.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final, Generic, TypeVar

from magik_proto import codec
from magik_proto.conversion import build_converter
from magik_proto.errors import InvalidField, LocalProtocolError, RemoteProtocolError
from magik_proto.fields import HEADER
from magik_proto.identity import SIGNATURE_BYTES
from magik_proto.parts import Message, OpenPart, Part, SignedMessage, header

__all__ = [
    "Family",
    "Message",
    "OpenPart",
    "Part",
    "SignedMessage",
    "decode_as",
    "encode_message",
    "encode_unsigned",
    "from_wire",
    "header",
    "to_wire",
]

T = TypeVar("T", bound="Message")

_CONVERTER: Final = build_converter()
_SIGNATURE_ENTRY: Final = b"\x69signature\x58" + bytes([SIGNATURE_BYTES])
"""How the entry of a signature begins in a message's encoding."""
_LAST_SHORT_MAP: Final = 0xB7
"""The head of a map of 23 entries; larger ones have heads of several bytes."""


def to_wire(message: Message) -> dict[str, Any]:
    """The map of `message` as it goes to the codec; in canonical order if the message has no unknown
    fields."""
    value: dict[str, Any] = _CONVERTER.unstructure(message)
    return value


def encode_message(message: Message) -> bytes:
    """The one encoding of `message`; `LocalProtocolError` when it is unsigned though it must be, or too
    large."""
    if isinstance(message, SignedMessage) and not message.signature:
        raise LocalProtocolError(f"{message.TYPE} is not signed: call magik_proto.signing.sign first")
    data = _encode(message, to_wire(message))
    if len(data) > message.MAX_SIZE:
        raise LocalProtocolError(f"{message.TYPE} of {len(data)} bytes, allowed {message.MAX_SIZE}")
    return data


def encode_unsigned(message: SignedMessage) -> bytes:
    """The encoding of `message` without its field `signature`: what the signature is taken of."""
    value = to_wire(message)
    del value["signature"]
    return _encode(message, value)


def _encode(message: Message, value: dict[str, Any]) -> bytes:
    """What the validators let through and the converter wrote is canonical; unknown fields have to be looked
    at."""
    return codec.encode(value) if message.has_unknown else codec.write(value)


def decode_as(cls: type[T], data: bytes) -> T:
    """The message of type `cls` in `data`; `RemoteProtocolError` for any other type, version, form or field.

    The signature is *not* checked: see `magik_proto.signing.verify`.
    """
    value = codec.decode(data, max_size=cls.MAX_SIZE)
    found = _type_and_version(value)
    if found != header(cls):
        raise RemoteProtocolError(_header_rule(found, (cls,)), f"expected {header(cls)!r}, got {found!r}")
    return _read(cls, value, data)


class Family(Generic[T]):
    """Messages that may stand in one place, told apart by their headers."""

    __slots__ = ("_by_header", "_classes", "_largest")

    def __init__(self, classes: tuple[type[T], ...]) -> None:
        self._classes = classes
        self._by_header = {header(cls): cls for cls in classes}
        self._largest = max(cls.MAX_SIZE for cls in classes)

    def decode(self, data: bytes) -> T:
        """The message in `data`, whose type must be one of the family's; `RemoteProtocolError` as of
        `decode_as`."""
        value = codec.decode(data, max_size=self._largest)
        found = _type_and_version(value)
        cls = self._by_header.get(found)
        if cls is None:
            raise RemoteProtocolError(_header_rule(found, self._classes), f"cannot read {found!r}")
        if len(data) > cls.MAX_SIZE:
            detail = f"{found} of {len(data)} bytes, allowed {cls.MAX_SIZE}"
            raise RemoteProtocolError("codec.size", detail)
        return _read(cls, value, data)


def from_wire(cls: type[T], value: dict[str, Any]) -> T:
    """The object in the map `value`, whose header was checked."""
    body = value.copy()
    body.pop(HEADER, None)
    message = _structure(cls, body)
    if isinstance(message, SignedMessage) and not message.signature:
        raise RemoteProtocolError("signature.missing", f"{cls.TYPE} without a signature")
    return message


def _read(cls: type[T], value: dict[str, Any], data: bytes) -> T:
    """`from_wire`, for a `value` that `data` is the encoding of."""
    message = from_wire(cls, value)
    if isinstance(message, SignedMessage) and not message.has_unknown:
        object.__setattr__(message, "_digest", _unsigned_digest(data))
    return message


def _unsigned_digest(data: bytes) -> bytes | None:
    """SHA-256 of `data`, the encoding of a signed message, without the entry of the signature.

    So nothing has to be encoded again to verify. One place in `data` is that entry; where more look like it
    (inside a byte string, perhaps), or the map's head is longer than a byte, the answer is None and
    `encode_unsigned` does it: there is no guessing.
    """
    if data.count(_SIGNATURE_ENTRY) != 1 or data[0] > _LAST_SHORT_MAP:
        return None
    at = data.index(_SIGNATURE_ENTRY)
    after = at + len(_SIGNATURE_ENTRY) + SIGNATURE_BYTES
    return hashlib.sha256(b"".join((bytes([data[0] - 1]), data[1:at], data[after:]))).digest()


def _structure(cls: type[T], body: dict[str, Any]) -> T:
    try:
        return _CONVERTER.structure(body, cls)
    except InvalidField as error:
        raise RemoteProtocolError("message.field", f"{cls.TYPE}: {error}") from error


def _type_and_version(value: Any) -> str:
    found = value.get(HEADER) if type(value) is dict else None
    if type(found) is not str or len(found) > 64:
        raise RemoteProtocolError("message.malformed", f"not a map with a text under {HEADER!r}")
    return found


def _header_rule(found: str, known: tuple[type[Message], ...]) -> str:
    same_type = any(found.rpartition("/")[0] == cls.TYPE for cls in known)
    return "message.unknown-version" if same_type else "message.unknown-type"
