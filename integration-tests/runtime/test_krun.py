"""What is the microVMs' own: their monitor's end, what they get, and what is refused. The rest runs on both engines."""

import os
import signal
from pathlib import Path

import pytest
from attrs import evolve

from machineplane.runtime.errors import SessionUnavailable
from machineplane.runtime.execs import ExecRequest

pytestmark = pytest.mark.root


@pytest.fixture
def vm_bench(bench, krun_library):
    bench.config = evolve(bench.config, default_engine="krun", krun_library=krun_library)
    return bench


def monitor_of(pid):
    """The one child of a container's first process: it became the machine."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


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


async def test_a_stop_pulls_the_plug_at_once(vm_bench, pod, until, log):
    async with vm_bench.open() as runtime:
        status = await runtime.run_pod(pod("trap '' TERM; echo up; while :; do sleep 0.05; done"))
        while await log(runtime, status.uid) != "up\n":
            pass
        os.kill(status.containers[0].pid, signal.SIGTERM)
        ended = await until(runtime, status.uid, lambda s: s.containers[0].state == "terminated")
        assert ended.containers[0].exit_code == 143
        await runtime.stop_pod(status.uid, 0)


async def test_words_variables_folder_and_volumes_reach_the_guest(vm_bench, pod, until, log):
    said = 'quoted "words"\nof ünusual kind \\n'
    mounts = [
        {"name": "data", "mountPath": "/data"},
        {"name": "data", "mountPath": "/kept", "readOnly": True},
    ]
    wanted = pod(
        'printf %s "$SAID"; pwd; echo x > file; echo y > /kept/file || cat /kept/file; cat /etc/hostname',
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


async def test_exec_and_other_users_are_refused_with_the_reason(vm_bench, pod):
    async with vm_bench.open() as runtime:
        status = await runtime.run_pod(pod("sleep 1000"))
        with pytest.raises(SessionUnavailable, match="no other programs can be run in a microVM"):
            async with runtime.execute(status.uid, "main", ExecRequest(command=("sh",))):
                pass
        refused = await runtime.run_pod(pod("true", container={"securityContext": {"runAsUser": 7}}))
        assert refused.containers[0].reason == "CreateContainerConfigError"
        assert "runs its program as root" in refused.containers[0].message
        for left in runtime.pods():
            await runtime.stop_pod(left.uid, 0)


async def test_the_trial_boot_is_remembered(vm_bench):
    async with vm_bench.open() as runtime:
        krun = next(engine for engine in runtime.engines() if engine.name == "krun")
        assert krun.available
    assert vm_bench.config.boot_memory.is_file()
