"""The first call on every connection: who I am this time, where I am, and whom I know.

The body of the request, and of the answer, is a map:

    incarnation  u64     drawn at each start of the node
    count        int     connections that the sender had taken into use (in the answer: this one included)
    links        int     connections that the sender has now
    urgent       bool    the sender has a call to make, and no way around the receiver
    record       bytes   the sender's signed MachineRecord
    seen         text    the address at which the sender sees the receiver
    peers        list    signed MachineRecords of others, as bytes
    revoked      u64     serial of the sender's list of revocations; absent, as 0, means none

The answer has `answer` beside these: "take", "duplicate" or "full" (see `magik_mesh.arbitration`).
"""

from __future__ import annotations

from typing import Any

from attrs import asdict, frozen

from magik_proto.errors import RemoteProtocolError

_MAX_PEERS = 256
# Bytes of a hello's frame: all records at their largest, and some.
MAX_HELLO = 2 << 20


@frozen
class Hello:
    """See the module's table."""

    incarnation: int
    count: int
    links: int
    urgent: bool
    record: bytes
    seen: str
    peers: tuple[bytes, ...]
    answer: str = ""
    revoked: int = 0

    def to_value(self) -> dict[str, Any]:
        """As a plain value for the wire."""
        return {**asdict(self), "peers": list(self.peers)}


def parse_hello(value: Any) -> Hello:
    """The hello of a plain value; `RemoteProtocolError` for anything else. Unknown keys are ignored."""
    if not isinstance(value, dict):
        raise _malformed("is not a map")
    return Hello(
        incarnation=_number(value, "incarnation"),
        count=_number(value, "count"),
        links=_number(value, "links"),
        urgent=_typed(value, "urgent", bool),
        record=_typed(value, "record", bytes),
        seen=_typed(value, "seen", str),
        peers=parse_records(value.get("peers", [])),
        answer=value.get("answer", "") if isinstance(value.get("answer", ""), str) else "",
        revoked=_number({"revoked": 0, **value}, "revoked"),
    )


def parse_records(value: Any) -> tuple[bytes, ...]:
    """A list of encoded records, as it comes off the wire."""
    if not isinstance(value, list) or len(value) > _MAX_PEERS:
        raise _malformed(f"peers is not a list of at most {_MAX_PEERS}")
    if not all(isinstance(item, bytes) for item in value):
        raise _malformed("peers holds something that is no record")
    return tuple(value)


def _number(value: dict[str, Any], key: str) -> int:
    number = _typed(value, key, int)
    if isinstance(number, bool) or not 0 <= number < 1 << 64:
        raise _malformed(f"{key} is not an unsigned 64-bit integer")
    return int(number)


def _typed(value: dict[str, Any], key: str, kind: type) -> Any:
    if not isinstance(value.get(key), kind):
        raise _malformed(f"{key} is missing or not {kind.__name__}")
    return value[key]


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError("mesh.hello", detail)
