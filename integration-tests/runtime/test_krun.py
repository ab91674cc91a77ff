"""What is the microVMs' own: their monitor's end, what they get, and what is refused. The rest runs on both engines."""

import os
import signal
from pathlib import Path

import pytest
from attrs import evolve

from machineplane.runtime.images.agent import agent_root

pytestmark = pytest.mark.root


@pytest.fixture
def vm_bench(bench, krun_library):
    bench.config = evolve(bench.config, default_engine="krun", krun_library=krun_library)
    return bench


def child_of(pid):
    """The first child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def monitor_of(pid):
    """The one child of a container's first process: it became the machine."""
    return child_of(pid)


def words_of(pid):
    """A process's command line."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def rights_of(pid):
    """What the kernel says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


async def test_a_monitor_that_dies_ends_its_container_alone(vm_bench, pod, until, eventually, log):
    wanted = pod("echo up; sleep 1000")
    async with vm_bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        while await log(runtime, status.uid) != "up\n":
            pass
        os.kill(monitor_of(status.containers[0].pid), signal.SIGKILL)
        ended = await until(runtime, status.uid, lambda s: s.containers[0].state == "terminated")
        assert (ended.containers[0].exit_code, ended.containers[0].reason) == (137, "Error")
        await runtime.stop_pod(status.uid, 0)


async def test_sigterm_reaches_the_program(vm_bench, pod, until, log):
    async with vm_bench.open() as runtime:
        status = await runtime.run_pod(
            pod("trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done")
        )
        while await log(runtime, status.uid) != "up\n":
            pass
        os.kill(status.containers[0].pid, signal.SIGTERM)
        ended = await until(runtime, status.uid, lambda s: s.containers[0].state == "terminated")
        assert ended.containers[0].exit_code == 5
        assert await log(runtime, status.uid) == "up\nbye\n"
        await runtime.stop_pod(status.uid, 0)


async def test_words_variables_folder_and_volumes_reach_the_guest(vm_bench, pod, until, log):
    said = 'quoted "words"\nof ünusual kind \\n'
    mounts = [
        {"name": "data", "mountPath": "/data"},
        {"name": "data", "mountPath": "/kept", "readOnly": True},
    ]
    wanted = pod(
        'printf %s "$SAID"; pwd; echo x > file; (echo y > /kept/file) 2>&1 || cat /kept/file; cat /etc/hostname',
        container={"env": [{"name": "SAID", "value": said}], "workingDir": "/data", "volumeMounts": mounts},
        volumes=[{"name": "data", "emptyDir": {}}],
    )
    async with vm_bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        await until(runtime, status.uid, lambda s: s.phase == "Succeeded")
        text = await log(runtime, status.uid)
        assert text.startswith(f"{said}/data\n")
        assert text.endswith(f"x\n{wanted['metadata']['name']}\n") and "Read-only" in text
        await runtime.stop_pod(status.uid, 0)


async def test_a_read_only_root_stays_read_only(vm_bench, pod, until):
    wanted = pod("echo x > /file", container={"securityContext": {"readOnlyRootFilesystem": True}})
    async with vm_bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        ended = await until(runtime, status.uid, lambda s: s.containers[0].state == "terminated")
        assert ended.containers[0].exit_code == 1
        await runtime.stop_pod(status.uid, 0)


