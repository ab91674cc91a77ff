"""What a lab keeps on disk."""

import os
import threading
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from attrs import evolve

from machineplane.lab.errors import LabError, NoSuchLab, NoSuchMachine
from machineplane.lab.state import DaemonRecord, LabDir, LabState, MachineState, lab_names, locked

STATE = LabState(
    name="x",
    subnet=IPv4Network("10.202.0.0/24"),
    program=("machineplane",),
    options=("--runtime", "crun"),
    machines=(
        MachineState(
            "m0", IPv4Address("10.202.0.10"), IPv4Network("10.201.0.0/24"), "ab" * 32, DaemonRecord(7, 99)
        ),
        MachineState("m1", IPv4Address("10.202.0.11"), IPv4Network("10.201.1.0/24")),
        MachineState(
            "m9",
            IPv4Address("10.202.0.19"),
            IPv4Network("10.201.9.0/24"),
            nat="cone",
            inside=IPv4Network("10.200.9.0/24"),
        ),
    ),
    groups=(frozenset({"m0"}), frozenset({"m1"})),
)


def quiet(text: str) -> None:
    raise AssertionError(text)


def lab(tmp_path: Path) -> LabDir:
    made = LabDir.of("x", tmp_path)
    made.path.mkdir()
    return made


def test_state_survives_writing_and_reading(tmp_path: Path) -> None:
    directory = lab(tmp_path)
    directory.save(STATE)
    assert directory.load() == STATE
    assert [entry.name for entry in directory.path.iterdir()] == ["lab.json"]
    assert directory.path.joinpath("lab.json").stat().st_mode & 0o077 == 0


def test_one_machine_changes_alone() -> None:
    changed = STATE.with_machine(evolve(STATE.machine("m1"), identity="cd" * 32))
    assert changed.machine("m1").identity == "cd" * 32
    assert changed.machine("m0") == STATE.machine("m0")
    with pytest.raises(NoSuchMachine):
        STATE.machine("m2")


def test_no_lab_and_a_damaged_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NoSuchLab, match="no lab named x"):
        LabDir.of("x", tmp_path).load()
    directory = lab(tmp_path)
    for text in ("{", "[]", '{"version": 2}'):
        (directory.path / "lab.json").write_text(text)
        with pytest.raises(LabError, match="lab down --name x"):
            directory.load()


def test_power_failure_empties_run_but_not_the_disk(tmp_path: Path) -> None:
    directory = lab(tmp_path)
    directory.make_machine("m0")
    (directory.run_dir("m0") / "socket").touch()
    (directory.state_dir("m0") / "key").touch()
    directory.make_machine("m0")
    assert list(directory.run_dir("m0").iterdir()) == []
    assert [entry.name for entry in directory.state_dir("m0").iterdir()] == ["key"]


def test_labs_are_listed_half_made_ones_too(tmp_path: Path) -> None:
    assert lab_names(tmp_path / "none") == []
    lab(tmp_path)
    (tmp_path / ".made.json").touch()
    assert lab_names(tmp_path) == ["x"]


def test_a_lock_is_held_until_the_end(tmp_path: Path) -> None:
    entered, order = threading.Event(), list[str]()

    def second() -> None:
        entered.set()
        with locked(tmp_path, lambda text: None):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path, quiet):
        thread.start()
        entered.wait(5)
        thread.join(0.1)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_a_lock_on_a_lab_that_was_removed_meanwhile_is_none(tmp_path: Path) -> None:
    directory = lab(tmp_path)
    entered, errors = threading.Event(), list[BaseException]()

    def second() -> None:
        entered.set()
        try:
            with locked(directory.path, lambda text: None):
                raise AssertionError("locked what is gone")
        except (NoSuchLab, AssertionError) as error:
            errors.append(error)

    thread = threading.Thread(target=second)
    with locked(directory.path, quiet):
        thread.start()
        entered.wait(5)
        thread.join(0.1)
        os.rmdir(directory.path)
    thread.join(5)
    assert [type(error) for error in errors] == [NoSuchLab]
