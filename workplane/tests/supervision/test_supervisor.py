"""The supervisor as a program, with real programs below it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workplane.supervisor import main


class Supervised:
    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "workplane.supervisor", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def end(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=30)
        return self.process.returncode, out


@pytest.fixture
def supervised() -> Iterator[list[Supervised]]:
    made: list[Supervised] = []
    yield made
    for one in made:
        if one.process.returncode is None:
            os.killpg(one.process.pid, signal.SIGKILL)  # its programs as well: they hold the pipes
        one.process.communicate()


def run(made: list[Supervised], *arguments: str) -> Supervised:
    made.append(Supervised(*arguments))
    return made[-1]


def until(condition: Callable[[], bool]) -> None:
    """Processes of others give no event."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def parent(status: Path) -> int:
    """A process's parent, by its file in /proc."""
    return int(status.read_text().rpartition(")")[2].split()[1])


def waits(name: str) -> tuple[str, ...]:
    """A program that says its name, and again when it is told to end."""
    return (
        "--",
        "sh",
        "-c",
        f"trap 'echo {name} ends; exit 5' TERM; echo {name}; while :; do sleep 0.02; done",
    )


def test_its_code_is_the_apps(supervised: list[Supervised]) -> None:
    assert run(supervised, "--", "sh", "-c", "exit 7").end() == (7, "")
    assert run(supervised, "--", "sh", "-c", "kill -9 $$").end() == (137, "")


def test_sigterm_ends_the_app_and_then_the_others(supervised: list[Supervised]) -> None:
    one = run(supervised, *waits("side"), *waits("app"))
    assert {one.line(), one.line()} == {"side", "app"}
    one.process.send_signal(signal.SIGTERM)
    assert one.end() == (5, "app ends\nside ends\n")


def test_who_ignores_sigterm_is_killed_after_the_grace(supervised: list[Supervised]) -> None:
    stubborn = "trap '' TERM; echo up; while :; do sleep 0.02; done"
    one = run(supervised, "--grace", "0.3", "--", "sh", "-c", stubborn)
    assert one.line() == "up"
    one.process.send_signal(signal.SIGTERM)
    assert one.end()[0] == 137


def test_signals_are_passed_on(supervised: list[Supervised]) -> None:
    one = run(
        supervised,
        "--",
        "sh",
        "-c",
        "trap 'echo heard; exit 3' USR1; echo up; while :; do sleep 0.02; done",
    )
    assert one.line() == "up"
    one.process.send_signal(signal.SIGUSR1)
    assert one.end() == (3, "heard\n")


def test_orphans_are_its_own_and_reaped(supervised: list[Supervised], tmp_path: Path) -> None:
    """Their parent has ended: they are this process's to wait for, else they would stay as zombies."""
    ends = tmp_path / "ends"
    orphan = f"(sh -c 'echo $$; until test -e {ends}; do sleep 0.02; done' &)"
    one = run(supervised, "--", "sh", "-c", f"{orphan}; while :; do sleep 0.02; done")
    status = Path(f"/proc/{int(one.line())}/stat")
    until(lambda: parent(status) == one.process.pid)
    ends.touch()
    until(lambda: not status.exists())


def test_a_program_that_failed_runs_again(supervised: list[Supervised], tmp_path: Path) -> None:
    text = f"test -e {tmp_path}/there && exit 0; touch {tmp_path}/there; exit 1"
    assert run(supervised, "--restart", "on-failure", "--", "sh", "-c", text).end() == (0, "")


def test_a_program_that_is_not_there_is_told(supervised: list[Supervised]) -> None:
    one = run(supervised, "--", "/no/such/program")
    out, err = one.process.communicate(timeout=30)
    assert (one.process.returncode, out) == (127, "") and "/no/such/program cannot be run" in err


@pytest.mark.parametrize(
    "arguments", [[], ["--"], ["--", "--", "x"], ["--grace", "-1", "--", "x"], ["--restart", "maybe"]]
)
def test_wrong_words_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
