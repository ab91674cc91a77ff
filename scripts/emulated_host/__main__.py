"""Run a command on a whole Debian 12 of its own, emulated: systemd, cgroup v2 and, with AMD's SVM emulated too, a KVM.

``python scripts/emulated_host [COMMAND …]``; without a command a shell. The working tree is at /magik there, where the
command runs as root; its output is shown as it comes, and its exit code is ours. There is no network. It needs root,
mmdebstrap and qemu-system-x86, and is ten to twenty times slower than this machine: emulation is by software alone.
"""

import argparse
import contextlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import image  # beside this file

ROOT = image.ROOT
CACHE = ROOT / "build" / "emulated-host"


def main() -> int:
    """The command's exit code; 255 where the host went without giving one."""
    parser = argparse.ArgumentParser(prog="emulated_host", description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the disk is kept (%(default)s)")
    parser.add_argument("--memory", type=int, default=3072, help="MiB (%(default)s)")
    parser.add_argument("--timeout", type=float, help="seconds after which the host is ended")
    parser.add_argument("--kernel", default="", help="more words for the kernel's command line")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    options = parser.parse_args()
    missing = [name for name in ("mmdebstrap", "qemu-system-x86_64") if not shutil.which(name)]
    if missing:
        raise SystemExit(
            f"emulated host: missing {', '.join(missing)}: apt-get install mmdebstrap qemu-system-x86"
        )
    made = image.ensure(options.cache)
    with tempfile.TemporaryDirectory(prefix="magik-host-") as folder:
        share = Path(folder)
        pack_tree(share / "tree.tar")
        shutil.copyfile(Path(__file__).with_name("guest.sh"), share / "guest.sh")
        command = f"exec </dev/null\n{shlex.join(options.command)}" if options.command else "exec bash -i"
        (share / "command").write_text(f"{command}\n")
        run(made, share, options)
        with contextlib.suppress(OSError, ValueError):
            return int((share / "status").read_text())
    print(f"emulated host: it ended without an answer: see {options.cache / 'console'}", file=sys.stderr)
    return 255


def pack_tree(archive: Path) -> None:
    """All files that git knows or would take, as they are now, and the agent's image where it is baked."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    names = [name for name in listed.split("\0") if name and (ROOT / name).exists()]
    baked = ROOT / "machineplane/src/machineplane/runtime/images/baked"
    names += [str(path.relative_to(ROOT)) for path in baked.glob("*")]
    subprocess.run(
        ["tar", "-c", "--null", "-T", "-", "-f", archive],
        cwd=ROOT,
        input="\0".join(names).encode(),
        check=True,
    )


def run(made: Path, share: Path, options: argparse.Namespace) -> None:
    """Boot the host and wait for its end. What it writes to its disk goes with it."""
    console = options.cache / "console"
    command = [
        *("nice", "-n", "19", "qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", options.memory),
        *("-kernel", made / "vmlinuz", "-initrd", made / "initrd.img"),
        *("-append", f"root=LABEL=root rw console=ttyS0 panic=-1 mitigations=off {options.kernel}"),
        *("-serial", f"file:{console}"),
        *("-drive", f"file={made / 'disk'},format=raw,if=virtio,snapshot=on"),
        *("-virtfs", f"local,path={share},mount_tag=magik,security_model=none"),
        *("-device", "virtio-serial", "-device", "virtio-rng-pci"),
        *("-chardev", "stdio,id=both,signal=off,mux=off"),
        *("-device", "virtserialport,chardev=both,name=magik"),
    ]
    # Where its standard input ends, qemu takes nothing from the guest any more: a command gets one that stays open.
    words, shell = [str(part) for part in command], not options.command
    with subprocess.Popen(words, stdin=None if shell else subprocess.PIPE) as host:
        try:
            host.wait(options.timeout)
        except subprocess.TimeoutExpired:
            host.kill()


if __name__ == "__main__":
    sys.exit(main())
