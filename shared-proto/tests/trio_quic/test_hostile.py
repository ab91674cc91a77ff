"""Strangers: addresses that are not theirs, floods, and crowds from one place."""

from contextlib import AsyncExitStack

import pytest
import trio
import trio_quic_support
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
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

from trio_quic import HandshakeFailed, Limits, PeerRejected, open_endpoint

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
    async with endpoint_on(net, BOB) as bob:
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
    async with endpoint_on(net, BOB):
        for data in first_flight(trio.current_time()):
            sent["in"] += len(data)
            spoof(net, MALLORY, data)
        await trio.sleep(5)
    assert sent["out"] <= 3 * sent["in"]


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
