"""Debian's packages: downloaded by apt, which checks them by the archive's signature, and unpacked, not installed."""

import shutil
import subprocess
from pathlib import Path

from machineplane.runtime.debsrc import archive_lines, private_apt

PACKAGES = (
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libc6",
    "libgcc-s1",
    "zlib1g",
    "libexpat1",
    "libssl3",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
    "libuuid1",
)
_NO_APPSTREAM = ("-o", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false")


def fetch(work: Path) -> list[Path]:
    """The packages as this machine's Debian archive has them now. ``work`` keeps the archive's lists for the next time."""
    lines = archive_lines("deb")
    if not lines:
        raise SystemExit("workplane image: /etc/apt names no archive of this Debian's `main` suite: add one")
    shutil.rmtree(work / "download", ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    apt = ["apt-get", "-qq", *private_apt(work, lines), *_NO_APPSTREAM]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *PACKAGES], check=True, cwd=work / "download")
    return sorted((work / "download").glob("*.deb"))


def unpack(package: Path, root: Path) -> None:
    """All files of ``package``, below ``root``."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as reader:
        subprocess.run(["tar", "-x", "--no-same-owner", "-C", root], stdin=reader.stdout, check=True)
    if reader.returncode:
        raise SystemExit(f"workplane image: {package.name} cannot be read by dpkg-deb")
