"""Caps, and peers that break the mesh's protocol."""

from __future__ import annotations

import random

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mesh_support import Intruder, intruders_endpoint, record_of
from structlog.testing import capture_logs
from trio.testing import MockClock

from magik_mesh import (
    Accept,
    Call,
    Judgement,
    MeshLimits,
    Node,
    PeerUnreachable,
    RpcFailed,
    SystemClock,
    codes,
)
from magik_mesh.rpc_client import start_call
from magik_mesh.testing import MemoryFabric, config_of, identity_of, memory_fabric, peers_of, until
from magik_mesh.tls import admission, make_credentials
from magik_proto.rpc import Request, encode_frame
from trio_quic import ConnectionClosed, PeerRejected

METHOD = "/test/echo/1.0.0"


async def test_connections_stay_bounded_and_messages_reach_all_the_same(autojump_clock: MockClock) -> None:
    got: list[bytes] = []

    async def judge(_: object, payload: bytes) -> Judgement:
        got.append(payload)
        return Accept(identity_of(1).peer_id)

    async def echo(call: Call) -> object:
        return call.body

    async with memory_fabric(9, max_connections=4) as fabric:
        for node in fabric.nodes:
            node.subscribe("topic", judge)
            node.handle(METHOD, echo)
        for _ in range(60):
            await trio.sleep(0.5)
            assert all(len(peers_of(node)) <= 4 for node in fabric.nodes)
        await fabric.nodes[4].publish("topic", b"to all")
        await until(lambda: len(got) == 8, 20.0)
        caller = fabric.nodes[8]
        for node in fabric.nodes[:8]:
            assert await caller.call(node.id, METHOD, "hi") == "hi"
        assert len(peers_of(caller)) <= 4


@pytest.mark.parametrize("calls", [2, 4])
async def test_with_a_call_under_way_on_every_connection_a_call_more_is_refused(
    autojump_clock: MockClock, calls: int
) -> None:
    """The dials begin together, when there is room for each of them."""
    results: list[str] = []

    async def slow(_: Call) -> str:
        await trio.sleep(5.0)
        return "ok"

    async def one(peer: Node) -> None:
        try:
            results.append(await caller.call(peer.id, METHOD))
        except PeerUnreachable as error:
            results.append(error.reason)

    async with memory_fabric(calls + 1) as fabric, fabric.open(config_of(9, max_connections=2)) as caller:
        nodes = [node for node in fabric.nodes if node is not caller]
        for node in nodes:
            node.handle(METHOD, slow)
        known = caller._presence.directory
        await until(lambda: all(known.addresses(node.id) for node in nodes), 60.0)
        for peer in peers_of(caller):
            caller._connections.let_go(caller._links.get(peer))
        async with trio.open_nursery() as nursery:
            for node in nodes[1:]:
                nursery.start_soon(one, node)
            for _ in range(100):
                await trio.sleep(0.05)
                assert len(peers_of(caller)) <= 2
        refused = [result for result in results if result != "ok"]
        assert refused == ["all 2 connections are in use"] * (calls - 2)
        for node in nodes[1:]:
            assert await caller.call(node.id, METHOD) == "ok", "the refused are not forgotten"


async def test_busy(autojump_clock: MockClock) -> None:
    limits = MeshLimits(calls_per_peer=2)
    answers: list[str] = []

    async def slow(_: Call) -> str:
        await trio.sleep(1.0)
        return "ok"

    async def one(caller: Node, peer: Node) -> None:
        try:
            answers.append(await caller.call(peer.id, METHOD))
        except RpcFailed as error:
            answers.append(error.code)

    async with memory_fabric(2, limits=limits) as fabric:
        a, b = fabric.nodes
        b.handle(METHOD, slow)
        await fabric.connected()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(one, a, b)
        assert sorted(answers) == ["busy"] * 3 + ["ok"] * 2
        assert b.stats.calls_busy == 3


