"""Methods that are plain functions: answered in the pass that has brought the request, with all that holds for handlers."""

from __future__ import annotations

import pytest
import trio
from mesh_support import Intruder, intruders_endpoint, record_of
from structlog.testing import capture_logs
from trio.testing import MockClock

from magik_mesh import Call, CallRefused, RpcFailed, codes
from magik_mesh.rpc_server import MAX_AT_ONCE
from magik_mesh.testing import MemoryFabric, config_of, memory_fabric
from magik_proto.rpc import Request, encode_frame
from trio_quic import StreamReset

METHOD = "/test/plain/1.0.0"


@pytest.mark.parametrize(
    ("asked", "at_once"), [(200, True), (MAX_AT_ONCE // 2, False), (2 * MAX_AT_ONCE, False), (2 << 20, False)]
)
async def test_requests_and_answers_of_any_length(
    autojump_clock: MockClock, asked: int, at_once: bool
) -> None:
    """One that takes several datagrams, or has no room in the send buffer, is a task's."""
    tasks: list[str] = []

    def echo(call: Call) -> object:
        tasks.append(trio.lowlevel.current_task().name)
        assert 0 < call.remaining <= 30
        return [call.body, str(call.peer)]

    async with memory_fabric(2) as fabric:
        await fabric.connected()
        asker, answerer = fabric.nodes
        answerer.answer(METHOD, echo)
        body = bytes(asked)
        assert await asker.call(answerer.id, METHOD, body) == [body, str(asker.id)]
        assert answerer.stats.calls_served >= 1
        assert ("Endpoint.receive" in tasks[0]) is at_once


async def test_a_long_answer_to_a_short_question_arrives_whole(autojump_clock: MockClock) -> None:
    async with memory_fabric(2) as fabric:
        await fabric.connected()
        asker, answerer = fabric.nodes
        answerer.answer(METHOD, lambda call: bytes(call.body))
        assert await asker.call(answerer.id, METHOD, 4_000_000) == bytes(4_000_000)


async def test_many_at_the_same_time_each_get_their_own(autojump_clock: MockClock) -> None:
    async with memory_fabric(2) as fabric:
        await fabric.connected()
        asker, answerer = fabric.nodes
        answerer.answer(METHOD, lambda call: call.body)
        got: dict[int, object] = {}

        async def ask(number: int) -> None:
            got[number] = await asker.call(answerer.id, METHOD, number)

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, number)
        assert got == {number: number for number in range(200)}


async def test_what_a_function_raises_is_told_or_logged_as_a_handlers(autojump_clock: MockClock) -> None:
    def choose(call: Call) -> object:
        if call.body == "refuse":
            raise CallRefused("not-today", "come again")
        if call.body == "cannot":
            return object()
        raise ZeroDivisionError

    async with memory_fabric(2) as fabric:
        await fabric.connected()
        asker, answerer = fabric.nodes
        answerer.answer(METHOD, choose)
        with capture_logs() as logs:
            for body, code in (
                ("refuse", "not-today"),
                ("fail", codes.INTERNAL),
                ("cannot", codes.INTERNAL),
            ):
                with pytest.raises(RpcFailed) as failure:
                    await asker.call(answerer.id, METHOD, body)
                assert failure.value.code == code
        assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["handler failed"] * 2
        assert answerer.stats.calls_failed == 2


async def test_a_malformed_call_that_is_there_at_once_resets_its_stream(autojump_clock: MockClock) -> None:
    fabric = MemoryFabric()
    whole = encode_frame(Request(method=METHOD, deadline_ms=1000))
    async with fabric.open(config_of(1)) as node, intruders_endpoint(fabric) as endpoint:
        node.answer(METHOD, lambda call: call.body)
        intruder = Intruder(await endpoint.connect(node.address))
        await intruder.hello(node, record_of(8, fabric))
        for data in (b"\0\0\0\1\xff", whole[:-1], b"\xff" * 20):
            stream = await intruder.connection.open_stream()
            await stream.send_last(data)
            with pytest.raises(StreamReset) as reset:
                await stream.receive_some()
            assert reset.value.code == codes.RESET_MALFORMED
        assert node.stats.frames_malformed == 3
        stream = await intruder.connection.open_stream()
        await stream.send_last(whole)
        assert len(await stream.receive_all(1000)) > 4, "and the connection goes on"


async def test_a_method_has_one_handler(autojump_clock: MockClock) -> None:
    async with memory_fabric(1) as fabric:
        fabric.nodes[0].answer(METHOD, lambda call: call.body)
        with pytest.raises(ValueError, match="has a handler already"):
            fabric.nodes[0].answer(METHOD, lambda call: call.body)
