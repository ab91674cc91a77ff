"""Replicas die under load, by SIGKILL and with their machines: what is lost of the requests of a client in another pod."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread

import pytest
from attrs import frozen
from lab_support import Lab, deployment, processes_of, running_lab, wait_for

from machineplane.runtime.images.agent import Baked
from machineplane.runtime.images.store import machine_architecture

RATE = int(os.environ.get("MAGIK_REQUESTS_PER_S", "50"))
"""Few enough for a busy computer; on a quiet one, set it to 200."""
BEFORE_S, AFTER_S, GRACE_S = 2.0, 6.0, 2.0
SERVER = "mkdir /www; echo I am $(hostname) > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www"
NAME = "web.default.svc.cluster.local"
RESOLVE = f"nslookup {NAME} | awk '/^Address: /{{a=$2}} END {{print a}}'"


@frozen
class World:
    lab: Lab
    client: int  # a process of the client's pod
    address: str

    def victim(self) -> str:
        """A ready replica on m1, once all are ready and found by name."""
        found = self.lab.wait_running("m0", "web", 4, 90)
        return next(name for name, machine in sorted(found.items()) if machine == "m1")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    assert Baked.find(machine_architecture()), (
        "no agent's image here: bake it by `python scripts/workplane_image`"
    )
    for lab in running_lab("itestf", 2, tmp_path_factory.mktemp("failover")):
        lab.kubectl("m0", "create", "service", "clusterip", "web", "--tcp=80:8080")
        lab.apply("m0", deployment("web", 4, SERVER))
        here = {"nodeSelector": {"kubernetes.io/hostname": "m0"}}
        lab.apply("m0", deployment("client", 1, "while :; do sleep 0.1; done", **here))
        (client,) = lab.wait_running("m0", "client", 1)
        assert set(lab.wait_running("m0", "web", 4).values()) == {"m0", "m1"}

        def resolve(lab: Lab = lab, client: str = client) -> str:
            said = lab.kubectl("m0", "exec", client, "--", "sh", "-c", RESOLVE, check=False).strip()
            return said if said.startswith("127.") else ""

        address = wait_for("the Service has an address", resolve)
        yield World(lab, processes_of(client)[0], address)


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_agent(pid: int) -> bool:
    return b"workplane" in command_line(pid)


def is_app(pid: int) -> bool:
    return b"httpd" in command_line(pid)


def is_child(pid: int) -> bool:
    """Whether it is there for one request."""
    try:
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except OSError:
        return True
    return is_app(pid) and is_app(int(parent))


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # httpd has one for each request
            os.kill(pid, signal.SIGKILL)


def kill_app(world: World, pids: list[int]) -> None:
    kill([pid for pid in pids if is_app(pid)])


def kill_agent(world: World, pids: list[int]) -> None:
    kill([pid for pid in pids if is_agent(pid)])


def kill_pod(world: World, pids: list[int]) -> None:
    """Agent and app at one time, and what holds the pod's namespaces."""
    kill(pids)


def kill_machine(world: World, pids: list[int]) -> None:
    world.lab.command("kill", "m1")


Kill = Callable[[World, list[int]], None]


def death(world: World, victim: str, how: Kill) -> tuple[float, float]:
    """Kill it; when the first and the last of its two processes, app and agent, that end by that have ended."""
    pids = [pid for pid in processes_of(victim) if not is_child(pid)]
    watched = [
        pid for pid in pids if (is_app(pid) and how != kill_agent) or (is_agent(pid) and how != kill_app)
    ]
    assert len(watched) == (1 if how in (kill_agent, kill_app) else 2)
    with ExitStack() as stack:
        poll = select.poll()
        for pid in watched:
            ended = os.pidfd_open(pid)
            stack.callback(os.close, ended)
            poll.register(ended, select.POLLIN)
        killer = Thread(target=how, args=(world, pids))
        killer.start()
        stack.callback(killer.join)
        times = []
        for _ in watched:
            (fd, _), *_ = poll.poll(30_000)
            times.append(time.monotonic())
            poll.unregister(fd)
    return times[0], times[-1]


def ask_all_the_time(world: World) -> subprocess.Popen[str]:
    script = str(Path(__file__).with_name("load.py"))
    what = [world.address, "80", str(RATE), str(BEFORE_S + AFTER_S)]
    command = ["nsenter", f"--net=/proc/{world.client}/ns/net", sys.executable, script, *what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("how", [kill_app, kill_agent, kill_pod, kill_machine])
def test_at_most_one_request_in_a_hundred_is_lost_and_none_after_two_seconds(world: World, how: Kill) -> None:
    victim = world.victim()
    with ask_all_the_time(world) as asking:
        assert asking.stdout is not None and asking.stdout.readline() == "begun\n"
        time.sleep(BEFORE_S)
        first, last = death(world, victim, how)
        requests = json.loads(asking.stdout.readline())
    if how is kill_machine:
        world.lab.command("start", "m1")
    assert any(name == victim and began < first for began, _, name, _ in requests)  # it was among those asked
    lost = [(round(began - first, 2), round(took, 2), error) for began, took, _, error in requests if error]
    under_way = sum(began <= last and began + took >= first for began, took, _, _ in requests)
    longest = max(took for _, took, _, error in requests if not error)
    told = (
        f"{len(lost)} of {len(requests)} lost, {under_way} under way as it died, within {last - first:.3f} s"
    )
    print(f"{how.__name__}: {told}; longest answer {longest:.2f} s", lost, file=sys.stderr)
    # On a busy computer more requests are under way when it dies.
    assert len(lost) <= max(len(requests) // 100, under_way), lost
    assert all(after < last - first + GRACE_S for after, _, _ in lost), lost
