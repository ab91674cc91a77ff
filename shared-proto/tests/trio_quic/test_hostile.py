"""Strangers: addresses that are not theirs, floods, and crowds from one place."""

import random
from collections import Counter
from contextlib import AsyncExitStack, suppress

import pytest
import trio
import trio_quic_support
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio_quic_support import (
    ALICE,
    ALPN,
    BOB,
    ask,
    connected,
    credentials,
    endpoint_on,
    name_of,
    network,
    serve_echo,
    stream_pair,
)

from trio_quic import (
    Credentials,
    HandshakeFailed,
    Limits,
    PeerRejected,
    make_certificate,
    open_endpoint,
)

MALLORY = ("10.0.0.66", 666)


def raw_client() -> QuicConnection:
    own = credentials("mallory")
    configuration = QuicConfiguration(
        alpn_protocols=[ALPN],
        is_client=True,
        verify_mode=0,
        certificate=own.certificate,
        private_key=own.private_key,
    )
    return QuicConnection(configuration=configuration)


def first_flight(now: float) -> list[bytes]:
    client = raw_client()
    client.connect(BOB, now)
    return [data for data, _ in client.datagrams_to_send(now)]


def spoof(net, source, data: bytes) -> None:
    net.carry(data, source, BOB)


async def test_a_client_that_is_not_where_it_says_gets_at_most_three_times_its_bytes(autojump_clock):
    net = network()
    sent = {"in": 0, "out": 0}

    def count(data, source, destination):
        if source == BOB:
            sent["out"] += len(data)
        return data

    net.tap = count
    async with wordy_bob(net) as bob:
        for data in first_flight(trio.current_time()):
            sent["in"] += len(data)
            spoof(net, MALLORY, data)
        await trio.sleep(0.1)
        assert bob.connections == 1
        assert sent["out"] > 0, "the control: there was an answer"
        await trio.sleep(60)
        assert bob.connections == 0
    assert sent["out"] <= 3 * sent["in"]


async def test_closing_the_endpoint_tells_unproven_addresses_nothing_more(autojump_clock):
    net = network()
    sent = {"in": 0, "out": 0}

    def count(data, source, destination):
        if source == BOB:
            sent["out"] += len(data)
        return data

    net.tap = count
    async with wordy_bob(net):
        for data in first_flight(trio.current_time()):
            sent["in"] += len(data)
            spoof(net, MALLORY, data)
        await trio.sleep(5)
    assert sent["out"] <= 3 * sent["in"]


def wordy_bob(net, **limits):
    """Bob with a certificate of 6 KB, so that his first flight is more than three times a client's first datagram."""
    key = Ed25519PrivateKey.generate()
    certificate = make_certificate(key, common_name="bob", extensions={"2.25.1": bytes(6000)})
    return open_endpoint(
        *BOB,
        credentials=Credentials(certificate, key),
        alpn=ALPN,
        verify_peer=name_of,
        limits=Limits(**limits),
        socket=net.socket(*BOB),
        core=trio_quic_support.CORE,
    )


class Scales:
    """Weighs what goes to and from Bob, by the other address."""

    def __init__(self, net):
        self.to: Counter[str] = Counter()
        self.fro: Counter[str] = Counter()
        net.tap = self

    def __call__(self, data, source, destination):
        if source == BOB:
            self.fro[destination[0]] += len(data)
        elif destination == BOB:
            self.to[source[0]] += len(data)
        return data


async def everything_a_client_says(net) -> list[bytes]:
    """All datagrams of a client that connects, talks and leaves: whole first flights and all that follows."""
    said = []

    def note(data, source, destination):
        if source == ALICE:
            said.append(data)
        return data

    net.tap = note
    async with endpoint_on(net, ALICE) as alice, endpoint_on(net, BOB) as bob, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, bob)
        for _ in range(3):
            ours = await alice.connect(BOB)
            assert await ask(ours, b"x" * 3000) == b"x" * 3000
            await ours.aclose()
        nursery.cancel_scope.cancel()
    await trio.sleep(1)
    return said


