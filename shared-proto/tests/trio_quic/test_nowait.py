"""What goes without a checkpoint does the same as what has one, and says WouldBlock where that would wait."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked
from trio_quic_support import connected, network, read_all, stream_pair

from trio_quic import Limits, StreamReset


async def test_a_whole_exchange_without_waiting_but_for_the_answer(autojump_clock):
    async with connected(network()) as (ours, theirs):
        mine = ours.open_stream_nowait()
        mine.send_last_nowait(b"question")
        with pytest.raises(trio.WouldBlock):
            theirs.accept_stream_nowait()
        other = await theirs.accept_stream()
        assert other.receive_nowait() == b"question"
        assert other.receive_nowait() == b""
        other.send_last_nowait(b"answer")
        other.close_now()
        with pytest.raises(trio.WouldBlock):
            mine.receive_nowait()
        assert await mine.receive_all(100) == b"answer"
        mine.close_now()


async def test_at_the_limit_of_streams_and_of_the_send_buffer_it_would_block(autojump_clock):
    limits = Limits(max_streams=2, send_buffer=4096)
    async with connected(network(), limits=limits) as (ours, theirs):
        mine, other = await stream_pair(ours, theirs)
        with pytest.raises(trio.WouldBlock):
            mine.send_last_nowait(bytes(5000))
        mine.send_last_nowait(b"x" * 4000)  # nothing had been sent
        assert await read_all(other) == b"x" * 4000
        ours.open_stream_nowait()
        with pytest.raises(trio.WouldBlock):
            ours.open_stream_nowait()


async def test_a_second_reader_or_an_ended_stream_is_an_error_as_ever(autojump_clock):
    async with connected(network()) as (ours, theirs), trio.open_nursery() as nursery:
        mine, other = await stream_pair(ours, theirs)
        nursery.start_soon(other.receive_some)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            other.receive_nowait()
        mine.send_last_nowait(b"end")
        with pytest.raises(trio.ClosedResourceError):
            mine.send_last_nowait(b"more")
        mine.close_now()
        with pytest.raises(trio.ClosedResourceError):
            mine.receive_nowait()


async def test_streams_that_come_together_wake_one_acceptor_which_calls_the_next(autojump_clock):
    """A task that accepts in a row leaves the others asleep; nobody sleeps while there is something to accept."""
    async with connected(network()) as (ours, theirs), trio.open_nursery() as nursery:
        accepted: list[int] = []

        async def accept(number: int) -> None:
            await theirs.accept_stream()
            accepted.append(number)

        async def greedy() -> None:
            await theirs.accept_stream()
            for _ in range(3):
                theirs.accept_stream_nowait()
            accepted.append(100)

        nursery.start_soon(greedy)
        await wait_all_tasks_blocked()
        for number in range(3):
            nursery.start_soon(accept, number)
        await wait_all_tasks_blocked()
        for _ in range(4):
            ours.open_stream_nowait().send_last_nowait(b"x")
        await trio.sleep(1)
        assert accepted == [100]
        for _ in range(3):
            ours.open_stream_nowait().send_last_nowait(b"x")
        await trio.sleep(1)
        assert sorted(accepted) == [0, 1, 2, 100]


async def test_a_called_acceptor_that_is_cancelled_leaves_the_stream_to_others(autojump_clock):
    async with connected(network()) as (ours, theirs):
        for _ in range(2):
            with trio.move_on_after(0.5):
                await theirs.accept_stream()
        ours.open_stream_nowait().send_last_nowait(b"x")
        assert await (await theirs.accept_stream()).receive_some() == b"x"


@pytest.mark.parametrize("how", ["reset", "stop", "close"])
async def test_who_watches_a_stream_hears_at_once_that_the_peer_gave_it_up(autojump_clock, how):
    async with connected(network()) as (ours, theirs):
        mine, other = await stream_pair(ours, theirs)
        _, late = await stream_pair(ours, theirs)
        calls: list[str] = []
        other.watch(lambda: calls.append("broken"))
        if how == "close":
            await ours.aclose()
        elif how == "reset":
            mine.reset(7)
        else:
            await mine.send_eof()
            await trio.sleep(1)
            await mine.aclose()  # all was sent and acknowledged: only STOP_SENDING is left to say
        await trio.sleep(1)
        assert "broken" in calls
        if how == "close":
            late.watch(lambda: calls.append("late"))
            assert calls[-1] == "late"


async def test_nobody_hears_of_a_stream_that_was_closed_here_or_is_watched_no_more(autojump_clock):
    async with connected(network()) as (ours, theirs):
        calls: list[str] = []
        for unwatch in (True, False):
            mine, other = await stream_pair(ours, theirs)
            other.watch(lambda: calls.append("broken"))
            if unwatch:
                other.watch(None)
            else:
                other.close_now()
            mine.reset(7)
            await trio.sleep(1)
            if unwatch:
                with pytest.raises(StreamReset):
                    other.receive_nowait()
        assert calls == []
