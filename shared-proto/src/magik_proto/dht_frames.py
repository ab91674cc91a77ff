"""What hash tables say to each other: bodies of calls as plain CBOR-able values, checked strictly.

Keys that are not known are ignored, so that later versions may add some (technical-spec, "Calls of the
hash table"). What is malformed or over a limit is `RemoteProtocolError` with the rule ``dht.frame``.
"""

from __future__ import annotations

import re
from typing import Any, Final

from magik_proto.dht_types import Find, Found, Store, Stored
from magik_proto.errors import RemoteProtocolError
from magik_proto.identity import KEY_BYTES, PeerId, parse_address
from magik_proto.kademlia import MAX_ADDRESSES, Contact, K

FIND: Final = "/magik/dht/find/1.0.0"
STORE: Final = "/magik/dht/store/1.0.0"

MAX_RECORD: Final = 16 * 1024
"""Bytes of one record; four times a membership, the largest part of any (guess)."""
MAX_RECORDS: Final = 64
"""Records in one answer."""
MAX_STORED: Final = 16
"""Records in one store call, and refusals in its answer."""
MAX_ANSWER: Final = 64 * 1024
"""Bytes of records in one answer: the rest is asked for (`Find.after`)."""
MAX_FRAME: Final = MAX_STORED * MAX_RECORD + 4096
"""Bytes of any of these frames: the largest, a store call, and what is around its records."""

_KIND: Final = re.compile(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?")
_RULE: Final = re.compile(r"[-a-z0-9_.]{0,64}")


def find_value(find: Find, addrs: tuple[str, ...] = ()) -> dict[str, Any]:
    """The body of a find call; `addrs` is where the asker can be reached."""
    value: dict[str, Any] = {"key": find.key}
    if find.kind is not None:
        value["kind"] = find.kind
    if find.after is not None:
        value["after"] = find.after.raw
    if addrs:
        value["addrs"] = list(addrs[:MAX_ADDRESSES])
    return value


def parse_find(value: Any) -> tuple[Find, tuple[str, ...]]:
    """The request in a find call, and the addresses that its sender says of itself."""
    body = _map(value)
    kind, after = body.get("kind"), body.get("after")
    if kind is not None and not (isinstance(kind, str) and _KIND.fullmatch(kind)):
        raise _malformed("kind is no name of a kind")
    find = Find(_key(body.get("key")), kind, None if after is None else PeerId(_key(after)))
    return find, _addresses(body.get("addrs", []))


def found_value(found: Found) -> dict[str, Any]:
    """The body of a find call's answer."""
    value: dict[str, Any] = {"peers": [[c.peer.raw, list(c.addrs)] for c in found.peers]}
    if found.records:
        value["records"] = list(found.records)
    if found.more:
        value["more"] = True
    return value


def parse_found(value: Any) -> Found:
    """The answer to a find call."""
    body = _map(value)
    more = body.get("more", False)
    if not isinstance(more, bool):
        raise _malformed("more is true or false")
    peers = tuple(_contact(item) for item in _list(body.get("peers"), K, "peers"))
    return Found(peers, _records(body.get("records", []), MAX_RECORDS), more)


def store_value(store: Store) -> dict[str, Any]:
    """The body of a store call."""
    return {"records": list(store.records)}


def parse_store(value: Any) -> Store:
    """The request in a store call."""
    records = _records(_map(value).get("records"), MAX_STORED)
    if not records:
        raise _malformed("nothing to store")
    return Store(records)


def stored_value(stored: Stored) -> dict[str, Any]:
    """The body of a store call's answer."""
    return {"refused": list(stored.refused)}


def parse_stored(value: Any) -> Stored:
    """The answer to a store call."""
    rules = _list(_map(value).get("refused"), MAX_STORED, "refused")
    if not all(isinstance(rule, str) and _RULE.fullmatch(rule) for rule in rules):
        raise _malformed("a refusal is a rule's name, or empty")
    return Stored(tuple(rules))


def _malformed(detail: str) -> RemoteProtocolError:
    return RemoteProtocolError("dht.frame", detail)


def _map(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _malformed("a body is a map")
    return value


def _list(value: Any, most: int, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise _malformed(f"{name} is a list of at most {most}")
    return value


def _key(value: Any) -> bytes:
    if not isinstance(value, bytes) or len(value) != KEY_BYTES:
        raise _malformed(f"a key is {KEY_BYTES} bytes")
    return value


def _records(value: Any, most: int) -> tuple[bytes, ...]:
    records = _list(value, most, "records")
    if not all(isinstance(record, bytes) and 0 < len(record) <= MAX_RECORD for record in records):
        raise _malformed(f"a record is 1 to {MAX_RECORD} bytes")
    return tuple(records)


def _contact(value: Any) -> Contact:
    peer, addrs = value if isinstance(value, list) and len(value) == 2 else (None, None)
    return Contact(PeerId(_key(peer)), _addresses(addrs))


def _addresses(value: Any) -> tuple[str, ...]:
    addrs = _list(value, MAX_ADDRESSES, "addrs")
    for text in addrs:
        if not isinstance(text, str) or len(text) > 64:
            raise _malformed("an address is ip:port")
        try:
            parse_address(text)
        except RemoteProtocolError as error:
            raise _malformed(error.detail) from error
    return tuple(addrs)
