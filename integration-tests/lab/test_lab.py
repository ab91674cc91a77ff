"""The lab's commands on real namespaces, with a stand-in for the daemon."""

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root

_ASK = """
import socket
try:
    print(socket.create_connection(("{address}", {port}), timeout=0.7).recv(9).decode())
except OSError as error:
    print(type(error).__name__)
"""


def _program() -> str:
    return f"python3 {Path(__file__).with_name('stand_in.py')}"


_LISTEN = """
import os, socket
listener = socket.create_server(("", {port}))
if os.fork():
    os._exit(0)
for descriptor in range(3):
    os.close(descriptor)
while True:
    listener.accept()[0].sendall(b"{name}")
"""


def listen(computer: Any, machine: str, port: int) -> None:
    """Have somebody on the machine say its name to whoever connects."""
    computer.lab("exec", machine, "--", "python3", "-c", _LISTEN.format(port=port, name=machine))


def ask(computer: Any, asker: str, address: str, port: int = 6443) -> str:
    words = ("python3", "-c", _ASK.format(address=address, port=port))
    return computer.lab("exec", asker, "--", *words).stdout.strip()


def machines(computer: Any) -> list[dict[str, Any]]:
    return json.loads(computer.lab("ls", "--json").stdout)["machines"]


def conditions(computer: Any) -> list[str]:
    return [line.split()[1] for line in computer.lab("ls").stdout.splitlines()[1:4]]


def test_up_reports_every_machine_and_down_leaves_nothing(computer: Any) -> None:
    before = computer.everything()
    report = json.loads(computer.up(3, "--pod").stdout)
    during = computer.everything()
    assert report["name"] == computer.name
    assert [machine["name"] for machine in report["machines"]] == ["m0", "m1", "m2"]
    for index, machine in enumerate(report["machines"]):
        assert set(machine) == {"name", "identity", "mesh", "api", "pid", "netns", "nat"}
        host = machine["api"].removeprefix("https://").removesuffix(":6443")
        assert computer.python(_ASK.format(address=host, port=6443)) == f"m{index}"
        assert computer.run("readlink", f"/proc/{machine['pid']}/ns/net").stdout != ""
        inode = computer.run(
            "stat", "-L", "-c", "%i", f"/run/netns/{machine['netns']}", f"/proc/{machine['pid']}/ns/net"
        ).stdout
        assert len(set(inode.split())) == 1
    assert all(during[kind] != before[kind] for kind in before if kind != "rules")

    computer.lab("down")

    assert computer.everything() == before
    assert "there was none" in computer.lab("down").stderr


def test_machines_have_their_own_names_disks_and_processes(computer: Any) -> None:
    computer.up(2)
    for name in ("m0", "m1"):
        assert computer.lab("exec", name, "--", "hostname").stdout.strip() == name
        computer.lab("exec", name, "--", "sh", "-c", f"echo {name} > /var/lib/magik/who; echo > /run/{name}")
    assert computer.lab("exec", "m0", "--", "cat", "/var/lib/magik/who").stdout == "m0\n"
    assert computer.lab("exec", "m1", "--", "ls", "/run").stdout.split() == ["lock", "m1", "magik"]
    assert computer.lab("exec", "m1", "--", "ls", "/var/lib/magik-lab").stdout == ""
    # A name of a namespace that stayed mounted here would keep another machine's network alive after its end.
    assert "/run/netns" not in computer.lab("exec", "m1", "--", "cat", "/proc/self/mountinfo").stdout
    processes = computer.lab("exec", "m1", "--", "ps", "-wweo", "pid=,args=").stdout.splitlines()
    assert len(processes) == 3
    assert "magik-lab-init" in processes[0]
    assert computer.lab("exec", "m1", "--", "sh", "-c", "exit 7", check=False).returncode == 7
    assert computer.lab("exec", "m1", "--", "no-such-program", check=False).returncode == 127
    computer.lab("down")


