"""Much output, read while it is turned over; many processes put into a container."""

import os
import time

import pytest
import trio

from machineplane.channels import exited
from machineplane.runtime import ExecRequest

pytestmark = pytest.mark.root


def kib(pid):
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(("Private", "Swap")))


async def test_output_that_nobody_reads_costs_no_memory_and_none_of_the_daemon_s_time(
    bench, engine, pod, until
):
    amount = int(os.environ.get("MAGIK_OUTPUT_MIB", "64"))  # 1024 by hand
    wanted = pod(
        f"while test ! -e /go; do sleep 0.02; done; dd if=/dev/zero bs=1M count={amount} 2>/dev/null | tr '\\0' 'x'"
    )
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        shim = await runtime._worker(uid).link.pid()
        before = kib(shim)
        async with runtime.execute(uid, "main", ExecRequest(command=("touch", "/go"))) as session:
            await session.receive()
        own = time.process_time()
        with trio.fail_after(120):
            status = await until(runtime, uid, lambda s: s.containers[0].state == "terminated")
        assert time.process_time() - own < 0.5
        assert status.containers[0].exit_code == 0 and kib(shim) - before < 2048
        folder = bench.config.pod_dir(uid) / "logs/main"
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 21 * 1024 * 1024
        await runtime.stop_pod(uid)


async def test_a_log_is_followed_across_its_turns_without_a_gap(bench, engine, pod, log):
    line = "0123456789" * 20
    wanted = pod(
        f"while test ! -e /go; do sleep 0.02; done; i=0; while [ $i -lt 60000 ]; do echo $i {line}; i=$((i+1)); done"
    )
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        seen = []

        async def follow():
            seen.append(await log(runtime, uid, follow=True))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow)
                async with runtime.execute(uid, "main", ExecRequest(command=("touch", "/go"))) as session:
                    await session.receive()
        numbers = [int(text.split(" ")[0]) for text in seen[0].splitlines()]
        assert numbers == list(range(60000))
        assert (bench.config.pod_dir(uid) / "logs/main/0.log.1").exists()
        await runtime.stop_pod(uid)


async def test_many_processes_put_into_a_container_leave_nothing(bench, engine, pod, eventually):
    count = int(os.environ.get("MAGIK_EXECS", "200"))  # 1000 by hand
    async with bench.open() as runtime:
        status = await runtime.run_pod(pod("sleep 1000"))
        shim = await runtime._worker(status.uid).link.pid()
        limiter = trio.CapacityLimiter(4)

        async def one():
            async with (
                limiter,
                runtime.execute(status.uid, "main", ExecRequest(command=("echo", "x"))) as session,
            ):
                assert (await session.receive())[1] == b"x\n"
                assert (await session.receive()) == exited(0)

        async def some(number):
            async with trio.open_nursery() as nursery:
                for _ in range(number):
                    nursery.start_soon(one)

        def footprint():
            folder = bench.config.pod_dir(status.uid) / "private"
            private = os.listdir(f"/proc/{shim}/root{folder}/{status.containers[0].id[:12]}")
            return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{shim}/fd")), sorted(private)

        await some(20)
        before, memory = footprint(), kib(shim)
        await some(count)
        await eventually(lambda: footprint() == before)
        assert kib(shim) - memory < 1024
        await runtime.stop_pod(status.uid, 0)
