"""Become one virtual machine: the first process of a container whose engine is ``krun``.

A program by itself: it is started by its path, isolated, in a container that has Python and the package attrs but nothing
else of Magik save the binding beside it. ``machine.py OPTIONS``; OPTIONS is JSON: ``library``, ``root`` (the folder that
is the guest's ``/``), ``vcpus`` and ``memory_mib``. What runs in the guest stands in a file in its root.

It ends with the guest's exit code; 125 where no machine could be made, and 128 + n after signal n, as a shell would say.
"""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

NO_MACHINE = 125  # libkrun's init ends with it as well where it cannot set the guest up
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def load_binding() -> ModuleType:
    """The module beside this one, without the package that both are in."""
    spec = importlib.util.spec_from_file_location("binding", Path(__file__).with_name("binding.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["binding"] = module  # attrs looks classes' modules up
    spec.loader.exec_module(module)
    return module


def become_machine(options: dict[str, Any]) -> None:
    """Set the machine up and enter it; returns only where that fails, and says why."""
    binding = load_binding()
    plan = binding.VmPlan(
        vcpus=options["vcpus"], memory_mib=options["memory_mib"], root=options["root"], tsi=True
    )
    try:
        library = binding.Library(options["library"])
        library.enter(library.configure(plan))
    except (binding.KrunError, OSError) as error:
        print(error, file=sys.stderr, flush=True)


def wait_for(child: int) -> int:
    """What to end with: the machine's exit code, or 128 + n for a signal, which pulls its plug.

    No guest's init takes signals from outside, so there is nobody to ask. The kernel ends all when this process does.
    """
    number = signal.sigwait({*_ENDING, signal.SIGCHLD})
    if number != signal.SIGCHLD:
        return 128 + number
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else 128 - code


def main() -> None:
    """The machine is a process of its own, so that this one, the container's first, can wait for signals."""
    options = json.loads(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_ENDING, signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            become_machine(options)
        finally:
            os._exit(NO_MACHINE)
    os._exit(wait_for(child))


if __name__ == "__main__":
    main()
