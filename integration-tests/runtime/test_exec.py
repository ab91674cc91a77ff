"""Programs put into running containers, on each engine that takes any: streams, terminals, codes, and their end."""

import hashlib
from pathlib import Path

import pytest
import trio

from machineplane.channels import END_OF_STDIN, RESIZE, STDERR, STDIN, STDOUT, exited
from machineplane.runtime import ExecRequest

pytestmark = pytest.mark.root


@pytest.fixture
async def running(bench, engine, pod):
    """A runtime with a container that only sleeps, and the pod's uid."""
    async with bench.open() as runtime:
        status = await runtime.run_pod(pod("while :; do sleep 1; done"))
        assert status.containers[0].message == ""
        yield runtime, status.uid
        await runtime.stop_pod(status.uid, 0)


def shell(text, **more):
    return ExecRequest(command=("sh", "-c", text), **more)


async def take(session):
    """All that comes: by channel, and the result's frame."""
    found = {STDOUT: b"", STDERR: b""}
    with trio.fail_after(30):
        while (frame := await session.receive())[0] in found:
            found[frame[0]] += frame[1]
    return found[STDOUT], found[STDERR], frame


async def test_streams_are_apart_and_the_code_is_the_programs(running):
    runtime, uid = running
    async with runtime.execute(uid, "main", shell("echo out; echo err >&2; exit 9")) as session:
        assert await take(session) == (b"out\n", b"err\n", exited(9))


async def test_much_goes_in_and_comes_out_whole(running):
    """A mebibyte each way: more than anything between the two ends holds."""
    runtime, uid = running
    sent = bytes(range(256)) * 4096

    async def send(session):
        for start in range(0, len(sent), 16384):
            await session.send(STDIN, sent[start : start + 16384])
        await session.send(*END_OF_STDIN)

    cat = ExecRequest(command=("cat",), stdin=True)
    async with runtime.execute(uid, "main", cat) as session, trio.open_nursery() as nursery:
        nursery.start_soon(send, session)
        out, err, end = await take(session)
    assert (hashlib.sha256(out).digest(), err, end) == (hashlib.sha256(sent).digest(), b"", exited(0))


async def test_a_terminal_has_a_size_and_follows_it(running):
    runtime, uid = running
    text = "stty size; trap 'stty size; exit 3' WINCH; test -t 0 && echo ready; while :; do sleep 0.05; done"
    async with runtime.execute(uid, "main", shell(text, tty=True, stdin=True)) as session:
        seen = b""
        with trio.fail_after(30):
            while b"ready" not in seen:
                seen += (await session.receive())[1]
        await session.send(RESIZE, (120).to_bytes(2) + (40).to_bytes(2))
        out, _, end = await take(session)
        assert out.endswith(b"40 120\r\n") and end == exited(3)


async def test_what_is_typed_at_a_terminal_is_a_signal_there(running):
    runtime, uid = running
    text = "trap 'echo interrupted; exit 4' INT; echo ready; while :; do sleep 0.05; done"
    async with runtime.execute(uid, "main", shell(text, tty=True, stdin=True)) as session:
        seen = b""
        with trio.fail_after(30):
            while b"ready" not in seen:
                seen += (await session.receive())[1]
        await session.send(STDIN, b"\x03")
        out, _, end = await take(session)
        assert b"interrupted" in out and end == exited(4)


async def test_a_program_ends_with_who_asked_for_it(running, eventually, bench):
    runtime, uid = running

    def sleepers():
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                found += [process] if b"31337" in (process / "cmdline").read_bytes().split(b"\0") else []
            except OSError:
                continue
        return found

    async with runtime.execute(uid, "main", shell("echo there; sleep 31337 & sleep 31337")) as session:
        assert await session.receive() == (STDOUT, b"there\n")
        await eventually(lambda: len(sleepers()) == 2)
    await eventually(lambda: not sleepers())


async def test_a_program_that_ends_by_a_signal_says_so(running):
    runtime, uid = running
    async with runtime.execute(uid, "main", shell("kill -9 $$")) as session:
        assert await take(session) == (b"", b"", exited(137))


async def test_a_full_stdin_does_not_hide_the_end(running):
    """The program never reads: what is sent to it waits, and its end is heard all the same."""
    runtime, uid = running
    async with runtime.execute(uid, "main", shell("sleep 0.5; exit 6", stdin=True)) as session:
        with trio.move_on_after(0.2):
            while True:
                await session.send(STDIN, b"x" * 16384)
        assert await take(session) == (b"", b"", exited(6))
