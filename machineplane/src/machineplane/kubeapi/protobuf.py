"""Reading Kubernetes' protobuf bodies (kubectl from 1.32 and helm from 3.17 send them), by the field table.

A body is the four bytes ``k8s\\0`` and an ``Unknown`` message: {1: {1: apiVersion, 2: kind}, 2: raw object,
4: content type}. Generated encoders write every field that is not a pointer, also when it is zero; JSON
leaves those out, and so do we.
"""

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from .errors import ApiError
from .fields import Field, Schema, Type, schema

MAGIC: Final = b"k8s\0"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_ZEROES: Final = ("", 0, False, None)


def decode(body: bytes) -> dict[str, Any]:
    """The object in a protobuf body, as JSON would say it. Raises ApiError: 400 if it is malformed or of a
    kind unknown here."""
    if not body.startswith(MAGIC):
        raise _malformed("it does not start with the magic bytes")
    envelope = dict(_entries(body[len(MAGIC) :]))
    meta = dict(_entries(_bytes(envelope.get(1, b""))))
    api_version, kind = _text(meta.get(1, b"")), _text(meta.get(2, b""))
    if _text(envelope.get(4, b"")) == "application/json":
        return _json_object(_bytes(envelope.get(2, b"")))
    name = schema().type_of(api_version, kind)
    if name is None:
        raise ApiError.bad_request(f'no kind "{kind}" is registered for version "{api_version}" in protobuf')
    return {"apiVersion": api_version, "kind": kind} | _object(schema(), _bytes(envelope.get(2, b"")), name)


def _object(table: Schema, data: bytes, name: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    fields = table.wire[name]
    for number, raw in _entries(data):
        field = fields.get(number)
        if field is not None:
            _put(table, out, field, raw)
    return {key: value for key, value in out.items() if value is not None}


def _put(table: Schema, out: dict[str, Any], field: Field, raw: bytes | int) -> None:
    kind = field.type
    if field.inline:
        out |= _object(table, _bytes(raw), kind.name)
    elif kind.shape == "list":
        out.setdefault(field.name, []).extend(_items(table, raw, kind))
    elif kind.shape == "map":
        entry = dict(_entries(_bytes(raw)))
        assert kind.item is not None
        value = _map_value(table, entry.get(2, b""), kind.item)
        out.setdefault(field.name, {})[_text(entry.get(1, b""))] = value
    else:
        value = _value(table, raw, kind)
        if field.pointer or (value not in _ZEROES and value != {}):
            out[field.name] = value


def _items(table: Schema, raw: bytes | int, kind: Type) -> Iterator[Any]:
    assert kind.item is not None
    if kind.item.shape == "int" and isinstance(raw, bytes):
        yield from (_signed(number) for number in _packed(raw))
    else:
        yield _value(table, raw, kind.item)


def _map_value(table: Schema, raw: bytes | int, kind: Type) -> Any:
    if kind.shape == "list":
        return [_text(value) for number, value in _entries(_bytes(raw)) if number == 1]
    return _value(table, raw, kind)


def _value(table: Schema, raw: bytes | int, kind: Type) -> Any:
    match kind.shape:
        case "object":
            return _object(table, _bytes(raw), kind.name)
        case "string":
            return _text(raw)
        case "int":
            return _signed(_int(raw))
        case "bool":
            return bool(_int(raw))
        case "bytes":
            return base64.b64encode(_bytes(raw)).decode("ascii")
        case "quantity":
            return _text(dict(_entries(_bytes(raw))).get(1, b""))
        case "intorstring":
            return _int_or_string(dict(_entries(_bytes(raw))))
        case "time" | "microtime":
            return _time(dict(_entries(_bytes(raw))), micro=kind.shape == "microtime")
        case "any":
            return json.loads(_bytes(dict(_entries(_bytes(raw))).get(1, b"null")) or b"null")
        case _:
            raise _malformed(f"a field of type {kind.shape} is not read here")


def _int_or_string(parts: dict[int, bytes | int]) -> int | str:
    return _text(parts.get(3, b"")) if _int(parts.get(1, 0)) else _signed(_int(parts.get(2, 0)))


def _time(parts: dict[int, bytes | int], *, micro: bool) -> str | None:
    seconds = _signed(_int(parts.get(1, 0)))
    if seconds == 0:
        return None
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        raise _malformed("a time is out of range") from None
    fraction = f".{_int(parts.get(2, 0)) // 1000:06d}" if micro else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def _entries(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(field number, value) of a message: ints for varints, bytes for the rest."""
    offset = 0
    while offset < len(data):
        tag, offset = _varint(data, offset)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, offset = _varint(data, offset)
            yield number, value
            continue
        if wire == _BYTES:
            size, offset = _varint(data, offset)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _malformed(f"wire type {wire}")
        if size > len(data) - offset:
            raise _malformed("it is cut short")
        yield number, data[offset : offset + size]
        offset += size


def _packed(data: bytes) -> Iterator[int]:
    offset = 0
    while offset < len(data):
        value, offset = _varint(data, offset)
        yield value


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if offset >= len(data):
            raise _malformed("it is cut short")
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), offset
    raise _malformed("a number is too long")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _int(raw: bytes | int) -> int:
    if isinstance(raw, bytes):
        raise _malformed("a number was expected")
    return raw


def _bytes(raw: bytes | int) -> bytes:
    if isinstance(raw, int):
        raise _malformed("bytes were expected")
    return raw


def _text(raw: bytes | int) -> str:
    try:
        return _bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("a text is not UTF-8") from None


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        raise _malformed("its JSON does not parse") from None
    if not isinstance(value, dict):
        raise _malformed("its JSON is no object")
    return value


def _malformed(why: str) -> ApiError:
    return ApiError.bad_request(f"the protobuf body cannot be read: {why}")
