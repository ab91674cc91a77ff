"""From whatever JSON came in to an object of a known type: types checked, unknown fields told and dropped.

This is what an API server's typed decoding does: a value of the wrong type is refused (400), ``null`` means
absent, a quantity written as a number becomes its text, and fields that the type does not have are dropped;
whether those are an error, a warning or nothing is the request's ``fieldValidation``.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Any, Final

from attrs import define, field

from machineplane.quantities import BadQuantity, parse_quantity

from .errors import ApiError
from .fields import Schema, Type, schema

#: How deep objects may nest; the deepest real type (a Deployment's projected volumes) needs 12.
MAX_DEPTH: Final = 64

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_INT64: Final = 2**63


@define
class Structured:
    """The outcome: the cleaned ``object``, and the paths of fields nobody knows, e.g.
    ``spec.template.spec.foo``."""

    object: dict[str, Any]
    unknown: list[str] = field(factory=list)


def structure(obj: dict[str, Any], type_name: str) -> Structured:
    """Read ``obj`` as ``type_name`` (``apps.Deployment``). Raises ApiError 400 where a value has the wrong
    type."""
    reader = _Reader(schema(), str(obj.get("kind", type_name)), str(obj.get("apiVersion", "")))
    head = {key: obj[key] for key in ("apiVersion", "kind") if key in obj}
    rest = {key: value for key, value in obj.items() if key not in head}
    cleaned = reader.read_object(rest, type_name, "")
    return Structured(head | cleaned, reader.unknown)


@define
class _Reader:
    schema: Schema
    kind: str
    version: str
    unknown: list[str] = field(factory=list)

    def read(self, value: Any, kind: Type, path: str) -> Any:
        match kind.shape:
            case "object":
                return self.read_object(self.expect(value, dict, path, "object"), kind.name, path)
            case "list":
                return self.read_list(self.expect(value, list, path, "array"), kind, path)
            case "map":
                return self.read_map(self.expect(value, dict, path, "object"), kind, path)
            case _:
                return self.read_scalar(value, kind.shape, path)

    def read_object(self, value: dict[str, Any], name: str, path: str) -> dict[str, Any]:
        known = self.schema.json[name]
        out = {}
        for key, inner in value.items():
            where = f"{path}.{key}" if path else str(key)
            if key not in known:
                self.unknown.append(where)
            elif inner is not None:
                out[key] = self.read(inner, known[key].type, where)
        return out

    def read_list(self, value: list[Any], kind: Type, path: str) -> list[Any]:
        assert kind.item is not None
        return [self.read(inner, kind.item, f"{path}[{index}]") for index, inner in enumerate(value)]

    def read_map(self, value: dict[str, Any], kind: Type, path: str) -> dict[str, Any]:
        assert kind.item is not None
        return {
            str(key): self.read(inner, kind.item, f"{path}.{key}")
            for key, inner in value.items()
            if inner is not None or kind.item.shape != "string"
        }

    def read_scalar(self, value: Any, shape: str, path: str) -> Any:
        match shape:
            case "any":
                return value
            case "quantity":
                return self.quantity(value, path)
            case "intorstring":
                return value if _is_int(value) else self.expect(value, str, path, "string or int32")
            case "int":
                return self.integer(value, path)
            case "bool":
                return self.expect(value, bool, path, "bool")
            case "float":
                return float(value) if _is_int(value) else self.expect(value, float, path, "float64")
            case _:
                return self.text(self.expect(value, str, path, "string"), shape, path)

    def quantity(self, value: Any, path: str) -> str:
        try:
            parse_quantity(value)
        except BadQuantity as error:
            raise self.wrong(str(error), path) from None
        return str(value)

    def integer(self, value: Any, path: str) -> int:
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if not _is_int(value) or not -_INT64 <= value < _INT64:
            raise self.wrong(f"cannot unmarshal {_name(value)} into a field of type int", path)
        return int(value)

    def text(self, value: str, shape: str, path: str) -> str:
        if shape in ("time", "microtime") and not _TIME.fullmatch(value):
            raise self.wrong(f"parsing time {value!r}: not RFC 3339", path)
        if shape == "bytes":
            try:
                base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                raise self.wrong("illegal base64 data", path) from None
        return value

    def expect(self, value: Any, kind: type, path: str, wanted: str) -> Any:
        if not isinstance(value, kind):
            raise self.wrong(f"cannot unmarshal {_name(value)} into a field of type {wanted}", path)
        return value

    def wrong(self, what: str, path: str) -> ApiError:
        version = self.version.rpartition("/")[2]
        return ApiError.bad_request(
            f'{self.kind} in version "{version}" cannot be handled as a {self.kind}: json: {what}: {path}'
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _name(value: Any) -> str:
    """JSON's name for a value's type."""
    names = {dict: "object", list: "array", str: "string", bool: "bool", type(None): "null"}
    return names.get(type(value), "number")


def too_deep(value: Any, limit: int = MAX_DEPTH) -> bool:
    """Whether containers nest deeper than ``limit``; walks without recursion, so that any body is safe to ask
    about."""
    level: list[Any] = [value]
    for _ in range(limit + 1):
        level = [inner for outer in level for inner in _children(outer)]
        if not level:
            return False
    return True


def _children(value: Any) -> Iterator[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (child for child in inner if isinstance(child, dict | list))
