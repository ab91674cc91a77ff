"""What a field of a message may hold: the validators that the classes of this package share, and their
limits.

A validator raises `InvalidField`, which is a `LocalProtocolError` where we built the object ourselves and
becomes a `RemoteProtocolError` where the object came off the wire.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final
from uuid import UUID

import attrs
from attrs import Attribute

from magik_proto.errors import InvalidField, RemoteProtocolError
from magik_proto.identity import SIGNATURE_BYTES, parse_address

Validator = Callable[[Any, "Attribute[Any]", Any], None]

HEADER: Final = "magik"
"""The key of a message's map that says its type and version; no field has this name."""
MAX_TIMESTAMP: Final = (1 << 48) - 1
"""Milliseconds since the epoch; 48 bits reach the year 10889 and leave 16 bits for a hybrid clock's
counter."""
MAX_U64: Final = (1 << 64) - 1
MAX_BYTES: Final = (1 << 63) - 1
"""An amount of memory or storage in bytes: Kubernetes' int64."""
MAX_MILLIS: Final = 1_000_000_000
"""Processor time in thousandths of a core: a million cores, far over any machine (guess)."""
MAX_PPM: Final = 1_000_000
MAX_COUNT: Final = 10_000
"""Replicas, slots and pods in one message (guess: 20 times what a large machine runs)."""
MAX_MANIFEST: Final = 1024 * 1024
"""Bytes of a manifest (protocol.md)."""
MAX_TEXT: Final = 1024
"""Characters of a text for people, as an event's reason."""
MAX_EXTRA: Final = 64
"""Unknown optional fields that one message may carry."""

_DNS_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_LABEL_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
DNS_LABEL: Final = re.compile(_DNS_LABEL)
DNS_SUBDOMAIN: Final = re.compile(rf"(?=.{{1,253}}\Z){_DNS_LABEL}(?:\.{_DNS_LABEL})*")
KIND: Final = re.compile(r"[A-Z][A-Za-z0-9]{0,62}")
LABEL_KEY: Final = re.compile(rf"(?:(?=[^/]{{1,253}}/){_DNS_LABEL}(?:\.{_DNS_LABEL})*/)?{_LABEL_NAME}")
OPTIONAL_LABEL_KEY: Final = re.compile(f"(?:{LABEL_KEY.pattern})?")
LABEL_VALUE: Final = re.compile(rf"(?:{_LABEL_NAME})?")
ARCHITECTURE: Final = re.compile(r"[a-z0-9_]{1,32}")
FIELD_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
"""How an unknown optional field may be called."""
PORT_NAME: Final = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,13}[a-z0-9])?")


def fail(attribute: Attribute[Any], detail: str) -> InvalidField:
    """The error for `attribute`, to be raised by the caller."""
    return InvalidField(attribute.name, detail)


