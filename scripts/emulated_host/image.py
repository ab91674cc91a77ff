"""The disk of an emulated host: Debian 12 with systemd, Debian's kernel, what Magik's tests need, and Python's packages.

Made as root, by mmdebstrap from the archive that this machine's apt knows, and kept until what it is made of changes. The
sources of Magik are not in it: each run brings the working tree.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from machineplane.runtime.debsrc import archive_lines
from machineplane.runtime.libcrun_build import BUILD_NEEDS, SYSTEMD_NEED

ROOT = Path(__file__).parents[2]
SITE = "usr/local/lib/magik-site"
TREE = "/magik"
SIZE = "6G"  # of a file with holes: about 1.5 GB are used
RELEASE = "bookworm"
PACKAGES = (
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "linux-image-amd64",
    "initramfs-tools",
    "python3",
    "python3-venv",
    "ca-certificates",
    "iproute2",
    "procps",
    "curl",
    "busybox-static",
    "libnftables1",
    "docker-registry",
    "kubernetes-client",
    "crun",
)
TESTS = ("pytest>=8", "pytest-trio>=0.8", "hypothesis>=6.100", "smolmachines==1.32.2")
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "ext4", "9pnet_virtio", "9p", "overlay", "kvm_amd")
_SERVICE = """\
[Unit]
Description=The command that this host was started for
After=basic.target dbus.service
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
ExecStartPre=mkdir -p /host
ExecStartPre=mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 magik /host
ExecStart=sh /host/guest.sh
Delegate=yes
TimeoutStartSec=infinity

[Install]
WantedBy=multi-user.target
"""


def inputs() -> dict[str, list[str]]:
    """What the disk is made of, save the versions of packages that are newest at the time."""
    code = [
        path.read_text()
        for path in (Path(__file__), ROOT / "machineplane/src/machineplane/runtime/libcrun_build.py")
    ]
    return {
        "archive": archive_lines("deb"),
        "packages": sorted({*PACKAGES, *BUILD_NEEDS, SYSTEMD_NEED}),
        "python": sorted({*_requirements(), *TESTS}),
        "code": code,
    }


def _requirements() -> Iterator[str]:
    """What the three distributions need that is not of this repository."""
    for name in ("shared-proto", "machineplane", "workplane"):
        project = tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"]
        extras = project.get("optional-dependencies", {})
        for need in (*project["dependencies"], *(need for found in extras.values() for need in found)):
            if not need.startswith("magik-"):
                yield need


def ensure(cache: Path) -> Path:
    """The folder with ``disk``, ``vmlinuz`` and ``initrd``, made now or before."""
    wanted = inputs()
    made = cache / hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]
    if made.is_dir():
        return made
    if not wanted["archive"]:
        raise SystemExit("emulated host: /etc/apt names no archive of this Debian's `main` suite: add one")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as work:
        fresh = Path(work, "fresh")
        fresh.mkdir()
        tree = Path(work, "root")
        _bootstrap(tree, wanted)
        _install_python(tree, wanted["python"])
        _install_libcrun(tree)
        _settle(tree)
        for name in ("vmlinuz", "initrd.img"):
            shutil.copyfile(tree / name, fresh / name)
        print("emulated host: writing the disk", flush=True)
        _run("mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", tree, fresh / "disk", SIZE)
        for old in cache.glob("????????????????"):
            shutil.rmtree(old)
        fresh.rename(made)
    return made


def _bootstrap(tree: Path, wanted: dict[str, list[str]]) -> None:
    print("emulated host: Debian's packages (some minutes)", flush=True)
    modules = "\\n".join(MODULES)
    early = f"mkdir -p $1/etc/initramfs-tools && printf '{modules}\\n' > $1/etc/initramfs-tools/modules"
    _run(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        f"--include={','.join(wanted['packages'])}",
        f"--essential-hook={early}",
        RELEASE,
        tree,
        *wanted["archive"],
    )


def _install_python(tree: Path, requirements: list[str]) -> None:
    """Wheels for the Python of the disk, whatever Python this is."""
    print("emulated host: Python's packages", flush=True)
    target = (
        "--target",
        tree / SITE,
        "--python-version",
        "3.11",
        "--only-binary=:all:",
        "--implementation",
        "cp",
    )
    _run(sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *target, *requirements)
    paths = [f"/{SITE}", *(f"{TREE}/{name}/src" for name in ("shared-proto", "machineplane", "workplane"))]
    (tree / "usr/local/lib/python3.11/dist-packages/magik.pth").write_text("\n".join(paths) + "\n")
    for name in ("machineplane", "workplane"):
        program = tree / "usr/local/bin" / name
        program.write_text(f"#!/usr/bin/python3\nimport sys\nfrom {name}.cli import main\nsys.exit(main())\n")
        program.chmod(0o755)


def _install_libcrun(tree: Path) -> None:
    """Built on the disk, with this machine's way to Debian's archive; by the sources as they are now."""
    print("emulated host: libcrun", flush=True)
    away = tree / "tmp/src"
    shutil.copytree(ROOT / "machineplane/src", away, ignore=shutil.ignore_patterns("baked", "__pycache__"))
    names = [Path("/etc/resolv.conf"), Path("/etc/hosts")]
    for name in names:
        (tree / name.relative_to("/")).unlink(missing_ok=True)
        shutil.copyfile(name, tree / name.relative_to("/"))
    command = "mount -t proc proc /proc && PYTHONPATH=/tmp/src python3 -m machineplane.runtime.libcrun_build"
    _run("unshare", "--mount", "chroot", tree, "sh", "-c", command)
    shutil.rmtree(away)
    for name in names:
        (tree / name.relative_to("/")).write_text(
            "127.0.0.1 localhost host\n" if name.name == "hosts" else ""
        )


def _settle(tree: Path) -> None:
    """A root without a password, no network, nothing that waits, and the command as a service."""
    (tree / "etc/fstab").write_text("LABEL=root / ext4 rw 0 1\n")
    (tree / "etc/hostname").write_text("host\n")
    (tree / "etc/modules-load.d/magik.conf").write_text("\n".join(MODULES) + "\n")
    (tree / "etc/systemd/system/magik-command.service").write_text(_SERVICE)
    _run("chroot", tree, "systemctl", "-q", "enable", "magik-command.service")
    unwanted = ("docker-registry.service", "apt-daily.timer", "apt-daily-upgrade.timer")
    _run("chroot", tree, "systemctl", "-q", "mask", *unwanted)


def _run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"emulated host: `{command[0]}` ended with {done.returncode}: see above")
