"""Changed bytes for every reader of `magik_proto`: ``python shared-proto/fuzz/mutate.py --inputs N --seed S``.

What comes in is either taken or refused by a `RemoteProtocolError`; what was taken has the very bytes that
came in as its encoding, and verifies only if nothing was changed. Any other exception, a reading of more than
10 ms of processor time, or growth of the process by more than 1 MB after the warm-up is a failure: the input
is printed, and the program ends with 1. The same numbers give the same inputs. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import base64
import gc
import hashlib
import json
import os
import random
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import cbor2

from magik_proto import codec, signing, wire
from magik_proto.credentials import Delegation, Member, Revocations
from magik_proto.dht_frames import parse_find, parse_found, parse_store, parse_stored
from magik_proto.errors import RemoteProtocolError
from magik_proto.gossip_frames import parse_frame
from magik_proto.identity import BootstrapPeer
from magik_proto.invites import INVITE_PREFIX, Invite
from magik_proto.membership import MembershipPolicy
from magik_proto.messages import ResourceId, decode_message
from magik_proto.records import decode_record
from magik_proto.rpc import FrameDecoder, Request, Response

VECTORS = Path(__file__).parents[2] / "specs" / "vectors"
SLOW_S = 0.010
GROWTH = 1 << 20
WARM_UP = 0.1  # the share of the inputs before which memory is not looked at: caches and arenas fill once
HEADS = (
    bytes(range(0x18, 0x20))
    + b"\x00\x40\x58\x5b\x5f\x60\x7b\x80\x9b\x9f\xa0\xbb\xbf\xc2\xf4\xf6\xf7\xf9\xfb\xff"
)
ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1 << 63, (1 << 64) - 1, -(1 << 64), b"", bytes(31), bytes(32), bytes(64), "", "a/b/c",
    "\u00e9", "\x00", "x" * 300, [], [[]], [0], {}, {"a": 1}, {"magik": "bid/1"}, 1.5, "magik",
)  # fmt: skip

Reader = Callable[[bytes], None]


def corpus() -> list[bytes]:
    """All that is accepted, and all that is refused, in the vectors."""
    load = {path.stem: json.loads(path.read_text()) for path in VECTORS.glob("*.json")}
    found = [row["encoding"] for name in ("accepted", "refused_as_bid") for row in load["messages"][name]]
    found += [row["bytes"] for row in load["codec"]["refused"]]
    found += [row["encoding"] for row in (*load["codec"]["values"], *load["rpc"]["calls"])]
    found += [load["membership"][name] for name in ("delegation", "member", "revocations")]
    found += [row["member"] for row in load["membership"]["admissions"]]
    found += [row["award"] for row in load["auction"]["opened"]]
    found += [row["frame"] for row in load["rpc"]["frames"]] + [
        row["bytes"] for row in load["rpc"]["streams"]
    ]
    seeds = [bytes.fromhex(text) for text in found]
    invite = load["membership"]["invite"].removeprefix(INVITE_PREFIX)
    gossip = {"publish": [["magik-fabric", b"payload"]], "ihave": [["magik-fabric", [bytes(32)]]], "graft": ["t"],
              "idontwant": [bytes(32)], "iwant": [bytes(32)], "prune": [["t", 60]], "subscribe": [["t", True]]}  # fmt: skip
    return [
        *seeds,
        codec.encode(gossip),
        base64.urlsafe_b64decode(invite + "=" * (-len(invite) % 4)),
    ]


class Mutator:
    """Gives inputs from a seed: bytes changed blindly, and values changed and encoded again."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._corpus = corpus()
        self._values = [value for data in self._corpus if (value := _value(data)) is not None]

    def inputs(self, count: int) -> Iterator[bytes]:
        """So many inputs."""
        for _ in range(count):
            yield self._structured() if self._random.random() < 0.4 else self._blind()

    def _blind(self) -> bytes:
        data = bytearray(self._random.choice(self._corpus))
        for _ in range(self._random.randint(1, 4)):
            self._random.choice(
                (self._flip, self._replace, self._cut, self._repeat, self._splice, self._nest)
            )(data)
        return bytes(data[: 1 << 16])

    def _at(self, data: bytearray) -> int:
        return self._random.randrange(len(data) + 1)

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)

    def _replace(self, data: bytearray) -> None:
        at = self._at(data)
        data[at : at + self._random.randint(0, 2)] = bytes([self._random.choice(HEADS)])

    def _cut(self, data: bytearray) -> None:
        at = self._at(data)
        del data[at : at + self._random.choice((1, 2, 8, 1 << 16))]

    def _repeat(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = data[at : at + self._random.randint(1, 64)] * self._random.choice((1, 2, 20))

    def _splice(self, data: bytearray) -> None:
        other, at = self._random.choice(self._corpus), self._at(data)
        data[at : at + self._random.randint(0, 64)] = other[self._random.randrange(len(other) + 1) :][:128]

    def _nest(self, data: bytearray) -> None:
        at = self._at(data)
        data[at:at] = self._random.choice(
            (b"\x81", b"\xa1\x61a", b"\xd8\x1c", b"\x9f")
        ) * self._random.choice((3, 17, 500))

    def _structured(self) -> bytes:
        value = self._changed(self._random.choice(self._values), 0)
        try:
            return cbor2.dumps(value, canonical=self._random.random() < 0.9)
        except (cbor2.CBOREncodeError, UnicodeEncodeError, OverflowError):
            return b""

    def _changed(self, value: Any, depth: int) -> Any:
        pick = self._random.random()
        if pick < 0.15 or depth > 4:
            return self._random.choice(ODD)
        if type(value) is dict and value:
            key = self._random.choice(list(value))
            if pick < 0.25:
                return {name: item for name, item in value.items() if name != key}
            if pick < 0.35:
                return {
                    **value,
                    self._random.choice(("new", "New", "z9", key + "x")): self._random.choice(ODD),
                }
            return {**value, key: self._changed(value[key], depth + 1)}
        if type(value) is list and value:
            index = self._random.randrange(len(value))
            return [
                *value[:index],
                self._changed(value[index], depth + 1),
                *value[index + self._random.randint(0, 1) :],
            ]
        if type(value) is int:
            return value + self._random.choice((-1, 1, 1 << 32))
        if type(value) is bytes:
            return value[:-1] + self._random.choice((b"", b"\x00", b"ab"))
        if type(value) is str:
            return value + self._random.choice(("x", "-", "\u0000", "/", "A"))
        return self._random.choice(ODD)


def _value(data: bytes) -> Any:
    try:
        value = codec.decode(data)
    except RemoteProtocolError:
        return None
    return value if type(value) in (dict, list) else None


def read_value(data: bytes) -> None:
    """Any value: what is read is what would be written. Then every reader of plain values."""
    value = codec.decode(data)
    assert codec.encode(value) == data, "accepted, but not as the one encoding"
    tables = (parse_find, parse_found, parse_store, parse_stored)
    for parse in (Request.from_value, Response.from_value, parse_frame, *tables):
        with suppress(RemoteProtocolError):
            parse(value)


def read_message(decode: Callable[[bytes], wire.SignedMessage]) -> Reader:
    """A message or record: exact bytes, an exact digest, and a signature that fits only what was signed."""
    genuine = set(corpus())

    def read(data: bytes) -> None:
        message = decode(data)
        assert wire.encode_message(message) == data, "accepted, but written otherwise"
        digest = hashlib.sha256(wire.encode_unsigned(message)).digest()
        assert message.digest_read in (None, digest), "the digest taken while reading is another"
        signing.verify(message)
        assert data in genuine, "a changed message verifies"

    return read


def read_member() -> Reader:
    """The parts of a membership, and admission with it."""
    vector = json.loads((VECTORS / "membership.json").read_text())
    policy = MembershipPolicy(Invite.parse(vector["invite"]).root)

    def read(data: bytes) -> None:
        try:
            member = wire.decode_as(Member, data)
        except RemoteProtocolError:
            wire.decode_as(Delegation if len(data) < 600 else Revocations, data)
            return
        policy.admit(member.peer, data, member.issued + 1)

    return read


def read_frame(data: bytes) -> None:
    """A stream, cut in two."""
    decoder = FrameDecoder()
    decoder.feed(data[: len(data) // 2])
    decoder.feed(data[len(data) // 2 :])
    decoder.end()


def read_text(data: bytes) -> None:
    """The forms that people type."""
    Invite.parse(INVITE_PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("="))


def read_names(data: bytes) -> None:
    """Names and addresses in text."""
    text = data.decode("latin-1")
    for parse in (ResourceId.parse, BootstrapPeer.parse):
        with suppress(RemoteProtocolError):
            parse(text)


READERS: dict[str, Reader] = {
    "value": read_value,
    "message": read_message(decode_message),
    "record": read_message(decode_record),
    "member": read_member(),
    "frame": read_frame,
    "invite": read_text,
    "names": read_names,
}


def attempt(reader: Reader, data: bytes) -> str:
    """How the reader took it: ``accepted`` or the rule."""
    try:
        reader(data)
    except RemoteProtocolError as error:
        return error.rule
    return "accepted"


def worst_of(reader: Reader, data: bytes) -> float:
    """Processor seconds of reading, the best of five: a single slow one may be the machine's."""
    best = float("inf")
    for _ in range(5):
        begin = thread_time()
        attempt(reader, data)
        best = min(best, thread_time() - begin)
    return best


def resident() -> int:
    """Bytes of memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(count: int, seed: int) -> dict[str, Any]:
    """The whole job; `failures` in the answer has one entry for each input that failed."""
    rules: Counter[str] = Counter()
    failures: list[dict[str, str]] = []
    slowest, before, begin = 0.0, 0, perf_counter()
    for index, data in enumerate(Mutator(seed).inputs(count)):
        if index == int(count * WARM_UP):
            before = resident()
        for name, reader in READERS.items():
            start = thread_time()
            try:
                rules[f"{name}: {attempt(reader, data)}"] += 1
            except Exception:
                failures.append(
                    {"reader": name, "input": data.hex(), "error": traceback.format_exc(limit=-3)}
                )
                if len(failures) > 20:
                    raise
            taken = thread_time() - start
            if taken > slowest:
                slowest = max(slowest, min(taken, worst_of(reader, data)))
    growth = resident() - before
    answer = {
        "name": "mutate", "inputs": count, "seed": seed, "readings": count * len(READERS),
        "failures": failures, "slowest_ms": round(slowest * 1000, 3), "growth_bytes": growth,
        "rules": len(rules), "accepted": sum(n for rule, n in rules.items() if rule.endswith(": accepted")),
        "seconds": round(perf_counter() - begin, 1),
    }  # fmt: skip
    for rule, number in sorted(rules.items()):
        print(f"{number:9} {rule}")
    return answer


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and say by the exit status whether all was well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    answer = run(options.inputs, options.seed)
    answer["ok"] = (
        not answer["failures"] and answer["slowest_ms"] <= SLOW_S * 1000 and answer["growth_bytes"] <= GROWTH
    )
    print(json.dumps(answer))
    return 0 if answer["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