def integer(lowest: int, highest: int) -> Validator:
    """An int (not a bool) from `lowest` to `highest`, both included."""

    def validate(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if type(value) is not int or not lowest <= value <= highest:
            raise fail(attribute, f"must be an integer from {lowest} to {highest}")

    return validate


def octets(lowest: int, highest: int) -> Validator:
    """A byte string of `lowest` to `highest` bytes."""

    def validate(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if type(value) is not bytes or not lowest <= len(value) <= highest:
            raise fail(attribute, f"must be {lowest} to {highest} bytes")

    return validate


def matching(pattern: re.Pattern[str], what: str) -> Validator:
    """A text that `pattern` matches from end to end; `what` tells people what it is."""

    def validate(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if type(value) is not str or not pattern.fullmatch(value):
            raise fail(attribute, f"must be {what}")

    return validate


def matching_up_to(pattern: str, most: int, what: str) -> Validator:
    """A text of at most `most` characters that `pattern` matches from end to end."""
    compiled = re.compile(pattern)

    def validate(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if type(value) is not str or len(value) > most or not compiled.fullmatch(value):
            raise fail(attribute, f"must be {what}, at most {most} characters")

    return validate


def text(most: int) -> Validator:
    """Any text of at most `most` characters."""

    def validate(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if type(value) is not str or len(value) > most:
            raise fail(attribute, f"must be text of at most {most} characters")

    return validate


def one_of(*allowed: str) -> Validator:
    """One of the texts in `allowed`."""

    def validate(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if type(value) is not str or value not in allowed:
            raise fail(attribute, f"must be one of {', '.join(map(repr, allowed))}")

    return validate


def instance(kind: type) -> Validator:
    """Exactly an instance of `kind`."""

    def validate(_: Any, attribute: Attribute[Any], value: Any) -> None:
        if type(value) is not kind:
            raise fail(attribute, f"must be a {kind.__name__}")

    return validate


def optional(inner: Validator) -> Validator:
    """None (the field is then absent on the wire) or what `inner` allows."""

    def validate(owner: Any, attribute: Attribute[Any], value: Any) -> None:
        if value is not None:
            inner(owner, attribute, value)

    return validate


def sequence(inner: Validator, most: int) -> Validator:
    """A tuple of at most `most` items that `inner` allows."""

    def validate(owner: Any, attribute: Attribute[Any], value: Any) -> None:
        if type(value) is not tuple or len(value) > most:
            raise fail(attribute, f"must be a tuple of at most {most}")
        for item in value:
            inner(owner, attribute, item)

    return validate


def mapping(key: Validator, inner: Validator, most: int) -> Validator:
    """A mapping of at most `most` entries with such keys and values (see `freeze`)."""

    def validate(owner: Any, attribute: Attribute[Any], value: Any) -> None:
        if type(value) is not MappingProxyType or len(value) > most:
            raise fail(attribute, f"must be a mapping of at most {most}")
        for name, item in value.items():
            key(owner, attribute, name)
            inner(owner, attribute, item)

    return validate


def ascending(most: int, highest: int) -> Validator:
    """A tuple of different ints from 0 to `highest`, in ascending order, so that one set has one form."""
    each = sequence(integer(0, highest), most)

    def validate(owner: Any, attribute: Attribute[Any], value: Any) -> None:
        each(owner, attribute, value)
        if any(a >= b for a, b in pairwise(value)):
            raise fail(attribute, "must ascend without repetition")

    return validate


def prose(_: Any, attribute: Attribute[Any], value: Any) -> None:
    """A text for people: at most `MAX_TEXT` characters, no control characters (it ends in logs and
    terminals)."""
    if type(value) is not str or len(value) > MAX_TEXT or not value.isprintable():
        raise fail(attribute, f"must be printable text of at most {MAX_TEXT} characters")


def address(_: Any, attribute: Attribute[Any], value: Any) -> None:
    """``ip:port`` or ``[ipv6]:port``."""
    if type(value) is not str or len(value) > 64:
        raise fail(attribute, "must be ip:port")
    try:
        parse_address(value)
    except RemoteProtocolError as error:
        raise fail(attribute, error.detail) from error


def signature(_: Any, attribute: Attribute[Any], value: Any) -> None:
    """64 bytes, or none while the message is not yet signed."""
    if type(value) is not bytes or len(value) not in (0, SIGNATURE_BYTES):
        raise fail(attribute, f"must be {SIGNATURE_BYTES} bytes")


def unknown_fields(owner: Any, attribute: Attribute[Any], value: Any) -> None:
    """Fields of a later version: at most `MAX_EXTRA`, named like fields, none known, never null."""
    if type(value) is not MappingProxyType or len(value) > MAX_EXTRA:
        raise fail(attribute, f"must be a mapping of at most {MAX_EXTRA}")
    if not value:
        return
    taken = {HEADER, *attrs.fields_dict(type(owner))}
    for name, item in value.items():
        if type(name) is not str or not FIELD_NAME.fullmatch(name) or name in taken or item is None:
            raise fail(attribute, "unknown fields are named in snake_case, unlike known ones, and never null")


def freeze(value: Any) -> Any:
    """A read-only copy of a mapping, so that a frozen object stays as signed; other values pass unchanged."""
    if type(value) is MappingProxyType:
        return value  # made here before: nobody else has what is behind it
    return MappingProxyType(dict(value)) if isinstance(value, Mapping) else value


timestamp: Final = integer(0, MAX_TIMESTAMP)
nonce: Final = integer(0, MAX_U64)
generation: Final = integer(0, MAX_BYTES)
digest: Final = octets(32, 32)
public_key: Final = octets(32, 32)
ppm: Final = integer(0, MAX_PPM)
count: Final = integer(1, MAX_COUNT)
boolean: Final = instance(bool)
uuid: Final = instance(UUID)
namespace: Final = matching(DNS_LABEL, "a DNS label of at most 63 characters")
kind_name: Final = matching(KIND, "a kind in CamelCase of at most 63 characters")
object_name: Final = matching(DNS_SUBDOMAIN, "a DNS name of at most 253 characters")
label_key: Final = matching(LABEL_KEY, "a Kubernetes label key")
label_value: Final = matching(LABEL_VALUE, "a Kubernetes label value")
port_name: Final = matching(PORT_NAME, "a port name of at most 15 characters")
port: Final = integer(1, 0xFFFF)
