"""What a relay, or a stranger on the wire, cannot do to those who are relayed."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio
from attrs import evolve
from relay_support import ECHO, NatFabric, joined
from trio.testing import MockClock

from magik_mesh import Call, MeshError, Node, RelayLimits, RpcFailed, codes
from magik_mesh.relay_wire import MAGIC, PING, Ping, PunchKey, Unpacker, pack, parse_ping, probe
from magik_mesh.streams import STREAM_ERRORS
from magik_mesh.testing import until
from magik_mesh.testing_nat import Filtering, Mapping
from magik_proto.identity import PeerId

Meddle = Callable[[bytes], list[bytes]]


class Meddler:
    """A relay that changes what it carries, and keeps all of it. Joins callers with `instead`, if that is set."""

    def __init__(self, relay: Node, meddle: Meddle) -> None:
        self.relay = relay
        self.meddle = meddle
        self.instead: PeerId | None = None
        self.seen = bytearray()
        self.circuits = 0
        relay._handlers[codes.OPEN] = self.on_open

    async def on_open(self, call: Call) -> None:
        self.circuits += 1
        target = self.instead or PeerId(call.body["peer"])
        async with self.relay.open_call(target, codes.ACCEPT, {"peer": call.peer.raw}) as (_, other):
            await call.reply()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._copy, call.stream, other, nursery.cancel_scope)
                await self._copy(other, call.stream, nursery.cancel_scope)

    async def _copy(
        self,
        source: trio.abc.HalfCloseableStream,
        sink: trio.abc.HalfCloseableStream,
        both: trio.CancelScope,
    ) -> None:
        unpacker = Unpacker()
        try:
            while chunk := await source.receive_some():
                for datagram in unpacker.feed(chunk):
                    self.seen += datagram
                    await sink.send_all(pack(self.meddle(datagram)))
        except STREAM_ERRORS:
            pass
        both.cancel()


def honest(datagram: bytes) -> list[bytes]:
    return [datagram]


def tampering(rng: random.Random) -> Meddle:
    """One bit of every fifth datagram is turned."""

    def meddle(datagram: bytes) -> list[bytes]:
        if rng.random() < 0.8:
            return [datagram]
        changed = bytearray(datagram)
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return [bytes(changed)]

    return meddle


def dropping(rng: random.Random) -> Meddle:
    return lambda datagram: [] if rng.random() < 0.2 else [datagram]


def replaying(rng: random.Random) -> Meddle:
    """Everything twice, and old things again."""
    old: list[bytes] = []

    def meddle(datagram: bytes) -> list[bytes]:
        old.append(datagram)
        return [datagram, rng.choice(old), datagram]

    return meddle


def cutting(rng: random.Random) -> Meddle:
    """Some datagrams lose their end, or get one that is not theirs."""

    def meddle(datagram: bytes) -> list[bytes]:
        match rng.randrange(10):
            case 0:
                return [datagram[: max(1, len(datagram) // 2)]]
            case 1:
                return [datagram + b"more"]
            case _:
                return [datagram]

    return meddle


@pytest.mark.parametrize("kind", [tampering, dropping, replaying, cutting])
async def test_no_relay_can_have_altered_bytes_delivered(
    autojump_clock: MockClock, kind: Callable[[random.Random], Meddle]
) -> None:
    fabric = NatFabric()
    rng = random.Random(5)
    async with fabric.public(1) as relay:
        meddler = Meddler(relay, kind(rng))
        async with fabric.hidden(11, Mapping.EACH) as one, fabric.hidden(12, Mapping.EACH) as other:
            right = 0
            for number in range(12):
                body = number.to_bytes(2) * 2000
                try:
                    assert await one.call(other.id, ECHO, body, timeout=20) == body
                    right += 1
                except MeshError:
                    await trio.sleep(1)
            assert right >= 5
            assert meddler.circuits > 0
            assert one.is_relayed(other.id)


async def test_a_relay_sees_nothing_of_what_it_carries(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    secret = b"for the other end alone " * 500
    async with fabric.public(1) as relay:
        meddler = Meddler(relay, honest)
        async with fabric.hidden(11, Mapping.EACH) as one, fabric.hidden(12, Mapping.EACH) as other:
            await until(lambda: joined(one, other), 10)
            assert await one.call(other.id, ECHO, secret) == secret
    assert len(meddler.seen) > 2 * len(secret)
    assert secret[:24] not in meddler.seen
    assert ECHO.encode() not in meddler.seen
    assert codes.HELLO.encode() not in meddler.seen


async def test_a_relay_cannot_pass_another_machine_off(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    async with fabric.public(1) as relay:
        meddler = Meddler(relay, honest)
        async with (
            fabric.hidden(11, Mapping.EACH) as one,
            fabric.hidden(12, Mapping.EACH) as other,
            fabric.hidden(13, Mapping.EACH) as impostor,
        ):
            meddler.instead = impostor.id
            await until(lambda: bool(impostor.relays) and bool(other.relays), 10)
            await until(lambda: meddler.circuits > 3, 60)
            with pytest.raises(MeshError):
                await one.call(other.id, ECHO, 1)
            assert not joined(one, other)


async def test_circuits_are_for_those_who_asked(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    async with (
        fabric.public(1) as relay,
        fabric.public(2) as public,
        fabric.hidden(11, relay=RelayLimits(kept=1)) as hidden,
    ):
        await until(lambda: bool(hidden.relays) and joined(hidden, public), 10)
        stranger = public if hidden.relays == (relay.id,) else relay
        cases = [
            (hidden, public, codes.OPEN, {"peer": relay.id.raw}, codes.RELAY_TARGET),
            (hidden, relay, codes.OPEN, {"peer": hidden.id.raw}, codes.RELAY_TARGET),
            (public, relay, codes.OPEN, {"peer": b"short"}, codes.RELAY_BODY),
            (public, relay, codes.OPEN, None, codes.RELAY_BODY),
            (public, hidden, codes.RESERVE, None, codes.RELAY_OFF),
            (public, relay, codes.ACCEPT, {"peer": hidden.id.raw}, codes.RELAY_TARGET),
            (public, relay, codes.PUNCH, {"key": bytes(32), "addrs": []}, codes.RELAY_DIRECT),
            (public, relay, codes.PUNCH, {"key": bytes(31), "addrs": []}, codes.RELAY_BODY),
            (public, relay, codes.PROBE, {"nonce": 7}, codes.RELAY_BODY),
            (stranger, hidden, codes.ACCEPT, {"peer": relay.id.raw}, codes.RELAY_TARGET),
        ]
        for caller, callee, method, body, code in cases:
            with pytest.raises(RpcFailed) as caught:
                await caller.call(callee.id, method, body)
            assert (method, caught.value.code) == (method, code)


async def test_a_peer_that_says_a_key_twice_is_told_so(autojump_clock: MockClock) -> None:
    fabric = NatFabric()
    async with (
        fabric.public(1),
        fabric.hidden(11, Mapping.EACH) as one,
        fabric.hidden(12, Mapping.EACH) as other,
    ):
        await until(lambda: joined(one, other), 10)
        await trio.sleep(10)
        body = {"key": bytes(32), "addrs": ["192.0.2.99:9"]}
        await one.call(other.id, codes.PUNCH, body)
        with pytest.raises(RpcFailed, match=codes.BUSY):
            await one.call(other.id, codes.PUNCH, body)
        await trio.sleep(10)
        await one.call(other.id, codes.PUNCH, body)


async def test_strangers_get_no_answer_beside_quic(autojump_clock: MockClock) -> None:
    """No probe, ping or pong without the right key is answered, so nothing can be bounced off a machine."""
    fabric = NatFabric()
    sent: list[bytes] = []
    rng = random.Random(1)

    def tap(data: bytes, source: tuple[str, int], destination: tuple[str, int]) -> bytes | None:
        if destination[0] == "203.0.113.9":
            sent.append(data)
        return data

    fabric.memory.network.tap = tap
    async with fabric.public(1) as node:
        stranger = fabric.memory.network.socket("203.0.113.9", 9)
        key = PunchKey(bytes(32), asked=True)
        noise = [MAGIC + rng.randbytes(rng.randrange(60)) for _ in range(200)]
        mine = [probe(bytes(16)), key.ping(bytes(8)), key.pong(bytes(8))]
        stranger.send([(data, node.address) for data in (*noise, *mine)])
        await trio.sleep(5)
    assert sent == []


async def test_a_punch_under_way_answers_its_own_end_alone(autojump_clock: MockClock) -> None:
    """Who reads the wire sees the punch's id, but has not its key."""
    fabric = NatFabric()
    answers: list[bytes] = []

    def tap(data: bytes, source: tuple[str, int], destination: tuple[str, int]) -> bytes | None:
        if destination[0] == "203.0.113.9":
            answers.append(data)
        return data

    async with (
        fabric.public(1),
        fabric.hidden(11, Mapping.EACH) as one,
        fabric.hidden(12, Mapping.EACH, Filtering.ANY) as other,
    ):
        await until(lambda: joined(one, other), 10)
        fabric.memory.network.tap = tap
        stranger = fabric.memory.network.socket("203.0.113.9", 9)
        key = PunchKey(b"k" * 32, asked=True)
        await one.call(other.id, codes.PUNCH, {"key": key.key, "addrs": []})
        ping = key.ping(b"12345678")
        for datagram, answered in ((ping[:-1] + b"?", False), (key.pong(b"12345678"), False), (ping, True)):
            stranger.send([(datagram, fabric.nats[12].outside())])
            await trio.sleep(0.2)
            assert bool(answers) == answered
        assert one.is_relayed(other.id) and other.is_relayed(one.id)


def test_an_end_does_not_take_its_own_words_for_the_others() -> None:
    ours, theirs = PunchKey(bytes(32), asked=True), PunchKey(bytes(32), asked=False)
    other = PunchKey(b"k" * 32, asked=False)
    ping = _parsed(theirs.ping(b"12345678"))
    assert ours.proves(ping)
    assert not theirs.proves(ping)
    assert not PunchKey(other.key, asked=True).proves(ping)
    assert ping.kind == PING and not ours.proves(_parsed(theirs.pong(b"12345678"), kind=PING))


def _parsed(data: bytes, kind: int | None = None) -> Ping:
    ping = parse_ping(data)
    assert ping is not None
    return ping if kind is None else evolve(ping, kind=kind)
