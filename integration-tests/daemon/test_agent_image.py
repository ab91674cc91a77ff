"""The agent's image that came with the installation is in the store of a daemon that has started."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from daemon_support import BIN, Daemon

from machineplane.runtime.images.agent import AGENT_REF, Baked
from machineplane.runtime.images.store import machine_architecture

Start = Callable[..., Daemon]


def test_a_daemon_brings_it_once_and_keeps_it(start: Start) -> None:
    baked = Baked.find(machine_architecture())
    assert baked is not None, "no agent's image here: bake it by `python scripts/workplane_image`"
    first = start()
    first.ready()
    assert [event["image"] for event in first.events("agent-image")] == [AGENT_REF]
    listed = run("image", "ls", "--state-dir", str(first.state))
    assert any(AGENT_REF in line and baked.digest[:19] in line for line in listed.splitlines())
    first.signal(signal.SIGTERM)
    again = start()
    again.ready()
    assert len(again.events("agent-image")) == 1  # that of before: the log goes on
    assert not again.events("no-agent-image")
    assert baked.digest[:19] in run("check", "--state-dir", str(first.state), "--run-dir", str(first.run))


def run(*words: str) -> str:
    return subprocess.run([BIN / "machineplane", *words], capture_output=True, text=True).stdout


def test_a_store_without_room_does_not_keep_a_daemon_from_starting(start: Start, tmp_path: Path) -> None:
    store = tmp_path / "full" / "s" / "images"
    store.mkdir(parents=True)
    daemon = start(name="full", setup=f"mount -t tmpfs -o size=2m none {store}")
    daemon.ready()
    (said,) = daemon.events("agent-image-failed")
    assert "No space left" in said["error"]
