"""A pod's agent: what it sees, what it may, and what its end means to the pod. Its image here is a shell and a helper."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import trio
from attrs import evolve

from machineplane.agents import Door
from machineplane.runtime import ContainerSaid, ExecRequest, PodEvent, Words

sys.path.insert(0, str(Path(__file__).parent))

from agent_image import make_agent

pytestmark = pytest.mark.root

AGENT_IMAGE = "localhost/test/agent:latest"
SCRIPT = r"""#!/bin/busybox sh
trap 'exit 0' TERM
C=/run/magik/agent/credentials
TOKEN=$(busybox sed 's/.*"token": "\([^"]*\)".*/\1/' $C); busybox rm $C
echo ready > /run/magik/app/hello
ask() { printf "$1 $2 HTTP/1.1\r\nHost: m\r\nAuthorization: Bearer $TOKEN\r\nConnection: close\r\n\r\n" |
    talk /run/magik/agent/machine.sock; echo; }
{ busybox id; busybox ls /run/magik /run/magik/agent; busybox cat /etc/resolv.conf; busybox env;
  busybox grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status; busybox cat /proc/net/dev; ask GET /v1/state; } 2>&1
echo seen
while :; do busybox sleep 1000 & wait $!; done
"""


class Host:
    """Stands behind the door of a pod."""

    def state(self, uid):
        return {"uid": uid}


class Agents:
    """As the daemon has it: the variables, and a door for each pod."""

    def __init__(self):
        self.tokens = {}

    def environment(self, pod, redirect):
        return {"BEE_POD_NAME": pod.name, "BEE_REDIRECT_PORT": str(redirect)}

    def founds(self, pod):
        return pod.pod["metadata"]["labels"].get("founder") == "yes"

    async def serve(self, uid, token, listener):
        self.tokens[uid] = token
        await Door(uid, token, Host(), 1).serve(listener)


@pytest.fixture(scope="session")
def agent_archive(tmp_path_factory):
    return make_agent(tmp_path_factory.mktemp("agent"), AGENT_IMAGE, SCRIPT)


@pytest.fixture
async def ready(bench, agent_archive):
    """The bench, whose runtimes give pods an agent."""
    bench.config = evolve(bench.config, agent_image=AGENT_IMAGE)
    async with bench.open() as runtime:
        runtime.images.import_file(agent_archive, None)
    bench.agents = Agents()
    return bench


def said(bench, uid, run=0):
    path = bench.config.pod_dir(uid) / f"logs/agent.container/{run}.log"
    return path.read_text() if path.exists() else ""


async def inside(runtime, uid, *command):
    """The output of a command in the pod's container."""
    output = b""
    async with runtime.execute(uid, "main", ExecRequest(command=command)) as session:
        while (frame := await session.receive())[0] != 3:
            output += frame[1]
    return output.decode()


def read(path):
    return Path(path).read_bytes()


def agent_pid(bench, uid):
    state = json.loads((bench.config.pod_dir(uid) / "shim.json").read_text())
    found = [
        c["pid"] for c in state["containers"] if c["name"] == "agent.container" and c["status"] == "running"
    ]
    return found[0] if found else 0


async def test_an_agent_has_its_two_folders_and_nothing_more(ready, pod, eventually):
    wanted = pod("sleep 1000")
    async with ready.open() as runtime:
        status = await runtime.run_pod(wanted)
        uid = status.uid
        await eventually(lambda: "seen" in said(ready, uid))
        text = said(ready, uid)
        assert "uid=65534 gid=65534" in text and "BEE_POD_NAME=" + status.name in text and "PATH=/bin" in text
        assert "BEE_REDIRECT_PORT=4702" in text and ready.network.calls.count(("redirect", uid)) == 1
        assert "CapEff:\t0000000000000000" in text and "CapBnd:\t0000000000000000" in text
        assert "NoNewPrivs:\t1" in text and "Seccomp:\t2" in text
        assert "nameserver 127.0.0.1" not in text  # its own resolver is the machine's
        assert f'"uid": "{uid}"' in text and "HTTP/1.1 200" in text
        # The token is in no argument and no variable, and what was read is gone.
        record = json.loads((ready.config.pod_dir(uid) / "pod.json").read_text())
        token = record["agent"]["token"]
        assert len(token) > 30 and (ready.config.pod_dir(uid) / "pod.json").stat().st_mode & 0o777 == 0o600
        pid = agent_pid(ready, uid)
        assert all(token.encode() not in read(f"/proc/{pid}/{name}") for name in ("cmdline", "environ"))
        assert sorted(os.listdir(f"/proc/{pid}/root/run/magik/agent")) == ["machine.sock", "state"]
        # The containers see what the agent shows them, and cannot write there.
        assert await inside(runtime, uid, "ls", "/run/magik", "/run/magik/app") == (
            "/run/magik:\napp\n\n/run/magik/app:\nhello\n"
        )
        assert "Read-only" in await inside(runtime, uid, "sh", "-c", "echo x > /run/magik/app/y")
        assert (await inside(runtime, uid, "cat", "/etc/resolv.conf")).splitlines()[
            0
        ] == "nameserver 127.0.0.1"
        # Nobody but its owner may as much as look at the folder on the machine.
        assert not list((ready.config.pod_dir(uid) / "agent").iterdir())
        await runtime.stop_pod(uid)


