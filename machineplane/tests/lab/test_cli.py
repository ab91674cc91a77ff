"""What the lab's commands say before anything is touched."""

import os

import pytest
from click.testing import CliRunner

from machineplane.lab import cli, fabric
from machineplane.lab.cli import lab
from machineplane.linux import nft

COMMANDS = {
    "up", "down", "ls", "exec", "image", "kill", "start", "pause", "resume", "partition", "heal", "kubeconfig",
}  # fmt: skip


def test_the_commands_are_all_there_and_each_takes_a_name() -> None:
    assert set(lab.commands) == COMMANDS
    for command in [*lab.commands.values(), cli.image.commands["import"]]:
        if command is not cli.image:
            assert "--name" in [option for each in command.params for option in each.opts]


@pytest.mark.parametrize(
    "words", [["up"], ["down"], ["ls"], ["exec", "m0", "--", "true"], ["kill", "m0"], ["heal"]]
)
def test_without_root_there_is_one_line(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(lab, words)
    assert result.exit_code == 1
    assert result.output == "Error: a lab needs root, for namespaces and interfaces: run it with sudo\n"


def test_without_libnftables_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(nft, "LIBRARY", "libnftables-not-there.so")
    nft._library.cache_clear()
    try:
        result = CliRunner().invoke(lab, ["ls"])
    finally:
        nft._library.cache_clear()
    assert result.exit_code == 1
    assert "libnftables-not-there.so cannot be loaded" in result.output
    assert "apt-get install libnftables1" in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", "--name", "No"], "lab name 'No' is not one"),
        (["up", "--machines", "0"], "a lab has 1 to 99 machines, not 0"),
        (["up", "--nat", "m1,m7"], "there is no machine m7 in this lab: it has m0, m1, m2"),
        (["up", "--nat", "m1", "--nat-symmetric", "m2,m1"], "machine m1 is named twice"),
        (["up", "--nat", "m0"], "m0 is the machine that the others join by"),
        (["ls", "--name", "none-such"], "there is no lab named none-such: make one with"),
        (["exec", "--name", "none-such", "m0", "true"], "there is no lab named none-such"),
        (["kill", "--name", "none-such", "m0"], "there is no lab named none-such"),
        (["kubeconfig", "--name", "../x"], "lab name '../x' is not one"),
    ],
)
def test_bad_input_is_one_line(monkeypatch: pytest.MonkeyPatch, words: list[str], said: str) -> None:
    monkeypatch.setattr(fabric, "check_computer", lambda: None)
    monkeypatch.setattr(cli, "lab_names", list)
    result = CliRunner().invoke(lab, words)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: {said}") and len(result.output.splitlines()) == 1
