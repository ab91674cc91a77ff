"""What the runtime does when the machine fails it: no zygote, no disk, no descriptors, no answer; and what others left."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from machineplane.runtime import (
    ExecRequest,
    PodError,
    SessionUnavailable,
    container_task,
    helper,
    podfiles,
    record,
    start_zygote,
)
from machineplane.runtime.images import ImageStore
from machineplane.runtime.images.errors import StoreUnwritable
from machineplane.runtime.orphans import children
from machineplane.runtime.orphans import running as is_running

pytestmark = pytest.mark.root

CHURN = Path(__file__).with_name("churn.py")


def forking_child(zygote):
    """The process that the zygote keeps to fork shims."""
    named = [p for p in children({zygote.pid}) if Path(f"/proc/{p}/comm").read_text() == "magik-zygote\n"]
    return next(pid for pid in named if pid != zygote.pid)


async def test_a_killed_zygote_is_replaced_and_pods_run_on(bench, pod, eventually):
    with start_zygote() as zygote:
        bench.zygote = zygote
        async with bench.open() as runtime:
            before = await runtime.run_pod(pod("sleep 1000"))
            for _ in range(3):
                victim = forking_child(zygote)
                os.kill(victim, signal.SIGKILL)
                status = await runtime.run_pod(pod("sleep 1000"))
                assert (status.phase, status.message) == ("Running", "")
            assert forking_child(zygote) != victim
            assert runtime.get(before.uid).phase == "Running"
            async with runtime.execute(before.uid, "main", ExecRequest(command=("echo", "here"))) as session:
                assert (await session.receive())[1] == b"here\n"


async def test_a_helper_that_does_not_answer_costs_its_own_pod_alone(bench, pod, until, monkeypatch):
    async with bench.open() as runtime:
        good, stuck = [await runtime.run_pod(pod("sleep 1000")) for _ in range(2)]
        monkeypatch.setattr(helper, "REQUEST_TIMEOUT_S", 0.5)
        state = json.loads((bench.config.pod_dir(stuck.uid) / "shim.json").read_text())
        os.kill(state["pid"], signal.SIGSTOP)
        with pytest.raises(SessionUnavailable, match="did not answer `exec` within"):
            async with runtime.execute(stuck.uid, "main", ExecRequest(command=("true",))):
                pass
        async with runtime.execute(good.uid, "main", ExecRequest(command=("echo", "here"))) as session:
            assert (await session.receive())[1] == b"here\n"
        with trio.fail_after(10):
            await runtime.stop_pod(stuck.uid, 0)
        assert runtime.get(good.uid).phase == "Running"


async def test_a_full_disk_refuses_new_pods_and_keeps_those_that_run(bench, pod, until, monkeypatch):
    async with bench.open() as runtime:
        wanted = pod("while test ! -e /go; do sleep 0.02; done; exit 4")
        status = await runtime.run_pod(wanted)
        real = record.save

        def full(folder, kept):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

        monkeypatch.setattr(record, "save", full)
        with pytest.raises(PodError, match="No space left"):
            await runtime.run_pod(pod("true"))
        async with runtime.execute(status.uid, "main", ExecRequest(command=("touch", "/go"))) as session:
            await session.receive()
        ended = await until(runtime, status.uid, lambda s: s.containers[0].state == "terminated")
        assert ended.containers[0].exit_code == 4
        monkeypatch.setattr(record, "save", real)
        again = await runtime.run_pod(pod("sleep 1000"))
        assert again.phase == "Running"


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x"), "No space left"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/x"), "Too many open files"),
        (MemoryError(), "out of memory"),
        (StoreUnwritable("image store", "cannot be written", "free some space"), "free some space"),
    ],
    ids=["disk", "descriptors", "memory", "store"],
)
async def test_a_start_that_the_machine_cannot_do_waits_and_is_tried_again(
    bench, pod, until, monkeypatch, trouble, said
):
    """One container's start: its pod, the others and the daemon go on, and with room it starts."""
    real, failing = ImageStore.layer_paths, [True]

    def layer_paths(self, image):
        if failing and "pause" not in image.ref:
            raise trouble
        return real(self, image)

    monkeypatch.setattr(container_task, "TROUBLE_RETRY_S", 0.1)
    async with bench.open() as runtime:
        other = await runtime.run_pod(pod("sleep 1000"))
        monkeypatch.setattr(ImageStore, "layer_paths", layer_paths)
        status = await runtime.run_pod(pod("sleep 1000"))
        assert (status.phase, status.containers[0].reason) == ("Pending", "CreateContainerError")
        assert said in status.containers[0].message
        failing.clear()
        await until(runtime, status.uid, lambda s: s.containers[0].state == "running")
        assert runtime.get(other.uid).phase == "Running"


