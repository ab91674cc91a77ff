"""One pod's life, with real containers."""

import os
from pathlib import Path

import pytest
import trio
from attrs import evolve

from machineplane.runtime import LogsUnavailable, PodExists, PodGone, PodNotFound, pod_status_json

pytestmark = pytest.mark.root


async def test_a_pod_runs_logs_and_stops(bench, engine, pod, log, eventually):
    wanted = pod("echo hello $POD; trap 'exit 0' TERM; while :; do sleep 0.05; done")
    wanted["spec"]["containers"][0]["env"] = [
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    ]
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        status = await runtime.run_pod(wanted, b"receipt", engine=engine)
        assert status.message == "" and status.containers[0].message == ""
        assert (status.phase, status.ip, status.attachment) == ("Running", "192.0.2.7", b"receipt")
        assert pod_status_json(status)["containerStatuses"][0]["ready"] is True
        await eventually((bench.config.pod_dir(uid) / "logs/main/0.log").read_text)
        text = await log(runtime, uid)
        assert text == f"hello {wanted['metadata']['name']}\n"
        with pytest.raises(PodExists):
            await runtime.run_pod(wanted)
        await runtime.stop_pod(uid)
        assert runtime.pods() == ()
        with pytest.raises(PodNotFound):
            runtime.get(uid)
        await runtime.stop_pod(uid)
    assert bench.network.calls == [("attach", uid), ("detach", uid)]


@pytest.mark.parametrize(("command", "code", "phase"), [("exit 0", 0, "Succeeded"), ("exit 7", 7, "Failed")])
async def test_exit_codes(bench, engine, pod, until, command, code, phase):
    wanted = pod(command)
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        status = await until(runtime, uid, lambda s: s.containers[0].state == "terminated")
        assert (status.containers[0].exit_code, status.phase) == (code, phase)
        assert status.containers[0].finished_at >= status.containers[0].started_at > 0
        await runtime.stop_pod(uid)


async def test_what_ignores_sigterm_is_killed_after_the_grace(bench, engine, pod, until):
    wanted = pod("trap '' TERM; echo up; while :; do sleep 0.05; done")
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        async with runtime.changes() as changes:
            begun = trio.current_time()
            await runtime.stop_pod(uid, 0.5)
            assert 0.4 < trio.current_time() - begun < 25  # and not the 30 s of who names no grace
            with trio.fail_after(5):
                async for change in changes:
                    if change == PodGone(uid):
                        break


async def test_memory_limit_kills_and_says_so(bench, engine, pod, until):
    if bench.zygote.report.cgroups == "none":
        pytest.skip("this machine lets nobody make control groups")
    hog = "x=0123456789abcdef; while :; do x=$x$x; done"
    wanted = pod(hog, container={"resources": {"limits": {"memory": "32Mi"}}})
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        status = await until(runtime, uid, lambda s: s.containers[0].state == "terminated")
        assert (status.containers[0].exit_code, status.containers[0].reason) == (137, "OOMKilled")
        await runtime.stop_pod(uid)


async def test_pid_and_cpu_limits_are_in_force(bench, pod, until, log):
    if bench.zygote.report.cgroups == "none":
        pytest.skip("this machine lets nobody make control groups")
    wanted = pod("while :; do sleep 1; done", container={"resources": {"limits": {"cpu": "250m"}}})
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        group = bench.config.container_cgroup(uid, status.containers[0].id)
        quota, pids = _limits(bench.zygote.report.cgroups, group)
        assert (quota, pids) == ("25000 100000", str(bench.config.pids_limit))
        await runtime.stop_pod(uid, 0)


async def test_a_fork_bomb_is_held_by_the_limit_of_processes(bench, engine, pod, log, until):
    if bench.zygote.report.cgroups == "none":
        pytest.skip("this machine lets nobody make control groups")
    bench.config = evolve(bench.config, pids_limit=20)
    wanted = pod("for i in $(seq 100); do sleep 1000 & done; echo survived")
    async with bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        ended = await until(runtime, status.uid, lambda s: s.containers[0].state == "terminated")
        said = await log(runtime, status.uid)
        assert ended.containers[0].exit_code != 0 and "survived" not in said and "fork" in said
        await runtime.stop_pod(status.uid, 0)


async def test_a_cpu_limit_is_held(bench, engine, pod, log, until):
    if bench.zygote.report.cgroups == "none":
        pytest.skip("this machine lets nobody make control groups")
    # Four loops for a second of wall time: without the limit they would use up to as many seconds as there are processors.
    burn = "for i in 1 2 3 4; do while :; do :; done & done; sleep 1; kill %1 %2 %3 %4; wait; times"
    wanted = pod(burn, container={"resources": {"limits": {"cpu": "200m"}}})
    async with bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        await until(runtime, status.uid, lambda s: s.containers[0].state == "terminated")
        children = (await log(runtime, status.uid)).splitlines()[-1]
        used = sum(float(part.split("m")[1].rstrip("s")) for part in children.split())
        assert 0.1 < used < 0.6
        await runtime.stop_pod(status.uid, 0)


