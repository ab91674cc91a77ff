"""Sessions over real pipes and terminals, with the test as the process at the other end."""

import os
import pty
import threading
import tty
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from machineplane import channels
from machineplane.channels import STDERR, STDIN, STDOUT, SessionRefused
from machineplane.runtime.errors import HelperLost
from machineplane.runtime.session import MAX_DRAIN, open_session
from machineplane.runtime.stdio import make_stdio


@asynccontextmanager
async def process(*wanted, seconds=10):
    """A session, the process's ends of its stdio, and the event of its end."""
    stdio, ended = make_stdio(frozenset(wanted)), trio.Event()
    ends = [os.dup(fd) for fd in stdio.given]
    stdio.let_go()

    async def wait(_):
        await ended.wait()
        return channels.exited(3)

    try:
        with trio.fail_after(seconds):
            async with open_session(stdio, wait) as session:
                yield session, ends, ended
    finally:
        for fd in ends:
            with suppress(OSError):
                os.close(fd)


async def all_frames(session):
    frames = []
    while not frames or frames[-1][0] != channels.RESULT:
        frames.append(await session.receive())
    return frames


async def test_all_output_comes_before_the_result_even_if_others_hold_the_pipe():
    async with process(STDOUT, STDERR) as (session, (_, out, err), ended):
        os.write(out, b"out")
        os.write(err, b"err")
        ended.set()  # and the test keeps `out` and `err` open, as a child of the process would
        frames = await all_frames(session)
    assert sorted(frames[:-1]) == [(STDOUT, b"out"), (STDERR, b"err")]
    assert frames[-1] == channels.exited(3)


async def test_a_full_pipe_is_drained_after_the_end():
    async with process(STDOUT) as (session, (_, out, _), ended):
        os.set_blocking(out, False)
        written = 0
        with suppress(BlockingIOError):
            while True:
                written += os.write(out, b"x" * 4096)
        ended.set()
        frames = await all_frames(session)
    assert sum(len(data) for channel, data in frames if channel == STDOUT) == written


async def test_somebody_who_goes_on_writing_does_not_hold_the_result():
    async with process(STDOUT) as (session, (_, out, _), ended):
        stop = threading.Event()

        def write():
            with suppress(OSError):
                while not stop.is_set():
                    os.write(out, b"x" * 4096)

        writer = threading.Thread(target=write)
        writer.start()
        ended.set()
        taken = sum(len(data) for channel, data in await all_frames(session) if channel == STDOUT)
        assert taken <= MAX_DRAIN + 2 * channels.MAX_PAYLOAD
        stop.set()
    writer.join(5)
    assert not writer.is_alive()


async def test_stdin_and_its_end():
    async with process(STDIN) as (session, (stdin, _, _), ended):
        await session.send(STDIN, b"hello")
        await session.send(*channels.END_OF_STDIN)
        await session.send(STDIN, b"too late")
        assert (os.read(stdin, 100), os.read(stdin, 100)) == (b"hello", b"")
        ended.set()
        assert await all_frames(session) == [channels.exited(3)]


async def test_stdin_that_nobody_has_goes_nowhere():
    async with process(STDIN) as (session, ends, _):
        os.close(ends[0])
        await session.send(STDIN, b"hello")
    async with process() as (session, _, _):
        await session.send(STDIN, b"hello")
        await session.send(*channels.END_OF_STDIN)


async def test_stdin_that_is_not_read_waits_and_then_ends_the_session(autojump_clock):
    autojump_clock.autojump_threshold = 0.05
    async with process(STDIN, seconds=1000) as (session, _, _):
        with pytest.raises(SessionRefused, match="has not read its stdin"):
            await session.send(STDIN, b"x" * 1_000_000)


async def test_a_lost_helper_is_the_result():
    stdio = make_stdio(frozenset({STDOUT}))
    stdio.let_go()

    async def wait(_):
        raise HelperLost("the shim is gone")

    async with open_session(stdio, wait) as session:
        ((_, payload),) = await all_frames(session)
    with pytest.raises(SessionRefused, match="the shim is gone"):
        channels.parse_result(payload)


async def test_a_terminal_with_its_size_and_its_end():
    master, slave = pty.openpty()
    tty.setraw(slave)
    stdio, ended = make_stdio(frozenset()), trio.Event()
    stdio.let_go()
    stdio.take_terminal(master)

    async def wait(_):
        await ended.wait()
        return channels.exited(0)

    with trio.fail_after(10):
        async with open_session(stdio, wait) as session:
            await session.send(*channels.resize(99, 33))
            assert os.get_terminal_size(slave) == (99, 33)
            await session.send(STDIN, b"in")
            assert os.read(slave, 10) == b"in"
            os.write(slave, b"out")
            os.close(slave)
            ended.set()
            assert await all_frames(session) == [(STDOUT, b"out"), channels.exited(0)]


async def test_no_descriptor_is_left():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        async with process(STDIN, STDOUT, STDERR):
            pass
    assert len(os.listdir("/proc/self/fd")) <= before
