"""How cattrs moves the parts of messages to and from plain values (see `magik_proto.wire`).

The hooks move values and change none: types and ranges are the business of the attrs validators, so that an
object is checked in the same way wherever it comes from. A part is written with its keys in canonical order
at once, so that nothing has to be sorted, or looked at again, when it is encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from operator import attrgetter
from types import MappingProxyType, NoneType
from typing import Any, Final, get_args, get_origin, get_type_hints
from uuid import UUID

import attrs
from cattrs import BaseConverter, Converter

from magik_proto import codec
from magik_proto.errors import InvalidField
from magik_proto.fields import HEADER
from magik_proto.identity import PeerId
from magik_proto.parts import Message, OpenPart, Part, header

Hook = Callable[[Any, Any], Any]
Dump = Callable[[Any], Any]

_PLAIN: Final = frozenset({int, str, bytes, bool})
"""What CBOR has itself: goes to the validators as it is. (cattrs would cast: True to 1, 5 to "5".)"""


def build_converter() -> Converter:
    """The cattrs converter for all parts of this package."""
    converter = Converter(detailed_validation=False)
    converter.register_structure_hook(StrEnum, _structure_enum)
    converter.register_unstructure_hook(StrEnum, lambda value: value.value)
    converter.register_structure_hook(PeerId, lambda value, _: PeerId(value))
    converter.register_unstructure_hook(PeerId, lambda value: value.raw)
    converter.register_structure_hook(UUID, _structure_uuid)
    converter.register_unstructure_hook(UUID, lambda value: value.bytes)
    converter.register_structure_hook_factory(_is_tuple, _tuple_hook)
    converter.register_unstructure_hook_factory(_is_tuple, _list_hook)
    converter.register_structure_hook_func(_is_mapping, lambda value, _: _read_only(value))
    converter.register_unstructure_hook_func(_is_mapping, _dump_mapping)
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


def _read_only(value: Any) -> Any:
    return MappingProxyType(_require(dict, value))


def _dump_mapping(value: Mapping[str, Any]) -> dict[str, Any]:
    return dict(value) if len(value) < 2 else {key: value[key] for key in codec.sorted_keys(value)}


def _tuple_hook(kind: Any, converter: BaseConverter) -> Hook:
    item = get_args(kind)[0]
    if item in _PLAIN:
        return lambda value, _: tuple(_require(list, value))
    structure = converter.get_structure_hook(item)
    return lambda value, _: tuple([structure(element, item) for element in _require(list, value)])


def _list_hook(kind: Any, converter: BaseConverter) -> Dump:
    item = get_args(kind)[0]
    if item in _PLAIN:
        return list
    dump = converter.get_unstructure_hook(item)
    return lambda value: [dump(element) for element in value]


def fields_of(cls: type[Part]) -> dict[str, Any]:
    """The fields that `cls` has on the wire, with their types, in canonical order."""
    types = get_type_hints(cls)
    own: list[Any] = list(attrs.fields(cls))  # type: ignore[arg-type]
    names = [a.name for a in own if a.init and a.name != "extra"]
    return {name: types[name] for name in codec.sorted_keys(names)}


def _is_optional(kind: Any) -> bool:
    """A field that is absent on the wire when it has no value."""
    return NoneType in get_args(kind)


def _bare(kind: Any) -> Any:
    """The type of an optional field's value."""
    return get_args(kind)[0] if _is_optional(kind) else kind


def _part_structure_hook(cls: type[Part], converter: Converter) -> Hook:
    """Checks which keys are there, hands unknown ones to `extra` where the class has it, and builds the
    object."""
    kinds = fields_of(cls)
    required = frozenset(name for name, kind in kinds.items() if not _is_optional(kind))
    special = [(name, bare) for name, kind in kinds.items() if (bare := _bare(kind)) not in _PLAIN]
    steps = [(name, converter.get_structure_hook(kind), kind) for name, kind in special]

    def structure(value: Any, _: Any) -> Any:
        missing = required - _require(dict, value).keys()
        if missing:
            raise InvalidField(min(missing), "is missing")
        if None in value.values():
            raise InvalidField(cls.__name__, "a field is null; leave it out instead")
        # By our names, not the equal ones that were read: arguments are matched by identity first.
        body = {name: value[name] for name in kinds if name in value}
        if len(body) != len(value):
            body["extra"] = _unknown(cls, value, kinds)
        for name, hook, kind in steps:
            if name in body:
                body[name] = hook(body[name], kind)
        return cls(**body)

    return structure


def _unknown(cls: type[Part], value: dict[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in `value` that `cls` does not know, which it must be able to keep."""
    if not issubclass(cls, OpenPart):
        raise InvalidField(cls.__name__, "has a field that it does not know")
    return {name: item for name, item in value.items() if name not in known}


def _getter(names: list[str]) -> Dump:
    """Gives the values of these attributes as a tuple, also when there is but one."""
    get = attrgetter(*names)
    return get if len(names) > 1 else lambda part: (get(part),)


def _part_unstructure_hook(cls: type[Part], converter: Converter) -> Dump:
    kinds = fields_of(cls)
    heading = header(cls) if issubclass(cls, Message) else None
    names = codec.sorted_keys([*kinds, *([HEADER] if heading else [])])
    get = _getter(["TYPE" if name == HEADER else name for name in names])
    special = [(name, bare) for name, kind in kinds.items() if (bare := _bare(kind)) not in _PLAIN]
    steps = [(name, converter.get_unstructure_hook(kind)) for name, kind in special]
    optional = [name for name, kind in kinds.items() if _is_optional(kind)]
    keeps_unknown = issubclass(cls, OpenPart)

    def unstructure(part: Any) -> dict[str, Any]:
        value = dict(zip(names, get(part), strict=True))
        if heading:
            value[HEADER] = heading  # where the type's name held its place
        for name in optional:
            if value[name] is None:
                del value[name]
        for name, dump in steps:
            if name in value:
                value[name] = dump(value[name])
        if keeps_unknown and part.extra:
            value.update(part.extra)
        return value

    return unstructure
