"""Make the namespaces of a lab machine: ``python -m machineplane.lab.box <mark> <lab directory> <machine>``.

Ends with status 0 once the machine's first process (``init``) holds them, else with one line on standard
error. A program of its own, as what it does to itself must not happen to the caller.
"""

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from machineplane.lab.state import LabDir
from machineplane.linux import libc

RUN = Path("/run")
RUN_SIZE = "16m"  # guess: sockets and small files only; the run directory of Magik itself is on disk
VAR = Path("/var/lib/magik")
RUN_NETNS = Path("/run/netns")

_NAMESPACES = libc.CLONE_NEWNS | libc.CLONE_NEWNET | libc.CLONE_NEWPID | libc.CLONE_NEWUTS | libc.CLONE_NEWIPC


def main(arguments: list[str]) -> int:
    """Split into the one who waits and the machine's first process; return the waiter's exit status."""
    lab, machine = LabDir(Path(arguments[-2])), arguments[-1]
    os.setsid()
    libc.unshare(_NAMESPACES)
    readable, writable = os.pipe()  # closes by itself when the first process becomes `init`
    if os.fork() == 0:
        os.close(readable)
        _become_init(writable, lab, machine)
    os.close(writable)
    with os.fdopen(readable) as pipe:
        trouble = pipe.read()
    if trouble:
        sys.stderr.write(trouble + "\n")
    return 1 if trouble else 0


def _become_init(writable: int, lab: LabDir, machine: str) -> None:
    try:
        prepare(lab, machine)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        script = str(Path(__file__).with_name("init.py"))
        os.execv(sys.executable, [sys.executable, "-I", "-S", script, *sys.argv[-3:]])
    except OSError as error:
        os.write(writable, f"machine {machine}: {error}".encode())
    finally:
        os._exit(1)


def prepare(lab: LabDir, machine: str) -> None:
    """Give this process's mount and host name namespaces the looks of a machine. Raises :class:`OSError`."""
    libc.mount("", "/", flags=libc.MS_REC | libc.MS_PRIVATE)
    forget_namespaces()
    libc.mount(str(lab.state_dir(machine)), str(VAR), flags=libc.MS_BIND)
    resolver = _resolver()
    run = os.open(lab.run_dir(machine), os.O_PATH)
    libc.mount("tmpfs", str(RUN), "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, f"mode=755,size={RUN_SIZE}")
    for name in ("magik", "lock"):
        (RUN / name).mkdir()
    libc.mount(f"/proc/self/fd/{run}", str(RUN / "magik"), flags=libc.MS_BIND)
    os.close(run)
    _restore_resolver(resolver)
    # The lab's own files, other machines' keys among them, are not for this machine.
    libc.mount(
        "tmpfs", str(lab.path.parent), "tmpfs", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_RDONLY, "size=4k"
    )
    libc.mount("proc", "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    socket.sethostname(machine)
    os.chdir("/")


def forget_namespaces() -> None:
    """Unmount the named network namespaces here: else they would live on in this machine after their removal."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split(" ")[4]
        if point.startswith(f"{RUN_NETNS}/"):
            with suppress(OSError):  # removed on the computer meanwhile, or covered by another mount
                libc.umount(point, libc.MNT_DETACH)


def _resolver() -> tuple[Path, str] | None:
    """``/etc/resolv.conf`` where it is a link into ``/run``, which is about to be covered."""
    target = Path("/etc/resolv.conf").resolve()
    return (target, target.read_text()) if target.is_relative_to(RUN) and target.is_file() else None


def _restore_resolver(resolver: tuple[Path, str] | None) -> None:
    if resolver is not None:
        path, text = resolver
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OSError as error:
        sys.exit(f"cannot make the machine's namespaces: {error}")
