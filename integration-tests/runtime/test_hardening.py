"""Ways out of a container that were found in other runtimes: none of them works here."""

import os
from contextlib import suppress

import pytest

from machineplane.runtime import ExecRequest, SessionUnavailable

pytestmark = pytest.mark.root


async def output(bench, wanted, until, log):
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        await until(runtime, uid, lambda s: s.phase in ("Succeeded", "Failed"))
        text = await log(runtime, uid)
        await runtime.stop_pod(uid)
    return text


async def test_a_container_inherits_three_descriptors_and_no_more(bench, pod, until, log):
    """The class of CVE-2024-21626: a descriptor of a folder of the machine is a way out."""
    text = await output(bench, pod("sleep 0.1 & ls /proc/1/fd; wait"), until, log)
    assert sorted(text.split()) == ["0", "1", "2"]


@pytest.mark.parametrize(
    "path", ["/proc/self/fd/7", "/proc/self/fd/8/../../..", "/proc/1/root", "/proc/self/cwd"]
)
async def test_no_working_directory_leads_out(bench, pod, path):
    wanted = pod("cat /etc/shadow; pwd -P", container={"workingDir": path})
    async with bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        assert status.containers[0].reason == "StartError"
        await runtime.stop_pod(status.uid, 0)


async def test_a_link_in_the_image_s_place_of_the_working_directory_leads_nowhere(bench, pod, log):
    """A volume whose content another container made, with a link to a descriptor in the working directory's place."""
    mounts = [{"name": "v", "mountPath": "/v"}]
    wanted = pod(
        "pwd",
        volumes=[{"name": "v", "emptyDir": {}}],
        container={"workingDir": "/v/way", "volumeMounts": mounts},
    )
    image = wanted["spec"]["containers"][0]["image"]
    plant = {
        "name": "plant",
        "image": image,
        "command": ["ln", "-s", "/proc/self/fd/7", "/v/way"],
        "volumeMounts": mounts,
    }
    wanted["spec"]["initContainers"] = [plant]
    async with bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        assert status.containers[1].reason == "StartError"
        await runtime.stop_pod(status.uid, 0)


async def test_the_runtime_s_program_cannot_be_written_from_inside(bench, pod, until, log):
    """The class of CVE-2019-5736: whoever opens /proc/<pid>/exe of the process that enters must not reach a file of ours."""
    library = bench.zygote.report.libcrun.path
    before = [
        (path, os.stat(path).st_mtime_ns, os.stat(path).st_size) for path in (library, "/proc/self/exe")
    ]
    lie_in_wait = (
        "i=0; while [ $i -lt 400 ]; do for p in /proc/[0-9]*; do"
        " ( echo broken > $p/exe ) 2>/dev/null && echo WROTE; done; i=$((i+1)); done; echo done"
    )
    wanted = pod(lie_in_wait)
    uid = wanted["metadata"]["uid"]
    async with bench.open() as runtime:
        await runtime.run_pod(wanted)
        for _ in range(5):
            with suppress(SessionUnavailable):  # the container may be over already
                request = ExecRequest(command=("/proc/self/exe", "true"))
                async with runtime.execute(uid, "main", request) as session:
                    await session.receive()
        await until(runtime, uid, lambda s: s.phase in ("Succeeded", "Failed"))
        text = await log(runtime, uid)
        await runtime.stop_pod(uid)
    assert text == "done\n"
    assert before == [(path, os.stat(path).st_mtime_ns, os.stat(path).st_size) for path, _, _ in before]


async def test_masked_and_read_only_paths_hold(bench, pod, until, log):
    script = (
        "exec 2>/dev/null; cat /proc/kcore | wc -c; cat /proc/timer_list | wc -c; ls /sys/firmware | wc -l;"
        "for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/irq/default_smp_affinity /sys/kernel/mm/ksm/run;"
        " do ( echo 1 > $f ) && echo WROTE $f; done;"
        "umount /proc/kcore && echo UNMOUNTED; mount -o remount,rw /proc/sys && echo REMOUNTED;"
        "mount -t proc none /tmp && echo MOUNTED; mknod /disk b 8 0 && cat /disk >/dev/null && echo READ; true"
    )
    assert (await output(bench, pod(script), until, log)).split() == ["0", "0", "0"]


async def test_dev_is_the_container_s_own(bench, pod, until, log):
    text = await output(bench, pod("ls /dev; stat -f -c %T /dev; readlink /dev/core || true"), until, log)
    names = set(text.split())
    assert {"null", "zero", "full", "random", "urandom", "tty", "pts", "shm"} <= names
    assert not names & {"sda", "vda", "kvm", "mem", "kmsg", "fuse", "loop0"}
