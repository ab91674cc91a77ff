"""Wheels: those of this repository, and what they need, at the versions and with the hashes of requirements.txt."""

import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK = Path(__file__).with_name("requirements.txt")
SOURCES = (ROOT / "shared-proto", ROOT / "workplane")
EXTRAS = ("trio",)
MACHINES = ("x86_64", "aarch64")
_GLIBC = (34, 28, 17)  # Debian 12 has 2.36: wheels for these and older ones run there
_PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def build(out: Path) -> list[Path]:
    """Wheels of this repository's distributions."""
    for source in SOURCES:
        with tempfile.TemporaryDirectory() as scratch:  # a build leaves nothing in the tree
            copy = shutil.copytree(
                source, Path(scratch, source.name), ignore=shutil.ignore_patterns("tests", "__pycache__")
            )
            subprocess.run([*_PIP, "wheel", "--no-deps", "-w", out, copy], check=True)
    return sorted(out.glob("*.whl"))


def download(out: Path) -> list[Path]:
    """What they need, for this machine's architecture, each file by its hash."""
    wanted = ("--require-hashes", "--no-deps", "-r", str(LOCK))
    subprocess.run([*_PIP, "download", *_target(platform.machine()), *wanted, "-d", out], check=True)
    return sorted(out.glob("*.whl"))


def unpack(wheels: Iterable[Path], site: Path) -> None:
    """Put the wheels' packages into ``site``. Programs and headers (``*.data``) are left out."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if ".data/" not in name]
            archive.extractall(site, names)


def lock() -> None:
    """Resolve the needs anew and write requirements.txt, with the hashes of the files for every architecture."""
    hashes: dict[str, set[str]] = {}
    for machine in MACHINES:
        with tempfile.TemporaryDirectory() as scratch:
            subprocess.run(
                [*_PIP, "download", *_target(machine), *sorted(_needs()), "-d", scratch], check=True
            )
            for wheel in sorted(Path(scratch).glob("*.whl")):
                name, version, *_ = wheel.name.split("-")
                digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
                hashes.setdefault(f"{name.lower().replace('_', '-')}=={version}", set()).add(digest)
    lines = ["# What the agent's image is made of. Written by: python scripts/workplane_image --lock"]
    for pinned, digests in sorted(hashes.items()):
        lines.append(" \\\n".join((pinned, *(f"    --hash=sha256:{digest}" for digest in sorted(digests)))))
    LOCK.write_text("\n".join(lines) + "\n")


def _needs() -> Iterator[str]:
    """What the distributions need that is not of this repository."""
    for source in SOURCES:
        project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
        extras = project.get("optional-dependencies", {})
        needs = project["dependencies"] + [need for name in EXTRAS for need in extras.get(name, ())]
        yield from (need for need in needs if not re.match("magik-", need))


def _target(machine: str) -> Iterator[str]:
    """pip's options for files that run in the image, whatever Python this is."""
    yield from ("--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11")
    yield from (part for abi in ("cp311", "abi3", "none") for part in ("--abi", abi))
    for minor in _GLIBC:
        yield from ("--platform", f"manylinux_2_{minor}_{machine}")
    yield from ("--platform", f"manylinux2014_{machine}")
