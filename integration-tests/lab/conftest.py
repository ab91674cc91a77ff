"""A computer of its own for each test of the lab: private mounts, network and process ids, so that all can be
compared.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Control groups are the whole computer's: they must not be those of a lab that is up there.
LAB = f"t{os.getpid()}"
STAND_IN = f"{sys.executable} {HERE / 'stand_in.py'}"

_HOLD = """
import subprocess, sys
from machineplane.lab.box import forget_namespaces
from machineplane.linux import libc
forget_namespaces()
for path in ("/run", "/var/lib"):
    libc.mount("tmpfs", path, "tmpfs", 0, "size=256m")
from pyroute2 import IPRoute
with IPRoute() as handle:
    handle.link("set", index=1, state="up")
sys.stdout.write("ready\\n")
sys.stdout.flush()
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
sys.stdin.read()
"""


class Computer:
    """Namespaces in which the tests' commands run."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.name = LAB

    def run(self, *words: str, check: bool = True, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
        enter = ["nsenter", "--mount", "--net", "--pid", "--target", str(self.pid), "--"]
        return subprocess.run([*enter, *words], check=check, timeout=timeout, text=True, capture_output=True)

    def python(self, code: str) -> str:
        return self.run(sys.executable, "-c", code).stdout.strip()

    def lab(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        command = 2 if words[0] == "image" else 1
        words = (*words[:command], "--name", LAB, *words[command:]) if "--name" not in words else words
        done = self.run(
            sys.executable, "-c", "from machineplane.lab.cli import lab; lab()", *words, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def up(self, count: int, *options: str) -> "subprocess.CompletedProcess[str]":
        return self.lab("up", "--machines", str(count), "--json", "--program", STAND_IN, "--", *options)

    def everything(self) -> dict[str, list[str]]:
        """What a lab could leave behind."""
        look = {
            "processes": "ps -eo args= | grep -v -e ^ps -e ^sh -e ^grep",
            "mounts": "cut -d' ' -f4- /proc/self/mountinfo",
            "namespaces": "lsns -n -o TYPE,COMMAND | grep -v -e lsns -e 'sh -c'",
            "links": "cat /proc/net/dev | cut -d: -f1; cat /proc/net/route",
            "rules": "nft list ruleset",
            "groups": f"find /sys/fs/cgroup -type d -path '*magik-{LAB}*'",
            "files": "find /run /var/lib",
        }
        return {
            kind: sorted(self.run("sh", "-c", line, check=False).stdout.splitlines())
            for kind, line in look.items()
        }


@pytest.fixture
def computer() -> Iterator[Computer]:
    unshare = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--propagation", "private"]
    holder = subprocess.Popen(
        [*unshare, sys.executable, "-c", _HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert holder.stdout.readline() == "ready\n"
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
        yield Computer(int(children[0]))
    finally:
        holder.stdin.close()
        holder.wait(10)
        holder.stdout.close()
        for group in sorted(
            Path("/sys/fs/cgroup").rglob(f"magik-{LAB}*/**/"), reverse=True
        ):  # of a test that failed
            group.rmdir()