def _limits(version: str, group: str) -> tuple[str, str]:
    """CPU quota and period (µs), and the limit of processes, as the kernel has them."""
    root = Path("/sys/fs/cgroup")
    if version == "v2":
        folder = root / group[1:]
        if group.endswith(".scope"):
            folder /= "container"  # libcrun's own, below what systemd sees to
        return (folder / "cpu.max").read_text().strip(), (folder / "pids.max").read_text().strip()
    cpu = Path(f"{root}/cpu{group}")
    quota, period = (cpu / "cpu.cfs_quota_us").read_text(), (cpu / "cpu.cfs_period_us").read_text()
    return f"{quota.strip()} {period.strip()}", Path(f"{root}/pids{group}/pids.max").read_text().strip()


async def test_restarts_with_back_off_as_users_know_it(bench, engine, pod, until, log):
    wanted = pod("echo run; exit 3", restartPolicy="Always")
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        status = await until(runtime, uid, lambda s: s.containers[0].reason == "CrashLoopBackOff")
        container = status.containers[0]
        assert (container.restarts, container.last.exit_code, status.phase) == (1, 3, "Running")
        assert "back-off 10s" in container.message
        assert await log(runtime, uid, previous=True) == "run\n"
        await runtime.stop_pod(uid)


async def test_init_containers_run_first_and_in_order(bench, engine, pod, until, log):
    wanted = pod("cat /data/order", volumes=[{"name": "data", "emptyDir": {}}])
    mounts = [{"name": "data", "mountPath": "/data"}]
    image = wanted["spec"]["containers"][0]["image"]
    wanted["spec"]["containers"][0]["volumeMounts"] = mounts
    wanted["spec"]["initContainers"] = [
        {
            "name": n,
            "image": image,
            "command": ["sh", "-c", f"echo {n} >> /data/order"],
            "volumeMounts": mounts,
        }
        for n in ("one", "two")
    ]
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        status = await until(runtime, uid, lambda s: s.phase == "Succeeded")
        assert [c.exit_code for c in status.init_containers] == [0, 0]
        assert await log(runtime, uid) == "one\ntwo\n"
        await runtime.stop_pod(uid)


async def test_what_cannot_run_is_visible_not_fatal(bench, pod):
    missing = pod("true", container={"image": "localhost/absent:1"})
    refused = pod("true", hostNetwork=True)
    no_program = pod("true", container={"command": ["/no/such/program"]})
    async with bench.open() as runtime:
        status = await runtime.run_pod(missing)
        assert (status.phase, status.containers[0].reason) == ("Pending", "ErrImagePull")
        assert "localhost/absent:1" in status.containers[0].message
        status = await runtime.run_pod(refused)
        assert (status.phase, status.reason) == ("Failed", "UnsupportedPod")
        assert "spec.hostNetwork" in status.message
        status = await runtime.run_pod(no_program)
        assert (status.phase, status.containers[0].reason) == ("Failed", "StartError")
        status = await runtime.run_pod(pod("true"), engine="krun")
        assert (status.phase, status.reason) == ("Failed", "EngineUnavailable")
        with pytest.raises(LogsUnavailable):
            async for _ in runtime.logs(status.uid, "nobody"):
                pass
        for left in runtime.pods():
            await runtime.stop_pod(left.uid)


async def test_working_directory_cannot_leave_the_container(bench, pod):
    escape = pod("cat /etc/hostname; ls ..", container={"workingDir": "/proc/self/fd/3"})
    async with bench.open() as runtime:
        status = await runtime.run_pod(escape)
        assert status.containers[0].reason == "StartError"
        await runtime.stop_pod(status.uid)


def footprint(bench):
    """Descriptors and bytes of private memory of the daemon and its zygote, and mounts and processes of the machine."""
    found = {}
    for name, pid in (("daemon", os.getpid()), ("zygote", bench.zygote.pid)):
        found[f"{name} descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found[f"{name} KiB"] = sum(int(line.split()[1]) for line in rollup.splitlines() if "Private" in line)
    found["mounts"] = len(Path("/proc/self/mountinfo").read_text().splitlines())
    return found


async def test_thirty_starts_and_stops_leave_nothing(bench, pod):
    async with bench.open() as runtime:
        for turn in range(30):
            status = await runtime.run_pod(pod("sleep 100"))
            assert (status.phase, status.containers[0].message) == ("Running", "")
            await runtime.stop_pod(status.uid, 0)
            assert bench.remains() == []
            if turn == 9:  # caches are warm
                before = footprint(bench)
        after = footprint(bench)
        grown = {name: after[name] - before[name] for name in before if after[name] > before[name]}
        # Paths are interned, and the table of such texts doubles now and then: 1.9 MiB at once, as tracemalloc shows it.
        assert {name: count for name, count in grown.items() if "KiB" not in name or count > 3072} == {}


async def test_logs_follow_until_the_end_and_with_time_stamps(bench, engine, pod, log):
    wanted = pod("for i in 1 2 3; do echo $i; sleep 0.1; done; printf end >&2")
    async with bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        with trio.fail_after(10):
            assert await log(runtime, status.uid, follow=True) == "1\n2\n3\nend\n"
        assert await log(runtime, status.uid, tail=2) == "3\nend\n"
        stamped = await log(runtime, status.uid, tail=1, timestamps=True)
        assert stamped.endswith("Z end\n") and stamped[4] == "-"
        await runtime.stop_pod(status.uid)
