"""A StatefulSet of three on lab machines, under partition, SIGSTOP and kill: never two holders, and soon a leader.

Each pod's app writes with its token, as the file tells it, to one storage that all share and that checks tokens. The
tests look from outside, at the door of each agent: all clocks are this computer's. MAGIK_LEADERSHIP_MINUTES=10 makes it
longer.
"""

import http.client
import json
import os
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from lab_support import Lab, deployment, running_lab, wait_for

MINUTES = float(os.environ.get("MAGIK_LEADERSHIP_MINUTES", "0.7"))
LEASE_S = 3.0
MARK = "a-writer-of-the-leadership-test"
SCRIPT = f"""
: {MARK}
while :; do
  said=$(cat /run/magik/app/leader 2>/dev/null)
  case "$said" in *'"role": "leader"'*)
    token=${{said##*token\\": \\"}}; token=${{token%%\\"*}}
    echo "$token" > /write.new && mv /write.new /write;;
  esac
  sleep 0.05
done
"""


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from running_lab("itestl", 4, tmp_path_factory.mktemp("leadership"))


def processes(word: str) -> list[int]:
    """Of this computer, whose command line has `word`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if word.encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended
    return found


def pods_here() -> dict[str, Path]:
    """The app folders of the writers, by pod and file system: a pod that is made again while it lives on is there twice."""
    found = {}
    for pid in processes(MARK):
        root = Path(f"/proc/{pid}/root")
        try:
            name = (root / "etc/hostname").read_text().strip()
            folder = root / "run/magik/app"
            device = folder.stat().st_dev
        except OSError:
            continue
        found[f"{name}/{device}"] = folder
    return found


class Local(http.client.HTTPConnection):
    """HTTP to an agent's Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("agent", timeout=0.5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(0.5)
        self.sock.connect(str(self._path))


def ask(folder: Path) -> dict[str, Any] | None:
    """What an agent says of its leadership; None if it does not answer (it is stopped, dead, or not there yet)."""
    connection = Local(folder / "agent.sock")
    try:
        connection.request("GET", "/v1/leader")
        return dict(json.loads(connection.getresponse().read()))
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def numbers(token: str) -> tuple[int, int]:
    generation, _, term = token.partition(".")
    return int(generation), int(term)


@define
class Watch:
    """Who held a lease when: of each token the time from after the first answer that said so until before the last one."""

    held: dict[tuple[str, tuple[int, int]], list[float]] = field(factory=dict)
    highest: tuple[int, int] = (0, 0)
    accepted: int = 0
    refused: int = 0

    def look(self) -> str | None:
        """Ask all; the pod that leads now."""
        leader = None
        for name, folder in pods_here().items():
            before = time.monotonic()
            said = ask(folder)
            after = time.monotonic()
            if said and said["token"]:
                window = self.held.setdefault((name, numbers(said["token"])), [after, after])
                window[1] = max(window[0], before)
                leader = name
            self.write(folder)
        return leader

    def write(self, folder: Path) -> None:
        """The storage: the app's write is taken unless its token is lower than one before."""
        try:
            token = numbers((folder.parents[2] / "write").read_text().strip())
            (folder.parents[2] / "write").unlink()
        except (OSError, ValueError):
            return
        if token < self.highest:
            self.refused += 1
        else:
            self.highest, self.accepted = token, self.accepted + 1

    def check(self) -> None:
        """No two held at one time, and tokens rose with time."""
        ordered = sorted(self.held.items(), key=lambda item: item[1])
        for (who, token), (_, end) in ordered:
            for (other, later), (begin, _) in ordered:
                if begin > end:
                    assert later > token, f"{other} has {later} after {who} had {token}"
        for index, ((who, token), (_, end)) in enumerate(ordered):
            for (other, later), (begin, _) in ordered[index + 1 :]:
                assert begin >= end, f"{who} ({token}) and {other} ({later}) held a lease at one time"

    def until_led(self, seconds: float, but: str = "") -> str:
        """Until somebody leads who is not `but`."""
        deadline = time.monotonic() + seconds
        while (leader := self.look()) is None or leader == but:
            assert time.monotonic() < deadline, f"no leader within {seconds:.0f} s"
            time.sleep(0.05)
        return leader

    def rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.look()
            time.sleep(0.05)


def machine_of(lab: Lab, asked: str, who: str) -> str:
    pod = who.partition("/")[0]
    return str(lab.get(asked, "pod", pod)[0]["spec"]["nodeName"])


def cut(lab: Lab, machine: str) -> Callable[[], object]:
    lab.command("partition", machine)
    return lambda: lab.command("heal")


def pause(lab: Lab, machine: str) -> Callable[[], object]:
    lab.command("pause", machine)
    return lambda: lab.command("resume", machine)


def kill(lab: Lab, machine: str) -> Callable[[], object]:
    lab.command("kill", machine)
    return lambda: lab.command("start", machine)


def test_never_two_lead(machines: Lab) -> None:
    wanted = deployment("db", 3, SCRIPT) | {"kind": "StatefulSet"}
    wanted["spec"] |= {"serviceName": "dbs", "podManagementPolicy": "Parallel"}
    machines.apply("m0", wanted)
    machines.wait_running("m0", "db", 3, 90)
    watch = Watch()
    wait_for("all vote", lambda: (watch.look() or "") and watch.highest >= (1, 1), 90)
    watch.rest(2 * LEASE_S)
    rng = random.Random(int(os.environ.get("MAGIK_SEED", "1")))
    end, took, rounds = time.monotonic() + 60 * MINUTES, [], 0
    commands = []  # seconds that the command took which broke something: in that time it happened
    while rounds < 3 or time.monotonic() < end:
        leader = watch.until_led(90)
        victim = machine_of(machines, "m0", leader)
        what = (cut, pause, kill)[rounds % 3] if rounds < 3 else rng.choice((cut, pause, kill))
        began = time.monotonic()
        undo = what(machines, victim)
        commands.append(round(time.monotonic() - began, 1))
        watch.until_led(60, but=leader)
        took.append((what.__name__, round(time.monotonic() - began, 1)))
        watch.rest(rng.uniform(1.0, 3 * LEASE_S))
        undo()
        wait_for("all are back", lambda: machines.ready_nodes("m0") == set(machines.machines), 60)
        machines.wait_running("m0", "db", 3, 90)
        watch.rest(LEASE_S)
        watch.check()
        rounds += 1
    print(
        "leader after",
        took,
        "of that to break",
        commands,
        "accepted",
        watch.accepted,
        "refused",
        watch.refused,
        file=sys.stderr,
    )
    watch.check()
    assert watch.accepted > 0
    quick = [seconds for _, seconds in took if seconds <= 3 * LEASE_S]
    assert len(quick) * 2 > len(took), f"three leases are {3 * LEASE_S:.0f} s: {took}"