def test_kill_takes_everything_and_start_brings_the_disk_back(computer: Any) -> None:
    computer.up(3, "--pod")
    identity = machines(computer)[1]["identity"]
    computer.lab("kill", "m1")
    assert conditions(computer) == ["running", "off", "running"]
    assert machines(computer)[1]["pid"] is None
    assert ask(computer, "m0", "10.202.0.11") in ("TimeoutError", "OSError")
    assert len(computer.run("pgrep", "-f", "^sleep 1000").stdout.split()) == 2
    assert len([path for path in computer.everything()["groups"] if "/pod-" in path]) == 2
    assert "is off" in computer.lab("exec", "m1", "--", "true", check=False).stderr

    computer.lab("start", "m1")
    assert conditions(computer) == ["running"] * 3
    assert machines(computer)[1]["identity"] == identity
    assert ask(computer, "m0", "10.202.0.11") == "m1"
    computer.lab("down")


def test_a_daemon_that_dies_alone_leaves_its_pods_and_starts_again(computer: Any) -> None:
    computer.up(1, "--pod")
    computer.run("kill", "-9", str(machines(computer)[0]["pid"]))
    assert computer.lab("ls").stdout.splitlines()[1].split()[1] == "no-daemon"
    pod = computer.run("pgrep", "-f", "^sleep 1000").stdout
    computer.lab("start", "m0")
    assert computer.lab("ls").stdout.splitlines()[1].split()[1] == "running"
    assert pod.strip() in computer.run("pgrep", "-f", "^sleep 1000").stdout.split()
    assert "runs already" in computer.lab("start", "m0").stderr
    computer.lab("down")


def test_a_machine_killed_from_outside_is_off_and_starts_again(computer: Any) -> None:
    computer.up(2)
    computer.run("pkill", "-9", "-f", f"magik-lab-init /var/lib/magik-lab/{computer.name} m1")
    assert "off" in computer.lab("ls").stdout
    computer.lab("start", "m1")
    assert ask(computer, "m0", "10.202.0.11") == "m1"
    computer.lab("down")


def test_later_machines_are_told_whom_to_ask_and_m0_is_after_its_restart(computer: Any) -> None:
    computer.up(2)
    first = machines(computer)[0]["identity"]
    starts = computer.lab("exec", "m1", "--", "cat", "/var/lib/magik/starts").stdout
    assert f"{first}@10.202.0.10:4001" in starts
    assert "bootstrap" not in computer.lab("exec", "m0", "--", "cat", "/var/lib/magik/starts").stdout
    computer.lab("kill", "m0")
    computer.lab("start", "m0")
    again = computer.lab("exec", "m0", "--", "tail", "-n1", "/var/lib/magik/starts").stdout
    assert f"{machines(computer)[1]['identity']}@10.202.0.11:4001" in again
    computer.lab("down")


def test_partition_and_heal(computer: Any) -> None:
    computer.up(3)
    addresses = [f"10.202.0.{10 + index}" for index in range(3)]
    computer.lab("partition", "m0,m1", "m2")
    assert ask(computer, "m0", addresses[1]) == "m1"
    assert ask(computer, "m0", addresses[2]) == "TimeoutError"
    assert ask(computer, "m2", addresses[0]) == "TimeoutError"
    assert computer.python(_ASK.format(address=addresses[2], port=6443)) == "m2"

    computer.lab("kill", "m2")
    computer.lab("start", "m2")  # still parted
    assert ask(computer, "m2", addresses[1]) == "TimeoutError"

    computer.lab("partition", "m0", "m1")  # m2 in neither
    assert ask(computer, "m2", addresses[0]) == "m0"
    assert ask(computer, "m1", addresses[0]) == "TimeoutError"
    computer.lab("heal")
    assert ask(computer, "m1", addresses[0]) == "m0"
    computer.lab("down")


def test_machines_behind_nat_reach_others_and_only_their_api_is_reached(computer: Any) -> None:
    before = computer.everything()
    computer.lab("up", "--machines", "3", "--nat", "m1", "--nat-symmetric", "m2", "--program", _program())
    assert [machine["nat"] for machine in machines(computer)] == [None, "cone", "symmetric"]
    addresses = [f"10.202.0.{10 + index}" for index in range(3)]
    for index, address in enumerate(addresses):
        for asker in ("m0", "m1", "m2"):
            if asker != f"m{index}":
                assert ask(computer, asker, address) == f"m{index}"
        assert computer.python(_ASK.format(address=address, port=6443)) == f"m{index}"
    assert ask(computer, "m0", "10.200.1.2") in ("TimeoutError", "OSError")
    for listener, asker, said in (("m0", "m1", "m0"), ("m1", "m0", "TimeoutError")):
        listen(computer, listener, 7000)
        assert ask(computer, asker, addresses[int(listener[1])], 7000) == said
    assert "localhost" in computer.lab("kubeconfig", "m1").stdout
    computer.lab("kill", "m1")
    assert ask(computer, "m0", addresses[1]) in ("TimeoutError", "OSError")
    computer.lab("start", "m1")
    assert ask(computer, "m1", addresses[0]) == "m0"  # this tells m0 the new router's link address
    assert ask(computer, "m0", addresses[1]) == "m1"
    computer.lab("down")
    assert computer.everything() == before


