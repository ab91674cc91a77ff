"""Peers that send a byte a second on as many streams as they may: honest ones are served in the same time.

Under the fake clock there is no processor time, so this looks at what the protocol does with them: how long an honest
call takes, and after how many passes of Trio's scheduler a request that has arrived is answered, while all slow bytes
arrive with that very request. What it costs in processor time is measured by ``benchmarks/slow.py``.
"""

import pytest
import trio
import trio_quic_support
from trio.testing import wait_all_tasks_blocked
from trio_quic_support import ALICE, BOB, ask, endpoint_on, network, serve_echo

from trio_quic.core import AioquicCore
from trio_quic.native import NativeCore

PEERS = 12
STREAMS = 64


class Passes(trio.abc.Instrument):
    """Counts the scheduler's passes."""

    def __init__(self):
        self.count = 0

    def before_io_wait(self, timeout):
        self.count += 1


async def drip(endpoint, ready):
    """A byte a second on each stream."""
    connection = await endpoint.connect(BOB)
    streams = [await connection.open_stream() for _ in range(STREAMS)]
    ready.append(connection)
    while True:
        await trio.sleep(1.0 - trio.current_time() % 1.0)  # all at once, on the second
        for stream in streams:
            await stream.send_all(b"x")


async def honest_calls(net, alice, passes) -> tuple[list[float], list[int], int]:
    """Seconds and passes of calls whose requests arrive on the second."""
    ours = await alice.connect(BOB)
    await ask(ours, b"warm")
    seconds, counts, begun, beside = [], [], [], []

    socket = net._sockets[BOB]
    receive = socket.receive

    async def receive_and_note():
        batch = await receive()
        if any(source == ALICE for _, source in batch):
            begun.append(passes.count)
            beside.append(len({source for _, source in batch}) - 1)
        return batch

    def watch(data, source, destination):
        if destination == ALICE and begun:
            counts.append(passes.count - begun[0])
            begun.clear()
        return data

    socket.receive = receive_and_note
    for _ in range(10):
        await trio.sleep(1.0 - trio.current_time() % 1.0)
        await wait_all_tasks_blocked()  # until the slow ones have sent: the request stands behind their bytes
        begun.clear()
        net.tap = watch
        start = trio.current_time()
        assert await ask(ours, b"honest") == b"honest"
        seconds.append(trio.current_time() - start)
        net.tap = None
    return seconds, counts, max(beside)


async def served(autojump_clock, slow: int) -> tuple[float, int]:
    """The longest honest call in seconds, and in passes, beside so many slow peers."""
    net, passes, ready = network(), Passes(), []
    async with endpoint_on(net, BOB) as bob, endpoint_on(net, ALICE) as alice, trio.open_nursery() as nursery:
        nursery.start_soon(serve_echo, bob)
        for number in range(slow):
            endpoint = await nursery.start(hold_endpoint, net, (f"10.4.{number}.1", 1))
            nursery.start_soon(drip, endpoint, ready)
        while len(ready) < slow:  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.1)
        await trio.sleep(3)
        trio.lowlevel.add_instrument(passes)
        try:
            seconds, counts, beside = await honest_calls(net, alice, passes)
        finally:
            trio.lowlevel.remove_instrument(passes)
        assert bob.connections == slow + 1
        assert all(len(connection._streams) == STREAMS for connection in ready)
        nursery.cancel_scope.cancel()
    assert len(counts) >= 10
    assert beside == slow, "the control: the bytes of all slow peers did come with a request"
    return max(seconds), max(counts)


async def hold_endpoint(net, address, task_status=trio.TASK_STATUS_IGNORED):
    async with endpoint_on(net, address) as endpoint:
        task_status.started(endpoint)
        await trio.sleep_forever()


@pytest.mark.parametrize("core", [AioquicCore, NativeCore], ids=["aioquic", "native"])
async def test_slow_streams_do_not_make_honest_peers_wait(autojump_clock, monkeypatch, core):
    monkeypatch.setattr(trio_quic_support, "CORE", core)
    seconds, passes = await served(autojump_clock, 0)
    beside_seconds, beside_passes = await served(autojump_clock, PEERS)
    assert beside_seconds <= 2 * seconds
    assert beside_passes <= 2 * passes
