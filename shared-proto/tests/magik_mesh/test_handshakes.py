"""A storm of handshakes that must not succeed: empty, foreign, expired, revoked and mismatched certificates.

None of them gets an application byte handled, and when it is over nothing is left of it. `MAGIK_HANDSHAKES` says how
many (`nox -s fuzz -- handshakes`: 10,000); the unit tests make do with a few hundred.
"""

from __future__ import annotations

import gc
import json
import logging
import os
from time import process_time
from typing import Any

import attrs
import pytest
import trio
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated
from mesh_support import HOUR, METHOD, ROOT, STRANGERS_ROOT, closed, member_of
from structlog.testing import capture_logs
from trio.testing import MockClock

from magik_mesh import Call, Node
from magik_mesh.rpc_client import ask
from magik_mesh.testing import EPOCH_MS, MemoryFabric, config_of, identity_of, peers_of
from magik_mesh.tls import make_credentials
from magik_proto.membership import MembershipPolicy
from trio_quic import AioquicCore, MakeCore, PeerRejected, open_endpoint
from trio_quic.native import ALPN_SUFFIX, NativeCore

HANDSHAKES = int(os.environ.get("MAGIK_HANDSHAKES", "250"))
AT_ONCE = 10
REVOKED = 9

KINDS = {
    "foreign": config_of(3, policy=MembershipPolicy(None), member=member_of(3, STRANGERS_ROOT)),
    "expired": closed(4, member_of(4, life_ms=HOUR, invited_ms=EPOCH_MS - 2 * HOUR)),
    "revoked": closed(REVOKED, member_of(REVOKED)),
    "mismatched": closed(5, member_of(6)),
}
RULES = {
    "foreign": "membership.other-fabric",
    "expired": "membership.expired",
    "revoked": "membership.revoked",
    "mismatched": "membership.other-identity",
}


class Storm:
    """Who storms one node, and what they were told."""

    def __init__(self, fabric: MemoryFabric, node: Node, core: MakeCore) -> None:
        self.fabric, self.node, self.core = fabric, node, core
        self.told: dict[str, list[str]] = {}
        self.reached = 0
        self._credentials = {kind: make_credentials(config) for kind, config in KINDS.items()}

    async def refused(self, kind: str, number: int) -> None:
        """One handshake with a certificate of this kind, and a call for whoever would be let in."""
        address = (f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 99)
        if kind == "empty":
            self.told.setdefault(kind, []).append(await self._empty(address))
            return
        async with open_endpoint(
            *address,
            credentials=self._credentials[kind],
            alpn="magik-machine/1",
            verify_peer=lambda _: None,
            socket=self.fabric.network.socket(*address),
            core=self.core,
        ) as endpoint:
            try:
                connection = await endpoint.connect(self.node.address)
            except PeerRejected as error:
                self.told.setdefault(kind, []).append(error.reason)
                return
            self.reached += 1
            await ask(await connection.open_stream(), METHOD, b"let me in", 1000)

    async def _empty(self, address: tuple[str, int]) -> str:
        """A client that shows no certificate, and calls as soon as it can."""
        alpn = "magik-machine/1" + (ALPN_SUFFIX if self.core is NativeCore else "")
        quic = QuicConnection(
            configuration=QuicConfiguration(alpn_protocols=[alpn], is_client=True, verify_mode=0)
        )
        socket = self.fabric.network.socket(*address)
        quic.connect(self.node.address, trio.current_time())
        said = False
        try:
            with trio.fail_after(20):
                while True:
                    if quic._handshake_complete and not said:
                        said = True
                        quic.send_stream_data(0, b"let me in", end_stream=True)
                    socket.send(quic.datagrams_to_send(trio.current_time()))
                    with trio.move_on_at(quic.get_timer() or float("inf")):
                        for data, source in await socket.receive():
                            quic.receive_datagram(data, source, trio.current_time())
                    quic.handle_timer(trio.current_time() + 1e-6)
                    while (event := quic.next_event()) is not None:
                        if isinstance(event, ConnectionTerminated):
                            return event.reason_phrase
        finally:
            socket.close()