async def test_an_agent_that_dies_is_started_again_alone(ready, pod, eventually):
    async with ready.open() as runtime:
        events = []

        async def listen(task_status):
            async with runtime.changes() as changes:
                task_status.started()
                async for change in changes:
                    if isinstance(change, PodEvent):
                        events.append(change.reason)

        async with trio.open_nursery() as nursery:
            await nursery.start(listen)
            wanted = pod("sleep 1000")
            wanted["metadata"]["labels"]["founder"] = "yes"
            status = await runtime.run_pod(wanted)
            uid, first = status.uid, status.containers[0]
            await eventually(lambda: "seen" in said(ready, uid))
            old, token = agent_pid(ready, uid), ready.agents.tokens[uid]()
            assert runtime.claim_key(uid, "aa") and runtime.claim_key(uid, "aa")
            assert not runtime.claim_key(uid, "bb")
            assert os.listdir(f"/proc/{old}/root/run/magik/agent/state") == ["founder"]
            os.unlink(f"/proc/{old}/root/run/magik/agent/state/founder")
            kept = "run/magik/agent/state/vote"
            os.close(os.open(f"/proc/{old}/root/{kept}", os.O_CREAT | os.O_WRONLY))
            os.kill(old, signal.SIGKILL)
            await eventually(lambda: "HTTP/1.1 200" in said(ready, uid, 1))
            folder = f"/proc/{agent_pid(ready, uid)}/root/run/magik/agent/state"
            assert os.listdir(folder) == ["vote"]  # what the pod has is kept, and nobody founds twice
            assert agent_pid(ready, uid) not in (0, old) and ready.agents.tokens[uid]() != token
            assert runtime.claim_key(uid, "bb")  # another run, another key
            now = runtime.get(uid)
            assert (now.containers[0].pid, now.containers[0].restarts, now.phase) == (first.pid, 0, "Running")
            await eventually(lambda: "AgentEnded" in events)
            nursery.cancel_scope.cancel()
        await runtime.stop_pod(uid)


async def test_an_agent_to_which_nothing_can_be_redirected_is_told_so_and_runs(
    ready, pod, eventually, monkeypatch
):
    async def refuse(pod_uid, pid, tcp_ports):
        raise OSError("no such hook")

    monkeypatch.setattr(ready.network, "redirect", refuse)
    async with ready.open() as runtime, runtime.changes() as changes:
        status = await runtime.run_pod(pod("sleep 1000"))
        await eventually(lambda: "BEE_REDIRECT_PORT=None" in said(ready, status.uid))
        with trio.fail_after(30):
            async for change in changes:
                if isinstance(change, PodEvent) and change.reason == "AgentNotRedirected":
                    assert "no such hook" in change.message
                    break
        await runtime.stop_pod(status.uid)


async def test_a_founder_whose_folder_is_lost_founds_no_second_time(ready, pod, eventually):
    async with ready.open() as runtime:
        wanted = pod("sleep 1000")
        wanted["metadata"]["labels"]["founder"] = "yes"
        uid = (await runtime.run_pod(wanted)).uid
        await eventually(lambda: "seen" in said(ready, uid))
        old = agent_pid(ready, uid)
        state = Path(f"/proc/{old}/root/run/magik/agent/state")
        assert os.listdir(state) == ["founder"]
        shutil.rmtree(state)
        os.kill(old, signal.SIGKILL)
        await eventually(lambda: "HTTP/1.1 200" in said(ready, uid, 1))
        assert os.listdir(f"/proc/{agent_pid(ready, uid)}/root/run/magik/agent/state") == []
        await runtime.stop_pod(uid)


