"""Become one virtual machine, and be its program for whoever runs the container: the first process of engine ``krun``.

A program by itself: it is started by its path, isolated, in a container that has Python, attrs, magik_proto, and of this
distribution the modules beside it alone. ``machine.py OPTIONS``; OPTIONS is JSON: ``library``, ``root`` (the folder that is
the guest's ``/``), ``vcpus``, ``memory_mib``, ``init`` (its first program), ``path`` (where modules are imported from), and
``first`` (what the guest's init is told of the app beside its process). What is to run stands in `PROCESS`, as OCI has it.

It ends with the program's exit code; 125 where no machine could be made or its init never answered, and where the machine
went before its program with the machine's own end: 128 + n after signal n.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

NO_MACHINE = 125  # libkrun's init ends with it as well where it cannot set the guest up
PROCESS = "/process.json"
SOCKET = "/run/magik/guest.sock"


class Ended(Exception):
    """The machine has ended by itself; ``code`` says how."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the machine has ended with {code}")
        self.code = code


def become_machine(options: dict[str, Any]) -> None:
    """Set the machine up and enter it; returns only where that fails, and says why."""
    binding, wire = importlib.import_module("binding"), importlib.import_module("magik_proto.guest")
    try:
        plan = binding.VmPlan(
            vcpus=options["vcpus"],
            memory_mib=options["memory_mib"],
            root=options["root"],
            program=options["init"],
            environment={"PATH": "/usr/bin"},
            ports=(binding.VsockPort(wire.PORT, SOCKET, listen=True),),
            tsi=True,
        )
        library = binding.Library(options["library"])
        library.enter(library.configure(plan))
    except (binding.KrunError, OSError) as error:
        print(error, file=sys.stderr, flush=True)


def fork_machine(options: dict[str, Any]) -> int:
    """The machine as a process of its own: nothing of the console is the program's output, but what goes wrong is told."""
    child = os.fork()
    if child:
        return child
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        become_machine(options)
    finally:
        os._exit(NO_MACHINE)


def run(child: int, first: dict[str, Any]) -> int:
    """Have the guest's init run the program, as soon as it answers; the program's exit code. Raises `Ended`."""
    client: Any = importlib.import_module("client")

    def look() -> None:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            raise Ended(code if code >= 0 else 128 - code)

    process = {**json.loads(Path(PROCESS).read_text()), **first, "first": True}
    try:
        return int(client.run(SOCKET, process, client.signal_pipe(signal.SIGCHLD), client.BOOT_S, look))
    except client.Lost as error:
        look()
        print(error, file=sys.stderr, flush=True)
        return NO_MACHINE


def main() -> None:
    """The kernel ends the machine, and all that is left in the container, when this process does."""
    options = json.loads(sys.argv[1])
    sys.path[:0] = options["path"]
    try:
        code = run(fork_machine(options), options["first"])
    except Ended as end:
        code = end.code
    os._exit(code)


if __name__ == "__main__":
    main()
