"""The monitor's side of a process in a guest."""

import subprocess
import sys

ENDED = """
import socket, sys
from machineplane.runtime.krun import client
from magik_proto import guest as wire
ours, theirs = socket.socketpair()
for kind, payload in ((wire.STARTED, b""), (wire.STDOUT, b"all\\n"), (wire.EXIT, bytes([7])))[:int(sys.argv[1])]:
    theirs.sendall(wire.frame(kind, payload))
theirs.close()
try:
    sys.exit(client.Client(ours, {"env": []}).run(client.signal_pipe()))
except client.Lost:
    sys.exit(99)
"""


def ended(frames: int) -> tuple[int, bytes]:
    """What a client makes of a guest that said so many frames and went, before it took what the client had to say."""
    command = [sys.executable, "-c", ENDED, str(frames)]
    done = subprocess.run(command, input=b"nobody reads this", capture_output=True, timeout=60)
    return done.returncode, done.stdout


def test_what_a_process_said_is_read_though_it_takes_nothing_any_more() -> None:
    assert ended(3) == (7, b"all\n")


def test_a_guest_that_goes_without_an_exit_code_is_lost() -> None:
    assert ended(2) == (99, b"all\n")