def test_pause_and_resume(computer: Any) -> None:
    computer.up(2, "--pod")
    assert "2 processes stopped" in computer.lab("pause", "m1").stderr
    assert conditions(computer)[1] == "paused"
    states = computer.lab("exec", "m1", "--", "ps", "-eo", "stat=").stdout.split()
    assert [state[0] for state in states] == ["S", "T", "T", "R"]
    computer.lab("resume", "m1")
    assert conditions(computer)[1] == "running"
    computer.lab("down")


def test_images_reach_every_machine_and_kubeconfig_names_its_server(computer: Any) -> None:
    computer.up(2)
    computer.run("sh", "-c", "echo content > /var/lib/image.tar")
    computer.lab("image", "import", "/var/lib/image.tar", "--ref", "x:1")
    for name in ("m0", "m1"):
        assert (
            computer.lab("exec", name, "--", "cat", "/var/lib/magik/imported").stdout == "content\n--ref x:1"
        )
    hidden = computer.lab("image", "import", "/run/netns", check=False)
    assert hidden.returncode == 1 and "copy it elsewhere" in hidden.stderr
    assert computer.lab("kubeconfig").stdout.split()[-1] == "https://10.202.0.10:6443"
    assert computer.lab("kubeconfig", "m1").stdout.split()[-1] == "https://10.202.0.11:6443"
    computer.lab("down")


def test_two_labs_live_side_by_side_and_end_apart(computer: Any) -> None:
    before = computer.everything()
    computer.up(1)
    other = computer.lab("up", "--name", computer.name + "-other", "--machines", "1", "--program", _program())
    assert "10.202.1.10" in other.stdout
    assert "already" in computer.lab("up", check=False).stderr
    computer.lab("down")
    assert computer.lab(
        "exec", "--name", computer.name + "-other", "m0", "--", "test", "-f", "/var/lib/magik/key"
    )
    computer.lab("down", "--name", computer.name + "-other")
    assert computer.everything() == before


def test_names_that_others_use_are_left_alone(computer: Any) -> None:
    computer.run("sh", "-c", f"mkdir -p /run/netns; touch /run/netns/{computer.name}-m1")
    before = computer.everything()
    failed = computer.lab("up", "--program", _program(), check=False)
    assert failed.returncode == 1
    assert f"/run/netns/{computer.name}-m1 is there and is not of this lab" in failed.stderr
    assert computer.everything() == before


def test_a_daemon_that_fails_is_quoted_and_all_is_undone(computer: Any) -> None:
    before = computer.everything()
    failed = computer.lab("up", "--program", _program(), "--", "--die", "m1", check=False)
    assert failed.returncode == 1
    assert "machine m1: its daemon ended before it was ready" in failed.stderr
    assert "stand-in: told to die" in failed.stderr
    assert computer.everything() == before


def test_a_daemon_that_is_never_ready_is_given_up_in_time(computer: Any) -> None:
    before = computer.everything()
    failed = computer.lab("up", "--timeout", "0.5", "--program", _program(), "--", "--mute", check=False)
    assert failed.returncode == 1
    assert "machine m0: its daemon was not ready within 0.5 s" in failed.stderr
    assert computer.everything() == before


@pytest.mark.parametrize("damage", ["kill -9 $(pgrep -f magik-lab-init)", "rm /var/lib/magik-lab/*/lab.json"])
def test_down_works_on_what_is_left_of_a_lab(computer: Any, damage: str) -> None:
    before = computer.everything()
    computer.up(2, "--pod")
    computer.run("sh", "-c", damage, check=False)
    computer.lab("down")
    assert computer.everything() == before
