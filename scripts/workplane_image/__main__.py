"""Bakes the agent's image: `python scripts/workplane_image` writes what the machineplane wheel carries.

Debian's Python, the wheels of this repository, and what these need, in one layer, with nothing of this machine in it. Needs
apt, dpkg-deb and tar (any Debian 12), no root. Does nothing where the image that is there is of the same sources. `--force`
bakes anew (for newer packages of Debian), `--out FILE` bakes an archive of its own and leaves the wheel's alone, `--lock`
resolves requirements.txt anew.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import debian
import tree
import wheels
import zstandard

from machineplane.linux.files import replace_file
from machineplane.runtime.images.agent import AGENT_REF, BAKED, Baked
from machineplane.runtime.images.make import make_image
from machineplane.runtime.images.store import ImageStore, machine_architecture

NOBODY = "65534:65534"
WORK = wheels.ROOT / "build" / "workplane-image"
_INPUTS = (
    "shared-proto/src",
    "workplane/src",
    "scripts/workplane_image",
    "shared-proto/pyproject.toml",
    "workplane/pyproject.toml",
)
_MAKER = "machineplane/src/machineplane/runtime/images/make.py"
_LEVEL = 9  # of zstd: 15.6 MB in 1 s; 19 would give 13.9 MB in 20 s
_OURS = ("magik_proto", "magik_mesh", "trio_quic", "workplane")


def main() -> int:
    parser = argparse.ArgumentParser(prog="workplane_image", description=__doc__)
    parser.add_argument("--force", action="store_true", help="bake, whatever is there")
    parser.add_argument("--lock", action="store_true", help="write requirements.txt anew, and bake nothing")
    parser.add_argument("--out", type=Path, help="bake into this file, not compressed")
    options = parser.parse_args()
    if options.lock:
        wheels.lock()
        return 0
    key = inputs_key()
    there = Baked.find(machine_architecture())
    if there and there.key == key and not options.force and not options.out:
        print(f"workplane image: {there.digest} is of these sources")
        return 0
    with tempfile.TemporaryDirectory(prefix="magik-workplane-") as scratch:
        bake(Path(scratch), key, options.out)
    return 0


def inputs_key() -> str:
    """A digest of all that the image is made of but Debian's packages, and of the architecture."""
    digest = hashlib.sha256(platform.machine().encode())
    for path in _input_files():
        digest.update(
            str(path.relative_to(wheels.ROOT)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest()
        )
    return digest.hexdigest()


def _input_files() -> Iterator[Path]:
    for name in (*_INPUTS, _MAKER):
        path = wheels.ROOT / name
        yield from (
            [path]
            if path.is_file()
            else sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        )


def bake(scratch: Path, key: str, out: Path | None) -> None:
    """Make the image and put it where the machineplane wheel takes it from."""
    began = time.monotonic()
    unpacked, site, root = scratch / "debian", scratch / "site", scratch / "root"
    for folder in (unpacked, site, root):
        folder.mkdir()
    packages = debian.fetch(WORK / "apt")
    for package in packages:
        debian.unpack(package, unpacked)
    wheels.unpack([*wheels.download(scratch / "needs"), *wheels.build(scratch / "own")], site)
    tree.assemble(unpacked, site, root)
    _compile(root)
    _try(root)
    archive = out or scratch / "image.tar"
    _pack(root, archive)
    if not out:
        _publish(archive, scratch, key)
    print(f"workplane image: baked in {time.monotonic() - began:.0f} s")


def _python(root: Path, *arguments: str) -> None:
    """Run the image's own Python. PYTHONHOME: here it is not below /usr."""
    command = [*tree.interpreter(root), "-s", *arguments]
    env = {
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": str(root / tree.SITE),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if subprocess.run(command, env=env, cwd=root).returncode:
        raise SystemExit("workplane image: the image's own Python failed, see above")


def _compile(root: Path) -> None:
    _python(root, "-X", "no_debug_ranges", str(Path(__file__).with_name("compiling.py")), str(root))


def _try(root: Path) -> None:
    """Import every module of our own within: what was left out and is needed shows here."""
    names = []
    for package in _OURS:
        for path in sorted((root / tree.SITE / package).rglob("*.pyc")):
            parts = path.relative_to(root / tree.SITE).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    wanted = [name for name in names if not name.endswith("__main__")]
    _python(root, "-c", f"import importlib\nfor name in {wanted!r}: importlib.import_module(name)")


def _pack(root: Path, archive: Path) -> None:
    files: dict[str, tuple[bytes | Path, int]] = {}
    links: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            links[name] = os.readlink(path)
        elif path.is_file():
            files[name] = (path, 0o755 if path.stat().st_mode & 0o100 else 0o644)
    make_image(
        archive,
        ref=AGENT_REF,
        files=files,
        symlinks=links,
        directories=dict.fromkeys(tree.EMPTY, 0o755),
        entrypoint=["/usr/bin/workplane"],
        env=["PATH=/usr/bin"],
        user=NOBODY,
    )


def _publish(archive: Path, scratch: Path, key: str) -> None:
    """Beside the code of the image store, the description last: an archive without one is not there."""
    (info,) = ImageStore(scratch / "store").import_file(archive)
    data = archive.read_bytes()
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(data)
    baked = Baked(architecture=machine_architecture(), digest=info.digest, key=key)
    BAKED.mkdir(exist_ok=True)
    baked.description.unlink(missing_ok=True)
    replace_file(baked.archive, packed, 0o644)
    replace_file(baked.description, json.dumps({"digest": baked.digest, "key": key}).encode() + b"\n", 0o644)
    print(f"workplane image: {info.digest}, {len(packed) / 1e6:.1f} MB, unpacked {len(data) / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
