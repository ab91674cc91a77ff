"""Wire ⇄ object: how every message and record of this package becomes bytes and comes back.

A message is one CBOR map. The key ``magik`` holds type and version (``tender/1``); the other keys are the
fields by name. A field that is None is absent; every other field is there, so that one message has one form.
Fields that this version does not know are kept in `extra`, written again, and covered by the signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, ClassVar, Final, Self, TypeVar, get_args, get_origin
from uuid import UUID

import attrs
from attrs import field, frozen
from cattrs import BaseConverter, Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from magik_proto import codec, fields
from magik_proto.errors import InvalidField, LocalProtocolError, RemoteProtocolError
from magik_proto.fields import HEADER
from magik_proto.identity import PeerId

T = TypeVar("T", bound="Message")


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


@frozen(kw_only=True)
class SignedMessage(Message):
    """A message that its author signs. `signature` is empty until `magik_proto.signing.sign` has filled
    it."""

    nonce: int = field(validator=fields.nonce)
    signature: bytes = field(default=b"", validator=fields.signature, repr=False)

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

    def evolve(self, **changes: Any) -> Self:
        """A copy with other values; drop or renew the signature when you change what it covers."""
        return attrs.evolve(self, **changes)


def header(cls: type[Message]) -> str:
    """The value of the `magik` key for messages of `cls`."""
    return f"{cls.TYPE}/{cls.VERSION}"


def to_wire(message: Message) -> dict[str, Any]:
    """The map of `message` as it goes to the codec."""
    value: dict[str, Any] = _CONVERTER.unstructure(message)
    value[HEADER] = header(type(message))
    return value


def encode_message(message: Message) -> bytes:
    """The one encoding of `message`; `LocalProtocolError` when it is unsigned though it must be, or too
    large."""
    if isinstance(message, SignedMessage) and not message.signature:
        raise LocalProtocolError(f"{message.TYPE} is not signed: call magik_proto.signing.sign first")
    data = codec.encode(to_wire(message))
    if len(data) > message.MAX_SIZE:
        raise LocalProtocolError(f"{message.TYPE} of {len(data)} bytes, allowed {message.MAX_SIZE}")
    return data


def decode_as(cls: type[T], data: bytes) -> T:
    """The message of type `cls` in `data`; `RemoteProtocolError` for any other type, version, form or field.

    The signature is *not* checked: see `magik_proto.signing.verify`.
    """
    value = codec.decode(data, max_size=cls.MAX_SIZE)
    found = _type_and_version(value)
    if found != header(cls):
        raise RemoteProtocolError(_header_rule(found, (cls,)), f"expected {header(cls)!r}, got {found!r}")
    return from_wire(cls, value)


def decode_any(classes: tuple[type[T], ...], data: bytes) -> T:
    """The message in `data`, whose type must be one of `classes`."""
    value = codec.decode(data, max_size=max(cls.MAX_SIZE for cls in classes))
    found = _type_and_version(value)
    for cls in classes:
        if found == header(cls):
            if len(data) > cls.MAX_SIZE:
                raise RemoteProtocolError(
                    "codec.size", f"{found} of {len(data)} bytes, allowed {cls.MAX_SIZE}"
                )
            return from_wire(cls, value)
    raise RemoteProtocolError(_header_rule(found, classes), f"cannot read {found!r}")


def from_wire(cls: type[T], value: dict[str, Any]) -> T:
    """The object in the map `value`, whose header was checked."""
    body = {key: item for key, item in value.items() if key != HEADER}
    message = _structure(cls, body)
    if isinstance(message, SignedMessage) and not message.signature:
        raise RemoteProtocolError("signature.missing", f"{cls.TYPE} without a signature")
    return message


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


def build_converter() -> Converter:
    """The cattrs converter for all parts of this package.

    It moves values and changes none: types and ranges are the business of the attrs validators, so that an
    object is checked in the same way wherever it comes from.
    """
    converter = Converter(detailed_validation=False)
    for scalar in (int, str, bytes, bool):  # cattrs would cast them: True to 1, 5 to "5"
        converter.register_structure_hook(scalar, lambda value, _: value)
    converter.register_structure_hook(StrEnum, _structure_enum)
    converter.register_unstructure_hook(StrEnum, lambda value: value.value)
    converter.register_structure_hook(PeerId, lambda value, _: PeerId(value))
    converter.register_unstructure_hook(PeerId, lambda value: value.raw)
    converter.register_structure_hook(UUID, _structure_uuid)
    converter.register_unstructure_hook(UUID, lambda value: value.bytes)
    converter.register_structure_hook_factory(_is_tuple, _tuple_hook)
    converter.register_unstructure_hook_factory(_is_tuple, _list_hook)
    converter.register_structure_hook_func(_is_mapping, lambda value, _: _require(dict, value))
    converter.register_unstructure_hook_func(_is_mapping, dict)
    converter.register_structure_hook_factory(_is_part, _part_structure_hook)
    converter.register_unstructure_hook_factory(_is_part, _part_unstructure_hook)
    return converter


def _structure_enum(value: Any, kind: type[StrEnum]) -> StrEnum:
    if type(value) is not str or value not in kind.__members__.values():
        raise InvalidField(kind.__name__, f"must be one of {', '.join(kind)}")
    return kind(value)


def _is_part(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Part)


def _is_tuple(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is tuple


def _is_mapping(kind: Any) -> bool:
    return get_origin(kind) is Mapping


def _require(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise InvalidField(kind.__name__, f"expected on the wire, found {type(value).__name__}")
    return value


def _structure_uuid(value: Any, _: Any) -> UUID:
    if type(value) is not bytes or len(value) != 16:
        raise InvalidField("UUID", "must be 16 bytes")
    return UUID(bytes=value)


def _tuple_hook(kind: Any, converter: BaseConverter) -> Callable[[Any, Any], tuple[Any, ...]]:
    item = get_args(kind)[0]
    structure = converter.get_structure_hook(item)
    return lambda value, _: tuple([structure(element, item) for element in _require(list, value)])


def _list_hook(kind: Any, converter: BaseConverter) -> Callable[[Any], list[Any]]:
    unstructure = converter.get_unstructure_hook(get_args(kind)[0])
    return lambda value: [unstructure(element) for element in value]


def _optional_names(cls: type[Part]) -> frozenset[str]:
    return frozenset(a.name for a in attrs.fields(cls) if a.default is None)  # type: ignore[arg-type]


def _part_structure_hook(cls: type[Part], converter: Converter) -> Callable[[Any, Any], Any]:
    """Checks which keys are there, hands unknown ones to `extra` where the class has it, and builds the
    object."""
    build = make_dict_structure_fn(cls, converter, _cattrs_detailed_validation=False)
    names = frozenset(a.name for a in attrs.fields(cls)) - {"extra"}  # type: ignore[arg-type]
    required = names - _optional_names(cls)
    keeps_unknown = issubclass(cls, OpenPart)

    def structure(value: Any, _: Any) -> Any:
        present = _require(dict, value).keys()
        if not required <= present:
            raise InvalidField(min(required - present), "is missing")
        if None in value.values():
            raise InvalidField(cls.__name__, "a field is null; leave it out instead")
        unknown = present - names
        if not unknown:
            return build(value, cls)
        if not keeps_unknown:
            raise InvalidField(cls.__name__, "has a field that it does not know")
        known = {name: item for name, item in value.items() if name in names}
        return build({**known, "extra": {name: value[name] for name in unknown}}, cls)

    return structure


def _part_unstructure_hook(cls: type[Part], converter: Converter) -> Callable[[Any], dict[str, Any]]:
    leave_out = {name: override(omit_if_default=True) for name in _optional_names(cls)}
    dump = make_dict_unstructure_fn(cls, converter, **leave_out)  # type: ignore[arg-type]

    def unstructure(part: Any) -> dict[str, Any]:
        value = dump(part)
        extra = value.pop("extra", None)
        if extra:
            value.update(extra)
        return value

    return unstructure


_CONVERTER: Final = build_converter()