async def test_the_program_runs_as_who_it_should_and_gains_nothing(vm_bench, pod, until, log):
    wanted = pod(
        "id -u; id -g; id -G; cat /data/x; touch /y || echo no; umask; ulimit -n > /dev/null && echo limited",
        container={
            "securityContext": {"runAsUser": 1000, "runAsGroup": 2000, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        },
        volumes=[{"name": "data", "emptyDir": {}}],
        securityContext={"fsGroup": 3000, "supplementalGroups": [4000]},
    )
    wanted["spec"]["initContainers"] = [
        {**wanted["spec"]["containers"][0], "name": "write", "command": ["sh", "-c", "echo x > /data/x"]}
    ]
    async with vm_bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        await until(runtime, status.uid, lambda s: s.phase == "Succeeded")
        said = [line for line in (await log(runtime, status.uid)).splitlines() if "touch" not in line]
        assert said == ["1000", "2000", "2000 3000 4000", "x", "no", "0022", "limited"]
        await runtime.stop_pod(status.uid, 0)


@pytest.mark.parametrize(("capabilities", "may"), [({}, "may"), ({"drop": ["CHOWN"]}, "may not")])
async def test_what_is_dropped_even_root_has_not(vm_bench, pod, until, log, capabilities, may):
    wanted = pod(
        "touch /x; chown 5 /x 2>/dev/null && echo may || echo may not",
        container={"securityContext": {"capabilities": capabilities}},
    )
    async with vm_bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        await until(runtime, status.uid, lambda s: s.phase == "Succeeded")
        assert await log(runtime, status.uid) == f"{may}\n"
        await runtime.stop_pod(status.uid, 0)


async def test_a_program_that_is_not_there_is_told(vm_bench, pod, until, log):
    async with vm_bench.open() as runtime:
        status = await runtime.run_pod(pod("", container={"command": ["/no/such"]}))
        ended = await until(runtime, status.uid, lambda s: s.containers[0].state == "terminated")
        assert ended.containers[0].exit_code == 127
        assert await log(runtime, status.uid) == "/no/such: No such file or directory\n"
        await runtime.stop_pod(status.uid, 0)


async def test_the_trial_boot_is_remembered(vm_bench):
    async with vm_bench.open() as runtime:
        krun = next(engine for engine in runtime.engines() if engine.name == "krun")
        assert krun.available
    assert vm_bench.config.boot_memory.is_file()


async def test_the_init_is_the_agents_images_and_nothing_of_the_machine_is_in_its_guest(vm_bench, pod, log):
    async with vm_bench.open() as runtime:
        status = await runtime.run_pod(pod("echo up; sleep 1000"))
        while await log(runtime, status.uid) != "up\n":
            pass
        init = child_of(monitor_of(status.containers[0].pid))
        assert b"/usr/bin/workplane-init" in words_of(init)
        image = agent_root(runtime.images)
        assert sorted(os.listdir(f"/proc/{init}/root")) == sorted(os.listdir(image))
        program = os.stat(f"/proc/{init}/exe")
        assert os.path.samestat(program, os.stat(image / "usr/bin/python3.11"))
        await runtime.stop_pod(status.uid, 0)


@pytest.mark.parametrize("privileged", [False, True])
async def test_privileged_is_the_guests_matter_and_not_its_monitors(vm_bench, pod, log, privileged):
    vm_bench.allow(privileged=True)
    wanted = pod("echo up; sleep 1000", container={"securityContext": {"privileged": privileged}})
    async with vm_bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        assert status.containers[0].message == ""
        while await log(runtime, status.uid) != "up\n":
            pass
        monitor = rights_of(status.containers[0].pid)
        assert monitor["NoNewPrivs"] == "1" and monitor["Seccomp"] == "2"
        assert not int(monitor["CapBnd"], 16) >> 21 & 1  # CAP_SYS_ADMIN
        await runtime.stop_pod(status.uid, 0)


async def test_a_volume_below_dev_is_the_guests_and_one_below_proc_refused(vm_bench, pod, until, log):
    volumes = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    wanted = pod("echo x > /dev/shm/x && cat /dev/shm/x", container={"volumeMounts": mounts}, volumes=volumes)
    below = {"volumeMounts": [{"name": "shm", "mountPath": "/proc/x"}]}
    async with vm_bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        await until(runtime, status.uid, lambda s: s.phase == "Succeeded")
        assert await log(runtime, status.uid) == "x\n"
        refused = await runtime.run_pod(pod("true", container=below, volumes=volumes))
        assert "/proc and /sys of its own" in refused.containers[0].message


async def test_each_run_is_a_new_guest_counted_and_logged_by_the_machine(vm_bench, pod, until, log):
    """Restarts are the machine's: the count, the last end, the log of the run before, a root without its traces."""
    wanted = pod("echo run $(ls / | grep -c mark); touch /mark; exit 3", restartPolicy="OnFailure")
    async with vm_bench.open() as runtime:
        status = await runtime.run_pod(wanted)
        again = await until(
            runtime,
            status.uid,
            lambda s: s.containers[0].restarts == 1 and s.containers[0].reason == "CrashLoopBackOff",
        )
        assert again.containers[0].last.exit_code == 3
        assert await log(runtime, status.uid) == await log(runtime, status.uid, previous=True) == "run 0\n"
        await runtime.stop_pod(status.uid, 0)
