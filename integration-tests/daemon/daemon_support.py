"""One real daemon in network and mount namespaces of its own, so that its ports and links are nobody else's."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx

from machineplane.linux.netns import in_netns

BIN = Path(sys.executable).parent
T = TypeVar("T")

# As nobody, but able to read this Python wherever it is installed.
AS_NOBODY = (
    "setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps -all,+dac_read_search "
    "--ambient-caps -all,+dac_read_search --bounding-set -all,+dac_read_search"
)


def wait_for(what: str, attempt: Callable[[], T], seconds: float = 30) -> T:
    """Poll until ``attempt`` gives something true."""
    deadline = time.monotonic() + seconds
    while not (found := attempt()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.02)
    return found


class Daemon:
    """``setup``: shell commands that run in the namespaces first. Standard error is kept in a file."""

    def __init__(
        self, folder: Path, *options: str, setup: str = "", prefix: str = "", netns: int = 0
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.state, self.run, self.log = folder / "s", folder / "r", folder / "log"
        self.cgroup = f"magik-itest-{folder.name}"
        own = ("--state-dir", self.state, "--run-dir", self.run, "--cgroup-parent", self.cgroup)
        words = shlex.join(str(w) for w in (BIN / "machineplane", *own, *options))
        script = f"ip link set lo up; {setup or ':'}; exec {prefix} {words}"
        spaces = ["unshare", "--mount", "--propagation", "private"]
        spaces = ["nsenter", f"--net=/proc/{netns}/ns/net", *spaces] if netns else [*spaces, "--net"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*spaces, "sh", "-ec", script], stdin=subprocess.DEVNULL, stderr=log
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stderr(self) -> str:
        return self.log.read_text()

    def ready(self) -> dict[str, Any]:
        """Wait until it serves; what it says of itself."""
        file = self.run / "machineplane.json"

        def attempt() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.stderr}"
            return file.exists() and json.loads(file.read_text())["pid"] == self.pid

        wait_for("ready", attempt)
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        """Lines of the log with this event."""
        lines = [json.loads(line) for line in self.stderr.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def ended(self, seconds: float = 30) -> int:
        return self.process.wait(seconds)

    def refuses(self) -> str:
        """It ends with status 1 and one plain line beside its log, which is returned."""
        assert self.ended() == 1, self.stderr
        assert "Traceback" not in self.stderr, self.stderr
        plain = [line for line in self.stderr.splitlines() if not line.startswith("{")]
        assert len(plain) == 1 and plain[0].startswith("machineplane: "), self.stderr
        return plain[0]

    def signal(self, number: signal.Signals) -> tuple[int, float]:
        """Send a signal; the exit status and how many seconds the end took."""
        start = time.monotonic()
        self.process.send_signal(number)
        return self.ended(), time.monotonic() - start

    def call(self, method: str, path: str, body: bytes = b"", content: str = "application/json") -> Any:
        """A request to the plain port from inside: the HTTP status and the decoded answer."""
        url = f"http://127.0.0.1:3000{path}"
        headers = {"Content-Type": content} if body else {}

        def send() -> tuple[int, Any]:
            # This client reads an answer also where the server had enough before all of the body was sent.
            with httpx.Client(trust_env=False, timeout=30) as client:
                answer = client.request(method, url, content=body or None, headers=headers)
                return answer.status_code, answer.json()

        return in_netns(f"/proc/{self.pid}/ns/net", send)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
