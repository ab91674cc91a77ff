"""Questions to replicas that let us wait, by a clock of the test's and a node that answers as it is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
from traffic_support import identity_of
from trio.testing import MockClock

from magik_mesh import PeerInfo, RpcTimeout
from magik_proto.identity import PeerId
from workplane.lifesigns import ANSWER_S, PING, LifeSigns, Witness

OWN, ONE, TWO, THREE = (identity_of(seed).peer_id for seed in (1, 2, 3, 4))


@attrs.define
class FakeNode:
    """`delay`: how long a peer takes for an answer; `says`: what it answers."""

    delay: dict[PeerId, float] = attrs.field(factory=dict)
    says: dict[PeerId, dict[str, Any]] = attrs.field(factory=dict)
    asked: list[tuple[PeerId, Any]] = attrs.field(factory=list)
    id: PeerId = OWN

    async def call(self, peer: PeerId, method: str, body: Any = None, *, timeout: float = 30.0) -> Any:
        assert method == PING
        self.asked.append((peer, body))
        delay = self.delay.get(peer, 0.0)
        await trio.sleep(min(delay, timeout))
        if delay >= timeout:
            raise RpcTimeout(peer, method, timeout)
        return self.says.get(peer, {}) if body else {}

    def peers(self) -> tuple[PeerInfo, ...]:
        return tuple(PeerInfo(peer, None, frozenset(), True, 0) for peer in (ONE, TWO, THREE))


class Silent:
    """A stream on which nothing comes, save when the test says so."""

    def __init__(self) -> None:
        self.send, self.receive = trio.open_memory_channel[bytes](9)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return await self.receive.receive()


async def torn_down_after(
    node: FakeNode,
    peers: tuple[PeerId, ...] = (ONE,),
    *,
    seconds: float = 60.0,
    later: Callable[[Silent], Any] | None = None,
) -> list[float]:
    """After how long what is open with `peers`, to which something was sent, is torn down."""
    found, dead = [], []

    async def one(peer: PeerId, signs: LifeSigns) -> None:
        stream, began = Silent(), trio.current_time()
        with trio.CancelScope() as scope, signs.open(peer, scope, stream) as heard:
            await heard.send_all(b"?")
            if later is not None:
                await trio.sleep(1.0)
                later(stream)
            while True:
                await heard.receive_some()
        if scope.cancelled_caught:
            found.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        signs = LifeSigns(node, dead.append, nursery)
        nursery.start_soon(signs.watch)
        for peer in peers:
            nursery.start_soon(one, peer, signs)
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()
    assert len(dead) == len(found) == signs.torn_down
    return found


async def test_a_silent_replica_is_torn_down_within_two_and_a_half_seconds(autojump_clock: MockClock) -> None:
    node = FakeNode(delay={ONE: 1e9}, says={TWO: {"heard": False}, THREE: {"heard": False}})
    (after,) = await torn_down_after(node)
    assert after <= 2.5
    assert {peer for peer, body in node.asked if body == {"of": ONE.raw}} == {TWO, THREE}


async def test_an_answer_that_comes_late_counts(autojump_clock: MockClock) -> None:
    assert await torn_down_after(FakeNode(delay={ONE: 1.4})) == []


async def test_whom_another_has_heard_lives(autojump_clock: MockClock) -> None:
    """Only our way to it is bad."""
    assert await torn_down_after(FakeNode(delay={ONE: 1e9}, says={TWO: {"heard": True}}), seconds=5.0) == []


async def test_any_byte_is_a_sign_of_life(autojump_clock: MockClock) -> None:
    node = FakeNode(delay={ONE: 1e9}, says={TWO: {"heard": False}, THREE: {"heard": False}})
    assert await torn_down_after(node, later=lambda stream: stream.send.send_nowait(b"!")) == []


async def test_where_all_are_slow_all_get_more_time(autojump_clock: MockClock) -> None:
    """In an overload they answer in the end, each question after more time than a lone silent one would be given."""
    slow = FakeNode(delay={ONE: 2.5, TWO: 2.5, THREE: 2.5})
    assert await torn_down_after(slow, (ONE, TWO, THREE)) == []


async def test_where_all_are_dead_it_is_known_before_a_question_ends(autojump_clock: MockClock) -> None:
    gone = FakeNode(delay={ONE: 1e9, TWO: 1e9, THREE: 1e9})
    found = await torn_down_after(gone, (ONE, TWO, THREE))
    assert len(found) == 3 and min(found) > 2.0 and max(found) < ANSWER_S


@attrs.define
class Asked:
    body: Any
    remaining: float = 5.0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (None, {}),
        ({"of": ONE.raw}, {"heard": True}),
        ({"of": TWO.raw}, {"heard": False}),
        ({"of": OWN.raw}, {}),  # not one that it is connected with
        ({"of": 7}, {}),
        ([], {}),
    ],
)
async def test_what_is_said_of_a_third(autojump_clock: MockClock, body: Any, said: Any) -> None:
    call: Any = Asked(body)
    assert await Witness(FakeNode(delay={TWO: 1e9})).on_ping(call) == said