@pytest.mark.parametrize("greeted", [False, True])
async def test_garbage_ends_the_connection_or_stream_and_nothing_else(
    autojump_clock: MockClock, greeted: bool
) -> None:
    fabric = MemoryFabric()
    noise = random.Random(3)
    with capture_logs() as logs:
        async with (
            fabric.open(config_of(1)) as node,
            fabric.open(config_of(2)) as honest,
            intruders_endpoint(fabric) as endpoint,
        ):
            await fabric.connected()
            for _ in range(5):
                intruder = Intruder(await endpoint.connect(node.address))
                if greeted:
                    await intruder.hello(node, record_of(8, fabric))
                await intruder.send(noise.randbytes(200))
                await trio.sleep(0.2)
                await intruder.connection.aclose()
                await trio.sleep(0.2)
            assert node.stats.frames_malformed == 5
            assert honest.id in peers_of(node)
    assert not [entry for entry in logs if entry["log_level"] == "error"]


async def test_no_call_is_handled_before_the_hello(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    handled: list[Call] = []

    async def handler(call: Call) -> None:
        handled.append(call)

    async with (
        fabric.open(config_of(1)) as node,
        intruders_endpoint(fabric) as endpoint,
    ):
        node.handle(METHOD, handler)
        intruder = Intruder(await endpoint.connect(node.address))
        await intruder.send(encode_frame(Request(method=METHOD, deadline_ms=1000)))
        await intruder.connection.closed.wait()
        assert isinstance(intruder.connection.close_error, ConnectionClosed)
        assert intruder.connection.close_error.code == codes.CLOSE_MISBEHAVED
        assert (handled, node.stats.calls_served) == ([], 0)


async def test_a_bad_gossip_frame_ends_that_stream_only(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    async with (
        fabric.open(config_of(1)) as node,
        intruders_endpoint(fabric) as endpoint,
    ):
        intruder = Intruder(await endpoint.connect(node.address))
        await intruder.hello(node, record_of(8, fabric))
        stream = await intruder.connection.open_stream()
        await start_call(stream, codes.GOSSIP)
        await stream.send_all(encode_frame({"graft": 3}))
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        assert node.stats.gossip_rejected == 1


def test_the_membership_extension_is_in_the_certificate_and_the_spiffe_name_too() -> None:
    certificate = make_credentials(config_of(1, member=b"\x01\x02")).certificate
    names = {extension.oid.dotted_string: extension.value for extension in certificate.extensions}
    assert names["2.25.124176656263431800701766534344656565355"].value == b"\x01\x02"  # type: ignore[attr-defined]
    assert f"/{identity_of(1).peer_id}" in str(names["2.5.29.17"])
    assert isinstance(make_credentials(config_of(1)).private_key, Ed25519PrivateKey)


def test_ones_own_certificate_is_refused_whoever_shows_it() -> None:
    verify_peer = admission(config_of(1), SystemClock())
    assert verify_peer(make_credentials(config_of(2)).certificate).peer == identity_of(2).peer_id
    with pytest.raises(PeerRejected, match="same identity"):
        verify_peer(make_credentials(config_of(1)).certificate)


async def test_who_was_first_with_a_message_is_marked_as_useful(autojump_clock: MockClock) -> None:
    """It is the last to make room, of those that nobody chose (`magik_mesh.links`)."""
    got: list[bytes] = []

    async def judge(_: object, payload: bytes) -> Judgement:
        got.append(payload)
        return Accept(identity_of(2).peer_id)

    with trio.fail_after(60):
        async with memory_fabric(2) as fabric:
            await fabric.connected()
            a, b = fabric.nodes
            a.subscribe("t", judge)
            await trio.sleep(1.0)
            link = a._links.get(b.id)
            assert link is not None
            link.outbox.useful = False  # presence has come before
            await b.publish("t", b"news")
            await until(lambda: got == [b"news"])
            await trio.sleep(0.1)
            assert link.useful