async def test_out_of_memory_for_a_whole_pod_ends_no_daemon(bench, pod, monkeypatch):
    def make_folders(*_):
        raise MemoryError

    async with bench.open() as runtime:
        with monkeypatch.context() as patched:
            patched.setattr(podfiles, "make_folders", make_folders)
            status = await runtime.run_pod(pod("sleep 1000"))
        assert status.phase == "Failed" and "out of memory" in status.message
        await runtime.stop_pod(status.uid, 0)
        assert (await runtime.run_pod(pod("sleep 1000"))).phase == "Running"


@contextmanager
def no_descriptors():
    """Not one more can be opened by this process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1, limits[1]))
    hoard = []
    try:
        while True:
            hoard.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    try:
        yield
    finally:
        for fd in hoard:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_out_of_descriptors_is_said_and_passes(bench, pod):
    async with bench.open() as runtime:
        status = await runtime.run_pod(pod("sleep 1000"))
        with no_descriptors():
            with pytest.raises(SessionUnavailable, match="Too many open files"):
                async with runtime.execute(status.uid, "main", ExecRequest(command=("true",))):
                    pass
            with pytest.raises(PodError, match="Too many open files"):
                await runtime.run_pod(pod("true"))
        assert runtime.get(status.uid).phase == "Running"
        async with runtime.execute(status.uid, "main", ExecRequest(command=("echo", "here"))) as session:
            assert (await session.receive())[1] == b"here\n"


async def test_what_belongs_to_no_pod_is_removed_at_the_start(bench, pod, eventually):
    async with bench.open(keep=True) as runtime:
        status = await runtime.run_pod(pod("sleep 1000"))
        kept = await runtime.run_pod(pod("sleep 1000"))
    shutil.rmtree(bench.config.pod_dir(status.uid))  # as if somebody had removed its folder
    assert any(status.uid in line for line in bench.remains())
    async with bench.open() as runtime:
        await eventually(lambda: not any(status.uid in line for line in bench.remains()))
        assert [found.uid for found in runtime.pods()] == [kept.uid]
        assert [is_running(found.containers[0].pid) for found in (status, kept)] == [False, True]


def marked(uid):
    """Processes of containers that carry a pod's uid in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            parent = (process / "status").read_text().split("NSpid:")[1].split()
        except (OSError, IndexError):
            continue
        if f"POD_UID={uid}".encode() in environment and len(parent) > 1 and "1" in parent[:3]:
            found.append(int(process.name))
    return found


@pytest.mark.parametrize("after_ms", [30, 120, 300, 600])
async def test_a_daemon_killed_amid_starts_and_stops_loses_none_and_doubles_none(bench, eventually, after_ms):
    async with bench.open(keep=True):
        pass  # imports the image
    command = [sys.executable, str(CHURN), str(bench.folder), bench.config.cgroup_parent, "10"]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert await trio.to_thread.run_sync(daemon.stdout.readline) == "begin\n"
    await trio.sleep(after_ms / 1000)
    daemon.kill()
    said = [line.split() for line in await trio.to_thread.run_sync(daemon.stdout.readlines)]
    daemon.wait()
    daemon.stdout.close()
    running = {uid for word, uid in said if word == "running"}
    stopping = {uid for word, uid in said if word in ("stopping", "stopped")}
    gone = {uid for word, uid in said if word == "stopped"}
    async with bench.open() as runtime:

        def settled():
            pods = runtime.pods()
            return all(p.phase == "Running" or p.reason == "RecordLost" for p in pods) and not any(
                p.stopping for p in pods
            )

        await eventually(settled)
        here = {status.uid for status in runtime.pods()}
        assert running - stopping <= here and not gone & here
        for status in runtime.pods():
            if status.reason != "RecordLost":  # it had not begun, and nobody was told of it
                assert len(marked(status.uid)) == 1
