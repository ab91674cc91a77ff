"""How daemons are started and what is known of them, without starting one."""

import json
import os
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from attrs import evolve

from machineplane.lab import daemons, processes, view
from machineplane.lab.errors import LabError
from machineplane.lab.state import DaemonRecord, LabDir, LabState, MachineState


def machine(index: int, identity: str | None = None, daemon: DaemonRecord | None = None) -> MachineState:
    address, pods = IPv4Address(f"10.202.0.{10 + index}"), IPv4Network(f"10.201.{index}.0/24")
    return MachineState(f"m{index}", address, pods, identity, daemon)


def own_record() -> DaemonRecord:
    process = processes.look(os.getpid())
    assert process is not None
    return DaemonRecord(process.pid, process.started)


def lab(tmp_path: Path) -> LabDir:
    made = LabDir.of("x", tmp_path)
    made.path.mkdir()
    made.make_machine("m0")
    return made


def test_a_command_line_names_all_that_is_the_machines_own_and_ends_with_the_users_options() -> None:
    words = daemons.command(("prog", "-x"), "lab", machine(1), ("--runtime", "crun"), ("ab@1.2.3.4:4001",))
    assert words[:2] == ("prog", "-x")
    assert words[-4:] == ("--bootstrap-peer", "ab@1.2.3.4:4001", "--runtime", "crun")
    pairs = dict(zip(words[2::2], words[3::2], strict=True))
    assert pairs["--node-name"] == "m1"
    assert pairs["--mesh-host"] == pairs["--rest-api-host"] == "10.202.0.11"
    assert pairs["--pod-subnet"] == "10.201.1.0/24"
    assert pairs["--cgroup-parent"] == "magik-lab-m1"


def test_a_machine_behind_nat_listens_inside_and_is_nobody_s_way_in() -> None:
    hidden = evolve(machine(1, "11"), nat="cone", inside=IPv4Network("10.200.1.0/24"))
    words = daemons.command(("prog",), "lab", hidden, (), ())
    assert words[words.index("--mesh-host") + 1] == words[words.index("--rest-api-host") + 1] == "10.200.1.2"
    assert daemons.api_url(hidden) == "https://10.202.0.11:6443"
    assert daemons.bootstrap_for("m2", [machine(0, "00"), hidden, machine(2)]) == ("00@10.202.0.10:4001",)


def test_machines_join_by_those_that_were_ready_and_run() -> None:
    running = machine(3, "33", DaemonRecord(1, 1))
    known = [machine(0, "00"), machine(1), machine(2, "22"), running, machine(4, "44")]
    assert daemons.bootstrap_for("m0", known) == (
        "33@10.202.0.13:4001",
        "22@10.202.0.12:4001",
        "44@10.202.0.14:4001",
    )
    assert daemons.bootstrap_for("m0", known[:2]) == ()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"identity": "a"}'])
def test_what_is_no_ready_file_is_not_ready(tmp_path: Path, text: str) -> None:
    directory = lab(tmp_path)
    assert daemons.read_ready(directory, "m0") is None
    (directory.run_dir("m0") / "machineplane.json").write_text(text)
    assert daemons.read_ready(directory, "m0") is None


async def test_a_daemon_is_awaited_until_it_is_ready(tmp_path: Path, autojump_clock: object) -> None:
    directory = lab(tmp_path)
    with pytest.raises(
        LabError, match=r"machine m0: its daemon was not ready within 30 s, and it printed nothing"
    ):
        await daemons.wait_ready(directory, "m0", own_record(), 30)
    text = json.dumps({"identity": "ab", "mesh": "1.2.3.4:1", "api": "https://1.2.3.4:6443", "pid": 1})
    (directory.run_dir("m0") / "machineplane.json").write_text(text)
    assert await daemons.wait_ready(directory, "m0", own_record(), 30) == daemons.Ready(
        "ab", "1.2.3.4:1", "https://1.2.3.4:6443"
    )


async def test_a_daemon_that_ended_is_quoted(tmp_path: Path) -> None:
    directory = lab(tmp_path)
    directory.log("m0").write_text("".join(f"line {number}\n" for number in range(100)))
    gone = DaemonRecord(os.getpid(), 1)  # the number has gone to another process
    with pytest.raises(LabError, match="ended before it was ready") as caught:
        await daemons.wait_ready(directory, "m0", gone, 30)
    assert str(caught.value).splitlines()[1:] == [f"  line {number}" for number in range(85, 100)]


def test_a_daemon_is_alive_only_under_its_own_start_time() -> None:
    assert daemons.is_alive(own_record())
    assert not daemons.is_alive(DaemonRecord(os.getpid(), 1))
    assert not daemons.is_alive(None)


def test_what_is_told_of_a_lab() -> None:
    state = LabState(
        "x", IPv4Network("10.202.0.0/24"), ("p",), (), (machine(0, "ab" * 32, own_record()), machine(1))
    )
    assert view.describe(state) == {
        "name": "x",
        "machines": [
            {
                "name": "m0",
                "identity": "ab" * 32,
                "mesh": "10.202.0.10:4001",
                "api": "https://10.202.0.10:6443",
                "pid": os.getpid(),
                "netns": "x-m0",
                "nat": None,
            },
            {
                "name": "m1",
                "identity": None,
                "mesh": "10.202.0.11:4001",
                "api": "https://10.202.0.11:6443",
                "pid": None,
                "netns": "x-m1",
                "nat": None,
            },
        ],
    }
