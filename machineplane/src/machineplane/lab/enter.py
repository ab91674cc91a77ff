"""Run a command inside a lab machine.

As a program (``python -m machineplane.lab.enter [--detach LOG] INIT -- COMMAND…``) it serves callers with
threads: joining a namespace of process ids takes a fork, and joining one of mounts takes a process with one
thread.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from machineplane.lab.errors import LabError
from machineplane.linux import libc

# The mounts come last: the paths of the others are of the computer's own /proc.
_KINDS = ("ipc", "uts", "net", "pid", "mnt")
NOT_FOUND = 127  # what a shell answers
NOT_EXECUTABLE = 126
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)
_TERMINAL = (signal.SIGINT, signal.SIGQUIT)  # these reach the command from the terminal itself


def join(init: int) -> None:
    """Move this process (of one thread) into the namespaces of ``init``; for process ids, its next children."""
    directory = os.getcwd()
    try:
        descriptors = [os.open(f"/proc/{init}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in _KINDS]
    except OSError as error:
        raise LabError(
            f"the machine of process {init} has gone off ({error.strerror}): start it again"
        ) from error
    for descriptor in descriptors:
        libc.setns(descriptor)
        os.close(descriptor)
    try:
        os.chdir(directory)
    except OSError:  # the machine does not see it
        os.chdir("/")


def run(init: int, command: Sequence[str]) -> int:
    """Run ``command`` inside with this process's standard streams; its exit status, as a shell would give it."""
    join(init)
    child = os.fork()
    if child == 0:
        _execute(command)
    for number in _FORWARDED:
        signal.signal(number, lambda number, frame: os.kill(child, number))
    for number in _TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def spawn(init: int, command: Sequence[str], log: Path) -> int:
    """Start ``command`` inside, its output appended to ``log``; its process id as the machine sees it.

    It becomes a child of ``init``: its first parent is inside too, and ends at once.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    join(init)
    readable, writable = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.setsid()
        if (child := os.fork()) == 0:
            _redirect(output)
            _execute(command)
        os.write(writable, str(child).encode())
        os._exit(0)
    os.close(writable)
    os.waitpid(parent, 0)
    with os.fdopen(readable) as pipe:
        return int(pipe.read())


def _redirect(output: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)


def _execute(command: Sequence[str]) -> None:
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


def main(arguments: list[str]) -> int:
    """The program: prints the process id for ``--detach``, else ends with the command's status."""
    log = Path(arguments[1]) if arguments[0] == "--detach" else None
    init, _, *command = arguments[2:] if log else arguments
    if log is None:
        return run(int(init), command)
    print(spawn(int(init), command, log))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (LabError, OSError) as error:
        sys.exit(str(error))
