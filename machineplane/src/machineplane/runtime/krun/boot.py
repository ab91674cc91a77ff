"""Whether a guest starts on this machine: by starting one, with a time limit, once.

A ``/dev/kvm`` that opens, and even one that makes machines, may run no ordinary kernel (nested or paravirtual ones do so).
So a guest is booted whose only program ends with a number of its own, in a process of its own that is killed when it takes
too long. The answer is remembered for as long as neither the library nor the running kernel changes.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from machineplane.linux.files import replace_file
from machineplane.runtime.images.pause import PAUSE_ELF, static_elf
from machineplane.runtime.krun.binding import FIRMWARE_NAMES, KrunError, Library, VmPlan

BOOT_TIMEOUT_S: Final = 10.0
"""A guess: microVMs boot in a fraction of a second, and a machine that is busy starting many others is slower."""
GUEST_EXIT_CODE: Final = 42
"""What only our guest's program ends with: libkrun itself uses 0, 1 and 125 to 127."""
MEMORY_MIB: Final = 128
_REASON_LENGTH = 300
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_EXIT_CODE: Final = {
    "amd64": bytes.fromhex(
        "bf2a000000"  # mov edi, 42
        "6a3c"  #       push 60    ; __NR_exit (arch/x86/entry/syscalls/syscall_64.tbl)
        "58"  #         pop rax
        "0f05"  #       syscall
    ),
    "arm64": bytes.fromhex(
        "400580d2"  # mov x0, #42
        "a80b80d2"  # mov x8, #93   ; __NR_exit (include/uapi/asm-generic/unistd.h)
        "010000d4"  # svc #0
    ),
}


def exit_program(architecture: str) -> bytes:
    """A static program that ends at once, with `GUEST_EXIT_CODE`; for the architectures of `PAUSE_ELF`."""
    return static_elf(architecture, _EXIT_CODE[architecture])


def boot(library: str, architecture: str, timeout: float = BOOT_TIMEOUT_S) -> str:
    """Boot a guest with the library at this path; empty if its program ran within ``timeout`` seconds, else why not."""
    if architecture not in PAUSE_ELF:
        return f"no program for a guest on {architecture}"
    with tempfile.TemporaryDirectory(prefix="magik-boot-") as folder:
        for name in ("dev", "proc", "sys", "tmp"):
            Path(folder, name).mkdir()
        program = Path(folder, "exit")
        program.write_bytes(exit_program(architecture))
        program.chmod(0o755)
        command = [sys.executable, "-m", __name__, library, folder]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return f"a guest did not boot within {timeout:g} s"
    if done.returncode == GUEST_EXIT_CODE:
        return ""
    said = " ".join(done.stderr.decode(errors="replace").split())[-_REASON_LENGTH:]
    return f"a guest did not boot: the machine ended with {done.returncode}" + (f": {said}" if said else "")


def remembered_boot(library: str, architecture: str, memory: Path, timeout: float = BOOT_TIMEOUT_S) -> str:
    """As `boot`, but what it said before stands in the file ``memory`` for as long as nothing has changed."""
    now = _circumstances(library)
    try:
        known = json.loads(memory.read_text())
        if known["circumstances"] == now and isinstance(known["reason"], str):
            return known["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never asked yet, or not our writing: ask
    reason = boot(library, architecture, timeout)
    with contextlib.suppress(OSError):  # no such folder, or a full disk: it is tried again next time
        replace_file(memory, json.dumps({"circumstances": now, "reason": reason}).encode())
    return reason


def _circumstances(library: str) -> list[Any]:
    """What decides whether a guest boots: the library, its own kernel beside it, and the kernel that runs."""
    path = Path(library)
    beside = [path.with_name(name) for name in FIRMWARE_NAMES]
    found = [(file, file.stat()) for file in (path, *beside) if file == path or file.is_file()]
    files = [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in found]
    return [files, _BOOT_ID.read_text().strip()]


def main() -> int:
    """``boot LIBRARY ROOT``: become a machine, set up as those of pods are, that runs the program in its root."""
    library, root = sys.argv[1:]
    try:
        loaded = Library(library)
        loaded.enter(
            loaded.configure(VmPlan(vcpus=1, memory_mib=MEMORY_MIB, root=root, program="/exit", tsi=True))
        )
    except KrunError as error:
        print(error, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