@pytest.mark.parametrize("retry_above", [0, 4, 32])
@pytest.mark.parametrize("seed", range(3))
async def test_no_unproven_address_gets_more_than_three_times_its_bytes(autojump_clock, seed, retry_above):
    """Whatever is said in its name: first flights, parts and repetitions of them, later packets, tokens, noise."""
    net, noise = network(seed), random.Random(seed)
    said = await everything_a_client_says(net)
    scales = Scales(net)
    async with wordy_bob(net, retry_above=retry_above, max_handshakes=64) as bob:
        for number in range(60):
            victim = (f"10.2.{number}.1", 1)
            for _ in range(noise.randint(1, 12)):
                data = bytearray(noise.choice(said))
                kind = noise.random()
                if kind < 0.2:
                    data[noise.randrange(min(60, len(data)))] ^= noise.randrange(256)
                elif kind < 0.3:
                    data[1:5] = noise.randbytes(4)  # another version
                elif kind < 0.4:
                    data = bytearray(b"\x40" + noise.randbytes(noise.choice([20, 21, 43, 1199])))
                for _ in range(noise.choice([1, 1, 1, 5])):
                    spoof(net, victim, bytes(data))
                await trio.sleep(noise.choice([0, 0, 0.01, 1]))
        await trio.sleep(60)
        assert bob.connections == 0
    assert sum(scales.fro.values()) > 0, "the control: there were answers"
    assert {
        host: (scales.to[host], sent) for host, sent in scales.fro.items() if sent > 3 * scales.to[host]
    } == {}


async def test_a_borrowed_address_in_the_midst_of_a_connection_gets_no_flood(autojump_clock):
    """Somebody on the way sends Alice's datagrams from elsewhere, and ahead of her own: a move, for all that Bob knows."""
    net = network()
    async with connected(net) as (ours, theirs), trio.open_nursery() as nursery:
        mine, other = await stream_pair(ours, theirs)
        await trio.sleep(1)
        scales = Scales(net)

        def borrow(data, source, destination):
            if source == ALICE and len(scales.to) < 40:
                fake = (f"10.3.{len(scales.to)}.1", 1)
                scales(data, fake, BOB)
                net._sockets[BOB].arrive(trio.current_time(), data, fake)
            return scales(data, source, destination)

        net.tap = borrow

        async def answer_a_lot():
            with suppress(trio.BrokenResourceError):
                await other.send_last(b"x" * 200_000)

        nursery.start_soon(answer_a_lot)
        for _ in range(60):
            with suppress(trio.BrokenResourceError):
                await mine.send_all(b"more")
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    borrowed = {host: (scales.to[host], sent) for host, sent in scales.fro.items() if host.startswith("10.3")}
    assert borrowed, "the control: Bob did look whether Alice has moved"
    assert {host: it for host, it in borrowed.items() if it[1] > 3 * it[0]} == {}


async def test_under_a_flood_new_clients_prove_their_address_and_get_in(autojump_clock):
    net = network()
    limits = Limits(retry_above=4, max_handshakes=8)
    async with (
        endpoint_on(net, BOB, limits=limits) as bob,
        endpoint_on(net, ALICE) as alice,
        trio.open_nursery() as nursery,
    ):
        for number in range(200):
            for data in first_flight(trio.current_time()):
                spoof(net, (f"10.1.{number}.1", 7), data)
        await trio.sleep(0.1)
        assert bob.connections == 4, "nothing is kept of those that proved nothing"
        nursery.start_soon(serve_echo, bob)
        ours = await alice.connect(BOB)
        assert await ask(ours, b"honest") == b"honest"
        nursery.cancel_scope.cancel()


async def test_a_proof_is_good_for_its_address_only_and_not_for_ever(autojump_clock):
    net = network()
    limits = Limits(retry_above=0, max_handshakes=8)
    async with endpoint_on(net, BOB, limits=limits) as bob:
        client = raw_client()
        socket = net.socket(*MALLORY)
        client.connect(BOB, trio.current_time())
        socket.send(client.datagrams_to_send(trio.current_time()))
        for data, source in await socket.receive():
            client.receive_datagram(data, source, trio.current_time())
        with_token = [data for data, _ in client.datagrams_to_send(trio.current_time())]
        assert bob.connections == 0
        for data in with_token:
            spoof(net, ("10.0.0.67", 666), data)
        await trio.sleep(0.1)
        assert bob.connections == 0, "the token is for another address"
        socket.send([(data, BOB) for data in with_token])
        await trio.sleep(0.1)
        assert bob.connections == 1, "the control: from its own address the token is good"
        await trio.sleep(60)
        socket.send([(data, BOB) for data in with_token])
        await trio.sleep(0.1)
        assert bob.connections == 0, "the token is too old"


