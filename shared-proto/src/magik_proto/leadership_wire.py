"""How the messages of `magik_proto.leadership` travel, and how a replica keeps what it must not forget.

A message is a map: `kind`, and the fields of its class by name. Who sent it is what the connection proved (the ordinal in
the sender's pass), so it is not said again; in which of its lives, and of which others' it has recorded, is
(`life`, `lives`). Unknown keys are ignored; all else is ``leadership.message``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from magik_proto import codec
from magik_proto.errors import RemoteProtocolError
from magik_proto.fields import MAX_BYTES, MAX_U64
from magik_proto.leadership_types import (
    MAX_VOTERS,
    Heartbeat,
    HeartbeatReply,
    Life,
    Message,
    PreVote,
    PreVoteReply,
    Rejoin,
    RejoinReply,
    RequestVote,
    Stored,
    VoteReply,
)

KINDS: Final[Mapping[str, type[Message]]] = {
    "pre-vote": PreVote,
    "pre-vote-reply": PreVoteReply,
    "vote": RequestVote,
    "vote-reply": VoteReply,
    "heartbeat": Heartbeat,
    "heartbeat-reply": HeartbeatReply,
    "rejoin": Rejoin,
    "rejoin-reply": RejoinReply,
}
"""Each message by the text that says which it is."""
MAX_STORED: Final = 64 * 1024
"""Bytes of a replica's store: 99 incarnations take two thousand. At it: it is none."""
_NAMES: Final = {cls: name for name, cls in KINDS.items()}

Read = Callable[[Any], Any]


def to_value(message: Message, life: Life) -> dict[str, Any]:
    """A message as a plain value, with the sender's life."""
    fields = attrs.asdict(message, recurse=False)
    value = {"kind": _NAMES[type(message)], **{name: _plain(value) for name, value in fields.items()}}
    return {**value, "life": life.incarnation, "lives": _plain(life.incarnations)}


def from_value(value: Any) -> tuple[Message, Life]:
    """The message of a plain value; `RemoteProtocolError` (``leadership.message``) for any other."""
    if not isinstance(value, dict):
        raise _malformed("a message is a map")
    kind = value.get("kind")
    cls = KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise _malformed("of no known kind")
    readers = {**_FIELDS, **_OTHERWISE.get(cls, {})}
    message = cls(**{name: readers[name](value.get(name)) for name in attrs.fields_dict(cls)})
    return message, Life(_u64(value.get("life")), _incarnations(value.get("lives")))


def stored_to_bytes(stored: Stored) -> bytes:
    """What a replica writes to its stable storage."""
    fields = attrs.asdict(stored, recurse=False)
    return codec.encode({name: _plain(value) for name, value in fields.items()})


def stored_from_bytes(data: bytes) -> Stored:
    """What `stored_to_bytes` wrote; `RemoteProtocolError` for other bytes: then the storage counts as lost."""
    value = codec.decode(data, max_size=MAX_STORED)
    if not isinstance(value, dict):
        raise _malformed("what is stored is a map")
    return Stored(
        generation=_generation(value.get("generation")),
        voters=_voters(value.get("voters")),
        since=_u64(value.get("since")),
        incarnation=_u64(value.get("incarnation")),
        term=_u64(value.get("term")),
        vote=None if value.get("vote") is None else _ordinal(value["vote"]),
        incarnations=_incarnations(value.get("incarnations")),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [[ordinal, number] for ordinal, number in sorted(value.items())]
    return list(value) if isinstance(value, tuple) else value


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError("leadership.message", detail)


def _whole(most: int, what: str) -> Read:
    def read(value: Any) -> int:
        if type(value) is not int or not 0 <= value <= most:
            raise _malformed(f"{what} is not a whole number up to {most}")
        return value

    return read


_u64 = _whole(MAX_U64, "a term, round or incarnation")
_generation = _whole(MAX_BYTES, "a generation")
_ordinal = _whole(MAX_VOTERS - 1, "an ordinal")
_count = _whole(MAX_VOTERS, "a number of voters")


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise _malformed("a flag is true or false")
    return value


def _round(value: Any) -> int | None:
    """None in the answer to a heartbeat of an earlier term: it promises nothing."""
    return None if value is None else int(_u64(value))


def _voters(value: Any) -> tuple[int, ...]:
    """One number, or two while it changes, or none where it is not known."""
    if not isinstance(value, list) or len(value) > 2 or 0 in value:
        raise _malformed("voters are at most two numbers, none of them 0")
    return tuple(int(_count(item)) for item in value)


def _leaders_voters(value: Any) -> tuple[int, ...]:
    if not (voters := _voters(value)):
        raise _malformed("a leader knows who votes")
    return voters


def _incarnations(value: Any) -> dict[int, int]:
    """A list of [ordinal, incarnation], each ordinal once, ascending."""
    if not isinstance(value, list) or len(value) > MAX_VOTERS:
        raise _malformed(f"incarnations are a list of at most {MAX_VOTERS} pairs")
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise _malformed("an incarnation is a pair")
    found = {int(_ordinal(ordinal)): int(_u64(number)) for ordinal, number in value}
    if list(found) != sorted(found) or len(found) != len(value):
        raise _malformed("ordinals are not ascending")
    return found


_FIELDS: Final[Mapping[str, Read]] = {
    "term": _u64,
    "generation": _generation,
    "granted": _flag,
    "incarnation": _u64,
    "round": _u64,
    "settled": _flag,
    "since": _u64,
    "voters": _voters,
}
_OTHERWISE: Final[Mapping[type[Message], Mapping[str, Read]]] = {
    HeartbeatReply: {"round": _round},
    Heartbeat: {"voters": _leaders_voters},
}
