"""What gossip peers say to each other: frames as plain CBOR-able values, checked strictly.

A frame is a map with any of these keys; keys that are not known are ignored, so that later versions may add
some:

    subscribe  [[topic, true or false], ...]    topics that the sender takes or no longer takes
    publish    [[topic, payload], ...]          messages in full
    ihave      [[topic, [id, ...]], ...]        messages that the sender could send
    iwant      [id, ...]                        messages that the sender asks for
    graft      [topic, ...]                     the sender takes the receiver into its mesh
    prune      [[topic, seconds], ...]          the sender put it out; not to graft again before that many
    seconds
    idontwant  [id, ...]                        messages that the sender has: not to be sent to it any more

A message's id is the SHA-256 of topic, NUL and payload: it is what it says, no origin or number that a
relay could forge makes the same payload new.  Who wants to say the same thing twice puts a nonce in, as all
of Magik's messages do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar

from magik_proto.errors import RemoteProtocolError

T = TypeVar("T")

MAX_PAYLOAD = 64 * 1024  # protocol.md "gossip message"
MAX_TOPIC = 128  # characters; a guess
MAX_TOPICS = 64  # in one list; a guess, Magik has one topic a plane
MAX_MESSAGES = 64  # in one frame; we send one
MAX_IDS = 1000  # in one list; 32 kB
MAX_BACKOFF_S = 3600
ID_SIZE = 32


def message_id(topic: str, payload: bytes) -> bytes:
    """The 32-byte id of a message."""
    return hashlib.sha256(topic.encode() + b"\0" + payload).digest()


class Frame(NamedTuple):
    """A frame, checked; the fields are those of the module's table.  A tuple, for one is made of each that comes."""

    subscribe: tuple[tuple[str, bool], ...] = ()
    publish: tuple[tuple[str, bytes], ...] = ()
    ihave: tuple[tuple[str, tuple[bytes, ...]], ...] = ()
    iwant: tuple[bytes, ...] = ()
    graft: tuple[str, ...] = ()
    prune: tuple[tuple[str, int], ...] = ()
    idontwant: tuple[bytes, ...] = ()


def to_value(frame: Frame) -> dict[str, Any]:
    """The plain value of a frame: lists, strings, bytes, integers; empty fields are left out."""
    return {name: _plain(value) for name, value in zip(Frame._fields, frame, strict=True) if value}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def parse_frame(value: Any) -> Frame:
    """The frame of a plain value; RemoteProtocolError("gossip.frame") for what is malformed or over a
    limit.
    """
    if not isinstance(value, dict):
        raise _malformed("a frame is a map")
    found = {}
    for name in value:
        parse = _FIELDS.get(name)
        if parse is not None:
            found[name] = parse(value[name])
    return Frame(**found)


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError("gossip.frame", detail)


def _list(items: Any, key: str, limit: int, parse: Callable[[Any], T]) -> tuple[T, ...]:
    if not isinstance(items, list | tuple) or len(items) > limit:
        raise _malformed(f"{key} is a list of at most {limit}")
    return tuple([parse(item) for item in items])


A = TypeVar("A")
B = TypeVar("B")


def _pair(item: Any, first: Callable[[Any], A], second: Callable[[Any], B]) -> tuple[A, B]:
    if not isinstance(item, list | tuple) or len(item) != 2:
        raise _malformed("expected a pair")
    return first(item[0]), second(item[1])


def _subscription(item: Any) -> tuple[str, bool]:
    return _pair(item, _topic, _boolean)


def _message(item: Any) -> tuple[str, bytes]:
    return _pair(item, _topic, _payload)


def _told(item: Any) -> tuple[str, tuple[bytes, ...]]:
    return _pair(item, _topic, _ids)


def _pruned(item: Any) -> tuple[str, int]:
    return _pair(item, _topic, _seconds)


def _topic(item: Any) -> str:
    if not isinstance(item, str) or not 1 <= len(item) <= MAX_TOPIC or not item.isprintable():
        raise _malformed(f"a topic is 1 to {MAX_TOPIC} printable characters")
    return item


def _payload(item: Any) -> bytes:
    if not isinstance(item, bytes) or len(item) > MAX_PAYLOAD:
        raise _malformed(f"a payload is at most {MAX_PAYLOAD} bytes")
    return item


def _boolean(item: Any) -> bool:
    if not isinstance(item, bool):
        raise _malformed("expected true or false")
    return item


def _seconds(item: Any) -> int:
    if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= MAX_BACKOFF_S:
        raise _malformed(f"a back-off is 0 to {MAX_BACKOFF_S} seconds")
    return item


def _ids(items: Any) -> tuple[bytes, ...]:
    if not isinstance(items, list | tuple) or len(items) > MAX_IDS:
        raise _malformed(f"ids are a list of at most {MAX_IDS}")
    for item in items:
        if not isinstance(item, bytes) or len(item) != ID_SIZE:
            raise _malformed(f"an id is {ID_SIZE} bytes")
    return tuple(items)


_FIELDS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "subscribe": lambda items: _list(items, "subscribe", MAX_TOPICS, _subscription),
    "publish": lambda items: _list(items, "publish", MAX_MESSAGES, _message),
    "ihave": lambda items: _list(items, "ihave", MAX_TOPICS, _told),
    "iwant": _ids,
    "graft": lambda items: _list(items, "graft", MAX_TOPICS, _topic),
    "prune": lambda items: _list(items, "prune", MAX_TOPICS, _pruned),
    "idontwant": _ids,
}
"""How each field is read; a frame has one of them, seldom two, and only those that are there cost anything."""