async def test_every_client_may_be_asked_for_proof(autojump_clock):
    net = network(loss=0.05, jitter=0.005)
    async with (
        endpoint_on(net, BOB, limits=Limits(retry_above=0)) as bob,
        endpoint_on(net, ALICE) as alice,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(serve_echo, bob)
        for _ in range(10):
            ours = await alice.connect(BOB)
            assert await ask(ours, b"x" * 5000) == b"x" * 5000
            await ours.aclose()
        nursery.cancel_scope.cancel()


async def test_connections_from_one_address_are_bounded_and_others_are_not_touched(autojump_clock):
    net = network()
    limits = Limits(max_per_address=3)
    async with (
        endpoint_on(net, BOB, limits=limits) as bob,
        endpoint_on(net, ALICE) as alice,
        endpoint_on(net, MALLORY) as mallory,
    ):
        kept = []
        for _ in range(3):
            kept.append(await mallory.connect(BOB))
            await bob.accept()
        with pytest.raises(HandshakeFailed):
            await mallory.connect(BOB)
        await alice.connect(BOB)
        await kept[0].aclose()
        await trio.sleep(1)
        await mallory.connect(BOB)


async def test_connections_of_one_identity_are_bounded_and_others_are_not_touched(autojump_clock):
    """From however many addresses they come."""
    net = network()
    own = credentials("mallory")
    async with (
        endpoint_on(net, BOB, limits=Limits(max_per_identity=3)) as bob,
        endpoint_on(net, ALICE) as alice,
        AsyncExitStack() as stack,
    ):
        kept = []
        for number in range(5):
            address = (f"10.0.1.{number}", 666)
            opened = open_endpoint(
                *address,
                credentials=own,
                alpn=ALPN,
                verify_peer=name_of,
                socket=net.socket(*address),
                core=trio_quic_support.CORE,
            )
            mallory = await stack.enter_async_context(opened)
            if number < 3:
                kept.append(await mallory.connect(BOB))
                await bob.accept()
            else:
                with pytest.raises(PeerRejected, match="3 connections of this identity"):
                    await mallory.connect(BOB)
        await alice.connect(BOB)
        await kept[0].aclose()
        await trio.sleep(1)
        await mallory.connect(BOB)
    assert not bob._census._identities
    assert not bob._census._origins


@pytest.mark.parametrize("victim", [ALICE, BOB])
async def test_a_restarted_peer_is_noticed_with_the_first_datagram(autojump_clock, victim):
    """Both sides of a connection notice the other's restart: power fails, and it comes back as itself."""
    net = network()
    own = {ALICE: credentials("alice"), BOB: credentials("bob")}

    def opened(address):
        return open_endpoint(
            *address,
            credentials=own[address],
            alpn=ALPN,
            verify_peer=name_of,
            socket=net.socket(*address),
            core=trio_quic_support.CORE,
        )

    survivor = BOB if victim == ALICE else ALICE
    async with opened(survivor) as staying:
        async with opened(victim) as first:
            if victim == ALICE:
                await first.connect(BOB)
                connection = await staying.accept()
            else:
                connection = await staying.connect(BOB)
                await first.accept()
            await trio.sleep(1)
            net.cut(victim)
        net.mend(victim)
        async with opened(victim):
            start = trio.current_time()
            stream = await connection.open_stream()
            await stream.send_all(b"are you still there?")
            await connection.closed.wait()
            assert trio.current_time() - start < 0.1
            assert "restarted" in str(connection.close_error)


async def test_a_forged_reset_harms_nobody_and_answers_die_out(autojump_clock):
    net = network()
    async with connected(net) as (ours, theirs):
        await trio.sleep(1)
        before = net.delivered
        for size in (20, 21, 30, 43, 1200):
            for source in (ALICE, MALLORY):
                net.carry(b"\x40" + bytes(size - 1), source, BOB)
        await trio.sleep(1)
        assert net.delivered - before < 30
        assert await ask_echo(ours, theirs) == b"alive"


async def ask_echo(ours, theirs) -> bytes:
    stream, other = await stream_pair(ours, theirs)
    await stream.send_last(b"alive")
    return await other.receive_all(100)
