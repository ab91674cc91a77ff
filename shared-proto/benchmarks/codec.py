"""What the class layer costs beside bare cbor2 and pynacl, and whether a full replay filter is slower than an
empty one.

Run it with ``python shared-proto/benchmarks/codec.py``; the last line is one JSON object. All pairs are
measured in turns in one process, and each figure is the best of several rounds, so that a busy machine moves
both sides alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from time import perf_counter
from uuid import UUID

import cbor2
from nacl import bindings

from magik_proto import codec, signing, wire
from magik_proto.identity import Identity, PeerId
from magik_proto.messages import Requirements, Tender, decode_message, encode_message
from magik_proto.replay import ReplayFilter

ROUNDS, CALLS = 60, 100
MOST = 2.0
"""What sending and receiving a message may cost, as a multiple of what the bare libraries cost."""
NOW = 1_700_000_000_000
KEY = Identity.from_seed(b"\x01" * 32)


def tender() -> Tender:
    """A tender such as a small Deployment makes."""
    needs = Requirements(cpu_millis=250, memory_bytes=64 << 20, node_selector={"disk": "ssd"})
    message = Tender(
        id=UUID(int=7),
        owner=KEY.peer_id,
        manifest_digest=bytes(32),
        qos_preemptible=False,
        priority=0,
        requirements=needs,
        bid_sample=20,
        round=0,
        timestamp=NOW,
        nonce=1,
    )
    return signing.sign(message, KEY)


def best(*actions: Callable[[], object]) -> list[float]:
    """Microseconds of one call of each, the best of all rounds, measured in turns."""
    times = [float("inf")] * len(actions)
    for _ in range(ROUNDS):
        for index, action in enumerate(actions):
            begin = perf_counter()
            for _ in range(CALLS):
                action()
            times[index] = min(times[index], (perf_counter() - begin) / CALLS * 1e6)
    return times


def messages() -> dict[str, tuple[float, float]]:
    """Name → (our microseconds, those of the bare libraries doing the same to the same bytes)."""
    message = tender()
    data, value = encode_message(message), wire.to_wire(message)
    body = {key: item for key, item in value.items() if key != "signature"}
    domain, secret, public = signing.domain(Tender), KEY.seed() + KEY.peer_id.raw, KEY.peer_id.raw

    def bare_sign() -> bytes:
        digest = hashlib.sha256(cbor2.dumps(body, canonical=True)).digest()
        return bindings.crypto_sign(domain + digest, secret)[:64]

    def bare_verify() -> bytes:
        digest = hashlib.sha256(cbor2.dumps(body, canonical=True)).digest()
        return bindings.crypto_sign_open(message.signature + domain + digest, public)

    def send() -> bytes:
        return encode_message(signing.sign(message, KEY))

    def bare_send() -> bytes:
        return cbor2.dumps({**body, "signature": bare_sign()}, canonical=True)

    def receive() -> None:
        signing.verify(decode_message(data))

    def bare_receive() -> None:
        cbor2.loads(data)
        bare_verify()

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "codec_encode": (lambda: codec.encode(value), lambda: cbor2.dumps(value, canonical=True)),
        "codec_decode": (lambda: codec.decode(data), lambda: cbor2.loads(data)),
        "encode": (lambda: encode_message(message), lambda: cbor2.dumps(value, canonical=True)),
        "decode": (lambda: decode_message(data), lambda: cbor2.loads(data)),
        "sign": (lambda: signing.sign(message, KEY), bare_sign),
        "verify": (lambda: signing.verify(message), bare_verify),
        "sign_and_encode": (send, bare_send),
        "decode_and_verify": (receive, bare_receive),
    }
    results = {}
    for name, (ours, bare) in pairs.items():
        mine, theirs = best(ours, bare)
        results[name] = (mine, theirs)
    return results


def replay() -> tuple[float, float]:
    """Microseconds of a check that remembers: at 100,000 entries, and from empty."""
    signers = [PeerId(index.to_bytes(32, "big")) for index in range(100)]
    full = ReplayFilter(NOW, capacity=200_000)
    for index in range(100_000):
        full.check(signers[index % 100], b"id", index // 100, NOW, NOW)
    empty = ReplayFilter(NOW, capacity=200_000)
    counts = {id(full): 1_000, id(empty): 0}

    def check(filter: ReplayFilter) -> None:
        counts[id(filter)] += 1
        count = counts[id(filter)]
        filter.check(signers[count % 100], b"id", 10_000 + count, NOW, NOW)

    at_full, at_empty = best(lambda: check(full), lambda: check(empty))
    return at_full, at_empty


def main() -> None:
    """Measure and print."""
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for name, (ours, bare) in messages().items():
        figures[f"{name}_us"], figures[f"bare_{name}_us"] = round(ours, 2), round(bare, 2)
        ratios[f"{name}_vs_bare"] = round(ours / bare, 2)
    full, empty = replay()
    figures["replay_100000_us"], figures["replay_empty_us"] = round(full, 2), round(empty, 2)
    ratios["replay_100000_vs_empty"] = round(full / empty, 2)
    path = {name: ratios[f"{name}_vs_bare"] for name in ("sign_and_encode", "decode_and_verify")}
    answer = {
        "name": "codec",
        "message_path": path,
        "ok": max(path.values()) <= MOST,
        "ratios": ratios,
        "figures": figures,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
