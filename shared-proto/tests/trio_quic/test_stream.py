"""Streams behave as Trio's own, lose nothing, and hold the other side back when nobody reads."""

import pytest
import trio
from trio.testing import check_half_closeable_stream
from trio_quic_support import connected, network, read_all, stream_pair

from trio_quic import ConnectionLost, Limits, StreamReset


async def test_trios_own_check(autojump_clock):
    async with connected(network(), limits=Limits(send_buffer=4096, stream_window=4096)) as (ours, theirs):

        async def make():
            return await stream_pair(ours, theirs)

        async def make_clogged():
            pair = await stream_pair(ours, theirs)
            for stream in pair:
                with trio.move_on_after(5):
                    await stream.send_all(b"x" * 100_000)
            return pair

        await check_half_closeable_stream(make, make_clogged)


async def test_bytes_survive_a_bad_network(autojump_clock):
    net = network(loss=0.08, duplicate=0.05, jitter=0.01)
    sent = bytes(range(256)) * 4000
    async with connected(net) as (ours, theirs), trio.open_nursery() as nursery:
        mine, other = await stream_pair(ours, theirs)

        async def send():
            await mine.send_all(sent)
            await mine.send_eof()

        nursery.start_soon(send)
        assert await read_all(other) == sent
    assert net.lost > 20


async def test_a_sleeping_reader_holds_the_sender_back_and_loses_nothing(autojump_clock):
    limits = Limits(
        send_buffer=32 * 1024, stream_window=64 * 1024, connection_window=256 * 1024, max_streams=4
    )
    sent = bytes(range(256)) * 4096
    async with connected(network(), limits=limits) as (ours, theirs), trio.open_nursery() as nursery:
        mine, other = await stream_pair(ours, theirs)
        done = trio.Event()

        async def send():
            await mine.send_all(sent)
            await mine.send_eof()
            done.set()

        nursery.start_soon(send)
        await trio.sleep(60)
        assert not done.is_set()
        assert len(other._received) == limits.first_window - 1  # one byte of the window announced the stream
        assert ours._core.buffered(mine.id) <= limits.send_buffer
        begin = b""
        for enough in range(60_000, 300_001, 60_000):  # reads a little, and sleeps again
            while len(begin) < enough:
                begin += await other.receive_some(10_000)
            await trio.sleep(20)
            assert len(other._received) <= limits.stream_window
            assert other._core._quic._streams[other.id].max_stream_data_local <= len(begin) + 1 + 64 * 1024
        assert begin + await read_all(other) == sent
        assert done.is_set()


@pytest.mark.parametrize("read_before", [0, 300_000], ids=["never-read", "read-and-then-left"])
async def test_readers_asleep_keep_nothing_from_others_and_lose_nothing(autojump_clock, read_before):
    """As many streams as may be open, all but one left unread: they cost at most the connection's window, and the one that
    is read goes on.
    """
    limits = Limits(max_streams=24, connection_window=1024 * 1024)
    size = read_before + 400_000
    async with connected(network(), limits=limits) as (ours, theirs), trio.open_nursery() as nursery:
        pairs = [await stream_pair(ours, theirs) for _ in range(limits.max_streams)]
        for mine, _ in pairs:
            nursery.start_soon(mine.send_last, b"x" * size)
        counts = [0] * len(pairs)

        async def read(number: int, enough: int) -> None:
            while counts[number] < enough:
                counts[number] += len(await pairs[number][1].receive_some())

        async with trio.open_nursery() as readers:
            for number in range(len(pairs)):
                readers.start_soon(read, number, read_before)
        await trio.sleep(60)
        assert sum(len(other._received) for _, other in pairs) <= limits.connection_window
        with trio.fail_after(5):
            await read(0, size)
        assert await pairs[0][1].receive_some() == b""
        async with trio.open_nursery() as readers:
            for number in range(1, len(pairs)):
                readers.start_soon(read, number, size)
        assert counts == [size] * len(pairs)


async def test_windows_are_given_back_with_their_streams(autojump_clock):
    async with connected(network()) as (ours, theirs):
        spare = theirs._core._spare
        for _ in range(30):
            mine, other = await stream_pair(ours, theirs)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mine.send_last, b"x" * 300_000)
                assert len(await other.receive_all(300_000)) == 300_000
            assert theirs._core._spare < spare
            await other.aclose()
            await mine.aclose()
            await trio.sleep(1)
        assert theirs._core._spare == spare