async def rage(storm: Storm, begin: int, end: int) -> None:
    kinds = ["empty", *KINDS]
    limit = trio.CapacityLimiter(AT_ONCE)

    async def one(number: int) -> None:
        async with limit:
            await storm.refused(kinds[number % len(kinds)], (1 << 16) + number)

    async with trio.open_nursery() as nursery:
        for number in range(begin, end):
            nursery.start_soon(one, number)


def tables(node: Node) -> dict[str, int]:
    """The sizes of everything that a stranger might leave something in."""
    endpoint: Any = node._endpoint
    sizes = {
        name: len(getattr(endpoint, name))
        for name in (
            "_routes",
            "_cids",
            "_unaccepted",
            "_accepted",
            "_guests",
            "_tokens",
            "_dirty",
        )
    }
    sizes["_routes"] -= sum(map(len, endpoint._cids.values()))
    sizes["census"] = len(endpoint._census._origins) + len(endpoint._census._identities)
    sizes["peers"] = len(node.peers())
    sizes["tasks"] = trio.lowlevel.current_statistics().tasks_living
    return sizes


def admissions(node: Node) -> list[object]:
    """The connections, from now on, that the node takes in: whose streams it reads."""
    admitted: list[object] = []
    endpoint: Any = node._endpoint
    on_ready = endpoint.on_ready

    def note(connection: object) -> None:
        admitted.append(connection)
        on_ready(connection)

    endpoint.on_ready = note
    return admitted


async def settled(node: Node) -> tuple[dict[str, int], int]:
    """The tables, and the number of objects in this process, when the dust has settled."""
    await trio.sleep(30.0)
    gc.collect()
    sizes, objects = tables(node), len(gc.get_objects())
    for _ in range(20):  # the nodes' own traffic comes and goes
        await trio.sleep(0.5)
        sizes = {name: min(size, sizes[name]) for name, size in tables(node).items()}
    return sizes, objects


@pytest.mark.parametrize("core", [AioquicCore, NativeCore], ids=["aioquic", "native"])
async def test_a_storm_of_handshakes(
    autojump_clock: MockClock, core: MakeCore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "quic")  # what aioquic tells of every handshake, pytest would keep
    fabric = MemoryFabric()
    handled: list[Call] = []

    async def handler(call: Call) -> bytes:
        handled.append(call)
        return b"hello"

    config = attrs.evolve(closed(1, member_of(1)), core=core)
    honest = attrs.evolve(closed(2, member_of(2)), core=core)
    config.policy.revoke(ROOT.revoke(1, EPOCH_MS, peers=(identity_of(REVOKED).peer_id,)))
    with capture_logs() as logs:
        async with fabric.open(config) as node, fabric.open(honest) as friend:
            node.handle(METHOD, handler)
            await fabric.connected()
            admitted, endpoint = admissions(node), node._endpoint
            storm = Storm(fabric, node, core)
            await rage(storm, 0, HANDSHAKES // 4)  # what caches there are fill
            before, objects = await settled(node)
            start = process_time()
            await rage(storm, HANDSHAKES // 4, HANDSHAKES)
            seconds = process_time() - start
            logs.clear()
            after, objects_after = await settled(node)
            assert (storm.reached, len(handled), len(admitted)) == (0, 0, 0)
            assert sum(len(said) for said in storm.told.values()) == HANDSHAKES
            for kind, rule in RULES.items():
                assert all(rule in reason for reason in storm.told[kind]), storm.told[kind][0]
            assert all(
                "no certificate" in reason or "before the proof" in reason for reason in storm.told["empty"]
            )
            # The nodes keep a few workers more or less for each other's calls.
            assert after.pop("tasks") <= before.pop("tasks") + 8
            assert after == before
            assert len(endpoint._farewells) <= 256
            # A farewell for each of the last 256; each handshake that stayed would be hundreds.
            assert objects_after - objects < 2000
            assert peers_of(node) == [friend.id]
            assert await friend.call(node.id, METHOD) == b"hello"
    print(
        json.dumps(
            {
                "name": "handshakes",
                "core": core.__name__,
                "handshakes": HANDSHAKES,
                "cpu_s": round(seconds, 1),
            }
        )
    )
