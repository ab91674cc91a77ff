"""Deterministic CBOR (RFC 8949 §4.2.1), both ways, with every limit checked before a value is built.

The subset: integers of 64 bits, byte strings, UTF-8 text, arrays, maps with text keys, true, false and null.
One value has one encoding, and only that one is read. Floats and tags do not exist here: scores are integers
in parts per million, and a tag would let bytes choose code. `decode` first walks the bytes once without
building anything (time linear in the input, memory bounded by the nesting), and only what passed reaches
cbor2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import cbor2

from magik_proto.errors import LocalProtocolError, RemoteProtocolError

MAX_SIZE: Final = 16 * 1024 * 1024
"""Bytes in one value: the frame limit of protocol.md. At it: refused (``codec.size``) before any work."""
MAX_DEPTH: Final = 16
"""Containers inside each other (protocol.md). At it: refused (``codec.depth``)."""
MAX_ITEMS: Final = 1 << 20
"""Items in one value. Bounds memory: a one-byte item (an empty map) may cost 72 bytes as an object, so 16 MiB
of them would cost over 1 GB; with this limit a value never costs more than about 5× `MAX_SIZE`. At it:
refused (``codec.items``)."""

_TEXT, _ARRAY, _SIMPLE = 3, 4, 7
"""Major types."""
_NULL, _FALSE = 22, 20
_INDEFINITE = 31
_SCALARS: Final = frozenset({str, bytes, bool, type(None)})
_LOWEST, _HIGHEST = -(1 << 64), (1 << 64) - 1
_FLOATS = range(25, 28)
_WIDTHS: Final = {24: (1, 24), 25: (2, 1 << 8), 26: (4, 1 << 16), 27: (8, 1 << 32)}
"""Additional information → (bytes that follow, smallest argument that needs them)."""


def encode(value: Any) -> bytes:
    """The one encoding of `value`.

    Takes None, bool, int (64 bits), bytes, str, list or tuple, and dict with str keys. Raises
    `LocalProtocolError` for anything that `decode` would not read again with its default limits: nothing
    leaves that a peer would refuse.
    """
    return write(_Canonical().form(value, 0))


def encode_inside(value: Any, depth: int, items: int) -> bytes:
    """The encoding of a `value` that stands inside `depth` containers, which have `items` items in all beside it: a piece
    of what `encode` makes of the whole, within the same limits but for the size of the whole."""
    return write(value if type(value) in _SCALARS else _Canonical(items).form(value, depth))


def write(value: Any) -> bytes:
    """The encoding of a `value` that is in canonical form already: maps in order, only the types that
    `encode` takes, within its limits. Nothing of that is checked; `LocalProtocolError` for text that is no
    Unicode and for more than `MAX_SIZE` bytes."""
    try:
        # cbor2's own canonical mode takes four times as long, and would let tags and floats through.
        data = cbor2.dumps(value)
    except (cbor2.CBOREncodeError, UnicodeEncodeError) as error:
        raise LocalProtocolError(f"cannot be encoded: {error}") from error
    if len(data) > MAX_SIZE:
        raise LocalProtocolError(f"cannot be encoded: {len(data)} bytes, allowed {MAX_SIZE}")
    return data


def decode(
    data: bytes | bytearray | memoryview,
    *,
    max_size: int = MAX_SIZE,
    max_depth: int = MAX_DEPTH,
    max_items: int = MAX_ITEMS,
) -> Any:
    """The value that `data` is the one encoding of; `RemoteProtocolError` naming the rule for any other
    bytes."""
    if len(data) > max_size:
        raise RemoteProtocolError("codec.size", f"{len(data)} bytes, allowed {max_size}")
    raw = bytes(data)
    check(raw, max_size=max_size, max_depth=max_depth, max_items=max_items)
    try:
        return cbor2.loads(raw)
    except cbor2.CBORDecodeError as error:
        # `check` has accepted the structure; what is left to go wrong is the inside of a text string.
        raise RemoteProtocolError("codec.utf8", "a text string is not UTF-8") from error


def check(
    data: bytes, *, max_size: int = MAX_SIZE, max_depth: int = MAX_DEPTH, max_items: int = MAX_ITEMS
) -> None:
    """Refuse `data` unless it is one value in canonical form within the limits (UTF-8 is left to `decode`).

    One loop over the heads, no recursion. `left` counts what the innermost open container still owes; in a
    map it counts keys and values, so an even number means that a key comes next. The order of the branches is
    that of how often they are taken, for this loop is the larger part of what decoding costs.
    """
    end = len(data)
    if end > max_size:
        raise RemoteProtocolError("codec.size", f"{end} bytes, allowed {max_size}")
    open_containers: list[tuple[int, bool, bytes]] = []
    left, in_map, last_key = 1, False, b""
    pos, items = 0, 1
    while left or open_containers:
        if not left:
            left, in_map, last_key = open_containers.pop()
            continue
        if pos >= end:
            raise RemoteProtocolError("codec.truncated", f"ends at byte {end} inside a value")
        start = pos
        head = data[pos]
        pos += 1
        argument = head & 31
        if argument > 23:
            argument, pos = _long_argument(data, pos, head >> 5, argument)
        if in_map and not left & 1:
            if head >> 5 != _TEXT:
                raise RemoteProtocolError("codec.key-type", f"map key at byte {start} is not text")
            pos += argument
            if pos > end:
                raise _too_long(start, argument, end - pos + argument)
            key = data[start:pos]
            if key <= last_key:
                raise _key_order(start, duplicate=key == last_key)
            last_key = key
        elif head < 0x40:
            pass  # an integer: the head is all of it
        elif head < 0x80:
            pos += argument
            if pos > end:
                raise _too_long(start, argument, end - pos + argument)
        elif head < 0xC0:
            owed = argument << (head >> 5) - _ARRAY
            items += owed
            if owed > end - pos:  # every item takes at least one byte
                raise _too_long(start, owed, end - pos)
            if items > max_items:
                raise RemoteProtocolError("codec.items", f"more than {max_items} items")
            if len(open_containers) >= max_depth:
                raise RemoteProtocolError("codec.depth", f"nested deeper than {max_depth} at byte {start}")
            open_containers.append((left - 1, in_map, last_key))
            left, in_map, last_key = owed, head >= 0xA0, b""
            continue
        elif head < 0xE0:
            raise RemoteProtocolError("codec.tag", f"tag {argument} at byte {start}")
        elif not _FALSE <= argument <= _NULL:
            raise RemoteProtocolError("codec.simple", f"simple value {argument} at byte {start}")
        left -= 1
    if pos != end:
        raise RemoteProtocolError("codec.trailing", f"{end - pos} bytes after the value")


class _Canonical:
    """Makes the copy of a value that cbor2 writes canonically, and refuses what has no encoding here.

    Before cbor2 sees it, for cbor2 has tags for much, and recurses without a limit; here the recursion ends
    at `MAX_DEPTH`.
    """

    __slots__ = ("_items",)

    def __init__(self, items: int = 1) -> None:
        self._items = items

    def form(self, value: Any, depth: int) -> Any:
        """`value` with sorted maps; `depth` containers are open around it."""
        kind = type(value)
        if kind in _SCALARS:
            return value
        if kind is int:
            _check_integer(value)
            return value
        if kind is dict:
            self._enter(2 * len(value), depth)
            return {key: self.form(value[key], depth + 1) for key in sorted_keys(value)}
        if kind is list or kind is tuple:
            self._enter(len(value), depth)
            return [item if type(item) in _SCALARS else self.form(item, depth + 1) for item in value]
        raise LocalProtocolError(f"cannot be encoded: {kind.__name__} has no encoding")

    def _enter(self, owed: int, depth: int) -> None:
        """A container with `owed` items begins."""
        self._items += owed
        if depth >= MAX_DEPTH:
            raise LocalProtocolError(f"cannot be encoded: nested deeper than {MAX_DEPTH}")
        if self._items > MAX_ITEMS:
            raise LocalProtocolError(f"cannot be encoded: more than {MAX_ITEMS} items")


def sorted_keys(value: Iterable[Any]) -> list[str]:
    """The keys in the order of their encodings: by length in UTF-8, then by code points (the order of UTF-8
    too). `LocalProtocolError` for a key that is not text."""
    for key in value:
        if type(key) is not str:
            kind = type(key).__name__
            raise LocalProtocolError(f"cannot be encoded: map key of type {kind}, only text may be one")
    keys: list[str] = sorted(value)
    keys.sort(key=len if "".join(keys).isascii() else _utf8_length)
    return keys


def _utf8_length(text: str) -> int:
    return len(text.encode())


def _check_integer(value: int) -> None:
    if not _LOWEST <= value <= _HIGHEST:
        raise LocalProtocolError(f"cannot be encoded: integer of {value.bit_length()} bits, allowed 64")


def _long_argument(data: bytes, pos: int, major: int, info: int) -> tuple[int, int]:
    """The argument that follows a head with `info` ≥ 24, and the position after it."""
    start = pos - 1
    if info == _INDEFINITE:
        raise RemoteProtocolError("codec.indefinite", f"indefinite length or break at byte {start}")
    if info not in _WIDTHS:
        raise RemoteProtocolError("codec.reserved", f"reserved additional information {info} at byte {start}")
    if major == _SIMPLE:
        rule = "codec.float" if info in _FLOATS else "codec.simple"
        raise RemoteProtocolError(rule, f"head {data[start]:#04x} at byte {start}")
    width, smallest = _WIDTHS[info]
    if pos + width > len(data):
        raise RemoteProtocolError("codec.truncated", f"ends at byte {len(data)} inside a head")
    argument = int.from_bytes(data[pos : pos + width], "big")
    if argument < smallest:
        raise RemoteProtocolError("codec.non-shortest", f"{argument} takes {width} bytes at byte {start}")
    return argument, pos + width


def _too_long(start: int, claimed: int, available: int) -> RemoteProtocolError:
    return RemoteProtocolError("codec.length", f"byte {start} claims {claimed}, {available} bytes are left")


def _key_order(start: int, *, duplicate: bool) -> RemoteProtocolError:
    if duplicate:
        return RemoteProtocolError("codec.duplicate-key", f"map key at byte {start} is there twice")
    return RemoteProtocolError("codec.unsorted-key", f"map key at byte {start} is not in order")