async def test_a_daemon_that_comes_back_serves_the_same_agent(ready, pod, eventually):
    wanted = pod("sleep 1000")
    uid = wanted["metadata"]["uid"]
    async with ready.open(keep=True) as runtime:
        await runtime.run_pod(wanted)
        await eventually(lambda: "seen" in said(ready, uid))
        pid, token = agent_pid(ready, uid), ready.agents.tokens[uid]()
        assert runtime.claim_key(uid, "aa")
    ready.agents = Agents()
    async with ready.open() as runtime:
        await eventually(lambda: uid in ready.agents.tokens)
        assert agent_pid(ready, uid) == pid and ready.agents.tokens[uid]() == token
        assert not runtime.claim_key(uid, "bb")
        # The same agent finds the new socket in its folder.
        command = (
            f"printf 'GET /v1/state HTTP/1.1\\r\\nHost: m\\r\\nAuthorization: Bearer {token}\\r\\n\\r\\n' | "
        )
        talk = [
            "nsenter",
            "-t",
            str(pid),
            "-m",
            "/bin/busybox",
            "sh",
            "-c",
            command + "/bin/talk /run/magik/agent/machine.sock",
        ]
        answer = await trio.run_process(talk, capture_stdout=True)
        assert b"HTTP/1.1 200" in answer.stdout and uid.encode() in answer.stdout
        await runtime.stop_pod(uid)


async def test_what_an_agent_puts_in_its_folder_harms_nobody_else(ready, pod, eventually):
    wanted = pod("sleep 1000")
    uid = wanted["metadata"]["uid"]
    async with ready.open(keep=True) as runtime:
        await runtime.run_pod(wanted)
        await eventually(lambda: "seen" in said(ready, uid))
        folder = Path(f"/proc/{agent_pid(ready, uid)}/root/run/magik/agent")
        (folder / "machine.sock").unlink()
        (folder / "machine.sock").mkdir()
        (folder / "machine.sock/x").write_text("")
        (folder / "credentials").symlink_to("/etc/passwd")
        with pytest.raises(OSError):
            (folder / "much").write_bytes(b"x" * 2 * 1024 * 1024)
    before = read("/etc/passwd")
    async with ready.open() as runtime:
        await eventually(lambda: runtime.get(uid).phase == "Running")
        os.kill(agent_pid(ready, uid), signal.SIGKILL)
        await eventually(lambda: runtime._worker(uid).book.record.agent.runs == 2)
        assert runtime.get(uid).phase == "Running" and read("/etc/passwd") == before
        await runtime.stop_pod(uid)


async def test_readiness_is_the_agent_s_word_and_liveness_restarts(ready, pod, until):
    probe = {"httpGet": {"path": "/", "port": 80}}
    wanted = pod(
        "trap 'exit 7' TERM; while :; do sleep 0.05; done",
        restartPolicy="Always",
        container={"readinessProbe": probe},
    )
    uid = wanted["metadata"]["uid"]
    async with ready.open() as runtime:
        status = await runtime.run_pod(wanted)
        assert not status.containers[0].ready and status.containers[0].started
        runtime.report(
            uid, Words(containers={"main": ContainerSaid(True, True), "other": ContainerSaid(True, True)})
        )
        first = runtime.get(uid).containers[0]
        assert first.ready
        runtime.report(uid, Words(containers={"main": ContainerSaid(False, True, "refused")}))
        assert not runtime.get(uid).containers[0].ready
        runtime.report(uid, Words(containers={"main": ContainerSaid(True, True)}))
        runtime.restart_container(uid, "main", "Liveness probe failed: no")
        runtime.restart_container(uid, "main", "Liveness probe failed: no")  # asked twice, done once
        again = await until(
            runtime, uid, lambda s: s.containers[0].restarts == 1 and s.containers[0].state == "running"
        )
        assert again.containers[0].id != first.id and again.containers[0].last.exit_code == 7
        assert not again.containers[0].ready  # of this run the agent has said nothing
        await runtime.stop_pod(uid)


async def test_without_an_agent_a_container_with_probes_is_ready_when_it_runs(bench, pod):
    probe = {"httpGet": {"path": "/", "port": 80}}
    async with bench.open() as runtime:
        status = await runtime.run_pod(pod("sleep 1000", container={"readinessProbe": probe}))
        assert status.containers[0].ready
        await runtime.stop_pod(status.uid)
