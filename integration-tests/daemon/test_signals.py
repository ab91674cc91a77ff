"""How a daemon ends: soon, with status 0, at any moment, and without its pods."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from daemon_support import BIN, Daemon, is_alive, wait_for

Start = Callable[..., Daemon]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_soon_and_well(start: Start, number: signal.Signals) -> None:
    daemon = start()
    daemon.ready()
    status, seconds = daemon.signal(number)
    assert status == 0 and seconds < 5
    assert "Traceback" not in daemon.stderr
    assert [e["signal"] for e in daemon.events("stopping")] == [number.name]


@pytest.mark.parametrize("event", ["fabric-founded", "runtime-unavailable"])
def test_a_signal_while_it_starts(start: Start, event: str) -> None:
    daemon = start()
    wait_for(event, lambda: daemon.log.exists() and event in daemon.stderr)
    status, seconds = daemon.signal(signal.SIGTERM)
    assert status == 0 and seconds < 5
    assert "Traceback" not in daemon.stderr, daemon.stderr


def test_a_signal_at_any_moment_of_its_start(start: Start) -> None:
    """What may be left unsaid is the status of a program that has not even begun to load."""
    for step in range(8):
        daemon = start(name=f"d{step}")
        time.sleep(0.2 + 0.2 * step)
        status, seconds = daemon.signal(signal.SIGTERM)
        assert status in (0, -signal.SIGTERM) and seconds < 5
        assert "Traceback" not in daemon.stderr, daemon.stderr


def test_a_stale_ready_file_is_not_taken_for_ready(start: Start) -> None:
    daemon = start()
    daemon.ready()
    daemon.signal(signal.SIGTERM)
    again = start("--rest-api-host", "192.0.2.77")
    again.ended()
    assert not (again.run / "machineplane.json").exists()


def test_pods_run_on_and_a_new_daemon_finds_them(start: Start, tmp_path: Path) -> None:
    image = tmp_path / "busybox.tar"
    subprocess.run([sys.executable, "-m", "machineplane.runtime.images.make", "busybox", image], check=True)
    first = start()
    first.ready()
    subprocess.run(
        [BIN / "machineplane", "image", "import", image, "--state-dir", first.state],
        check=True,
        capture_output=True,
    )
    container = {"name": "main", "image": "localhost/busybox:latest", "command": ["sleep", "1000000"]}
    obj = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stays"},
        "spec": {"containers": [container]},
    }
    assert first.call("POST", "/api/v1/namespaces/default/pods", json.dumps(obj).encode())[0] == 201
    path = "/api/v1/namespaces/default/pods/stays"

    def running(daemon: Daemon) -> Any:
        status, found = daemon.call("GET", path)
        return found if status == 200 and found["status"]["phase"] == "Running" else None

    before = wait_for("the pod runs", lambda: running(first))
    # The pod's network namespace is reached from the daemon's: a process stays in it for the next daemon.
    keeper = subprocess.Popen(["nsenter", f"--net=/proc/{first.pid}/ns/net", "sleep", "600"])
    try:
        time.sleep(0.2)
        status, seconds = first.signal(signal.SIGTERM)
        assert status == 0 and seconds < 5
        shims = [int(p) for p in _processes_of(before["metadata"]["uid"])]
        assert shims and all(is_alive(p) for p in shims)
        second = start(netns=keeper.pid)
        second.ready()
        after = wait_for("the pod is found", lambda: running(second))
        for key in ("uid", "creationTimestamp"):
            assert after["metadata"][key] == before["metadata"][key]
        assert (
            after["status"]["containerStatuses"][0]["containerID"]
            == before["status"]["containerStatuses"][0]["containerID"]
        )
        second.call("DELETE", f"{path}?gracePeriodSeconds=0")
        wait_for("the pod is gone", lambda: second.call("GET", path)[0] == 404)
        assert second.signal(signal.SIGTERM)[0] == 0
    finally:
        keeper.kill()
        keeper.wait()


def _processes_of(uid: str) -> list[str]:
    """Processes that name the pod in their command line or control group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "cmdline").read_bytes() + (folder / "cgroup").read_bytes()
        except OSError:
            continue
        if uid.encode() in text:
            found.append(folder.name)
    return found
