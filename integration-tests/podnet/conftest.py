"""A network namespace of the test's own to be the machine, entered by the test's process for as long as it
runs.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from machineplane.linux import libc

_HOLD = "import signal; print(flush=True); signal.pause()"


def _await_threads() -> None:
    """Trio keeps its worker threads for ten seconds, and each stays in the namespace that it was made in."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(15)


@pytest.fixture(scope="module")
def machine() -> Iterator[None]:
    """This process is in a fresh network namespace, and so are the threads that it makes: until the module's end only."""
    _await_threads()
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    libc.unshare(libc.CLONE_NEWNET)
    try:
        yield
    finally:
        libc.setns(before, libc.CLONE_NEWNET)
        os.close(before)
        _await_threads()


@pytest.fixture
def pod() -> Iterator[Callable[[], "subprocess.Popen[str]"]]:
    """Makes processes with a network namespace each, as infra containers are."""
    made: list[subprocess.Popen[str]] = []

    def make() -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-ISc", _HOLD], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        made.append(process)
        return process

    yield make
    for process in made:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def links() -> Callable[[], set[str]]:
    return lambda: {
        line.split(":")[0].strip() for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    }
