"""Pods outlive the daemon; and what happens when their own helper is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

pytestmark = pytest.mark.root

DRIVER = Path(__file__).with_name("driver.py")


def running(pid):
    """Whether a process still runs (one that has ended may wait long for the machine's init to reap it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def run_and_kill_daemon(bench, wanted):
    """Run a pod under another process's runtime and end that process by SIGKILL; answers what it said of the pod."""
    async with bench.open(keep=True):
        pass  # imports the image
    command = [
        sys.executable,
        str(DRIVER),
        str(bench.folder),
        bench.config.cgroup_parent,
        bench.config.default_engine,
        str(bench.config.krun_library or ""),
    ]
    daemon = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: ASYNC220
    try:
        daemon.stdin.write(json.dumps(wanted).encode())
        daemon.stdin.close()
        line = await trio.to_thread.run_sync(daemon.stdout.readline)
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stdout.close()
    return json.loads(line)


async def test_a_restarted_daemon_adopts_its_pods(bench, engine, pod, log, until, eventually):
    wanted = pod("i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done")
    uid = wanted["metadata"]["uid"]
    phase, container_id, started_at, pid = await run_and_kill_daemon(bench, wanted)
    assert phase == "Running"
    written = bench.config.pod_dir(uid) / "logs/main/0.log"
    so_far = written.read_text().count("\n") if written.exists() else 0
    # Time without a daemon, in which output goes on.
    await eventually(lambda: written.exists() and written.read_text().count("\n") >= so_far + 10)
    async with bench.open() as runtime:
        status = await until(runtime, uid, lambda s: s.uid == uid)
        container = status.containers[0]
        assert (container.id, container.started_at, container.pid) == (container_id, started_at, pid)
        assert (status.phase, status.attachment, status.ip) == ("Running", b"receipt", "192.0.2.7")
        assert dict(status.pod) == wanted
        lines = [int(line) for line in (await log(runtime, uid)).splitlines()]
        assert lines == list(range(len(lines))) and len(lines) >= 10
        await eventually(lambda: bench.network.calls)
        await runtime.stop_pod(uid, 0)
    assert bench.network.calls == [("recover", uid), ("detach", uid)]


async def test_an_exit_without_a_daemon_is_known_afterwards(bench, engine, pod, until, eventually):
    wanted = pod("sleep 0.3; exit 5")
    uid = wanted["metadata"]["uid"]
    _, container_id, _, pid = await run_and_kill_daemon(bench, wanted)
    await eventually(lambda: not running(pid))
    async with bench.open() as runtime:
        status = await until(runtime, uid, lambda s: s.containers[0].state == "terminated")
        container = status.containers[0]
        assert (container.exit_code, container.id, status.phase) == (5, container_id, "Failed")
        await runtime.stop_pod(uid)


async def test_a_killed_shim_fails_its_pod_and_leaves_nothing(bench, pod, until):
    async with bench.open() as runtime:
        status = await runtime.run_pod(pod("sleep 1000"))
        state = json.loads((bench.config.pod_dir(status.uid) / "shim.json").read_text())
        os.kill(state["pid"], signal.SIGKILL)
        failed = await until(runtime, status.uid, lambda s: s.containers[0].state == "terminated")
        assert (failed.phase, failed.reason) == ("Failed", "ShimLost")
        assert not running(status.containers[0].pid)
        await runtime.stop_pod(status.uid)


async def test_a_shim_killed_while_no_daemon_lived(bench, pod, until):
    wanted = pod("sleep 1000")
    uid = wanted["metadata"]["uid"]
    await run_and_kill_daemon(bench, wanted)
    state = json.loads((bench.config.pod_dir(uid) / "shim.json").read_text())
    os.kill(state["pid"], signal.SIGKILL)
    async with bench.open() as runtime:
        status = await until(runtime, uid, lambda s: s.phase == "Failed")
        assert status.reason == "ShimLost"
        await runtime.stop_pod(uid)


async def test_a_stop_that_the_daemon_did_not_finish_is_finished(bench, pod, eventually):
    wanted = pod("sleep 1000")
    uid = wanted["metadata"]["uid"]
    await run_and_kill_daemon(bench, wanted)
    record = bench.config.pod_dir(uid) / "pod.json"
    kept = json.loads(record.read_text())
    kept["status"]["stopping"], kept["grace_s"] = True, 0.0
    record.write_text(json.dumps(kept))
    async with bench.open(keep=True) as runtime:
        await eventually(lambda: runtime.pods() == ())


async def test_a_dead_infra_container_fails_the_pod(bench, pod, until):
    async with bench.open() as runtime:
        status = await runtime.run_pod(pod("sleep 1000"))
        state = json.loads((bench.config.pod_dir(status.uid) / "shim.json").read_text())
        infra = next(c for c in state["containers"] if c["name"] == "infra.container")
        os.kill(infra["pid"], signal.SIGKILL)
        failed = await until(runtime, status.uid, lambda s: s.containers[0].state == "terminated")
        assert (failed.phase, failed.reason) == ("Failed", "InfraContainerEnded")
        await runtime.stop_pod(status.uid)


async def test_endless_output_costs_a_bounded_amount(bench, pod, eventually):
    async with bench.open() as runtime:
        status = await runtime.run_pod(pod("yes 0123456789012345678901234567890123456789"))
        folder = bench.config.pod_dir(status.uid) / "logs" / "main"
        await eventually((folder / "0.log.1").exists, 60)
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 2 * 10 * 1024 * 1024 + 1024 * 1024
        begun = trio.current_time()
        await runtime.stop_pod(status.uid, 0)
        assert trio.current_time() - begun < 5