async def test_unread_streams_that_are_closed_give_their_credit_back(autojump_clock):
    limits = Limits(stream_window=64 * 1024, connection_window=128 * 1024)
    async with connected(network(), limits=limits) as (ours, theirs):
        for _ in range(12):
            mine, other = await stream_pair(ours, theirs)
            with trio.move_on_after(1):
                await mine.send_all(b"x" * 60_000)
            await other.aclose()
            await mine.aclose()
        mine, other = await stream_pair(ours, theirs)
        await mine.send_all(b"y" * 50_000)
        await mine.aclose()
        assert await read_all(other) == b"y" * 50_000


async def test_reset_streams_give_their_credit_back(autojump_clock):
    limits = Limits(stream_window=64 * 1024, connection_window=128 * 1024)
    async with connected(network(), limits=limits) as (ours, theirs):
        for _ in range(12):
            mine, other = await stream_pair(ours, theirs)
            await mine.send_all(b"x" * 60_000)
            await trio.sleep(1)
            mine.reset(3)
            await trio.sleep(1)
            with pytest.raises(StreamReset) as caught:
                await other.receive_some()
            assert caught.value.code == 3
            await other.aclose()
        assert await ask_once(ours, theirs) == b"still here"


async def ask_once(ours, theirs) -> bytes:
    mine, other = await stream_pair(ours, theirs)
    await mine.send_all(b"still here")
    await mine.aclose()
    return await read_all(other)


async def test_half_close_leaves_the_other_direction_open(autojump_clock):
    async with connected(network()) as (ours, theirs):
        mine, other = await stream_pair(ours, theirs)
        await mine.send_eof()
        await mine.send_eof()
        assert await other.receive_some() == b""
        await other.send_all(b"answer")
        await other.aclose()
        assert await read_all(mine) == b"answer"
        with pytest.raises(trio.ClosedResourceError):
            await mine.send_all(b"more")


async def test_closing_tells_a_sender_to_stop(autojump_clock):
    async with connected(network()) as (ours, theirs):
        mine, other = await stream_pair(ours, theirs)
        await other.aclose()
        await trio.sleep(1)
        with pytest.raises(StreamReset):
            await mine.send_all(b"x")


async def test_reset_reaches_both_directions_with_its_code(autojump_clock):
    async with connected(network()) as (ours, theirs):
        mine, other = await stream_pair(ours, theirs)
        mine.reset(42)
        await trio.sleep(1)
        with pytest.raises(StreamReset) as reading:
            await other.receive_some()
        with pytest.raises(StreamReset) as writing:
            await other.send_all(b"x")
        assert (reading.value.code, writing.value.code) == (42, 42)
        with pytest.raises(ValueError, match="2\\*\\*62"):
            other.reset(1 << 62)


async def test_a_cancelled_send_is_not_taken_for_the_whole(autojump_clock):
    limits = Limits(send_buffer=4096, stream_window=4096)
    async with connected(network(), limits=limits) as (ours, theirs):
        mine, other = await stream_pair(ours, theirs)
        with trio.move_on_after(1):
            await mine.send_all(b"x" * 50_000)
        await mine.aclose()
        await trio.sleep(1)
        with pytest.raises(StreamReset):
            await read_all(other)


async def test_what_arrived_can_be_read_after_the_connections_end(autojump_clock):
    async with connected(network()) as (ours, theirs):
        finished, other_finished = await stream_pair(ours, theirs)
        open_end, other_open_end = await stream_pair(ours, theirs)
        await finished.send_all(b"all of it")
        await finished.aclose()
        await open_end.send_all(b"a part")
        await trio.sleep(1)
        await ours.aclose()
        await theirs.closed.wait()
        assert await read_all(other_finished) == b"all of it"
        assert await other_open_end.receive_some() == b"a part"
        with pytest.raises(trio.BrokenResourceError):
            await other_open_end.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await open_end.receive_some()


async def test_a_waiting_sender_learns_of_a_lost_connection(autojump_clock):
    net = network()
    async with connected(net) as (ours, theirs):
        mine, _ = await stream_pair(ours, theirs)
        net.cut(("10.0.0.2", 4433))
        with pytest.raises(ConnectionLost):
            await mine.send_all(b"x" * 10_000_000)
