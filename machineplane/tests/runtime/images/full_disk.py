"""Pulls onto disks of every size from none up; run by ``test_full_disk`` in a mount namespace of its own.

``full_disk.py FOLDER``: prints a line of JSON for each size: what the pull said, and what it left.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import trio
from test_desk import REF, OnePeer

from machineplane.runtime.images import ImageError, ImageStore
from machineplane.runtime.images.documents import sha256
from machineplane.runtime.images.make import make_image
from machineplane.runtime.images.registry.credentials import Keyring
from machineplane.runtime.images.registry.settings import RegistrySettings
from machineplane.runtime.images.service import open_images

STEP, PAGE = 64, 4  # KiB
LARGEST = 6 * 1024  # KiB: more than blob and layer take together


async def pull(store: ImageStore, other: ImageStore) -> str:
    async with open_images(store, RegistrySettings()) as service:
        service.peers = OnePeer(other)
        try:
            await service.image(REF, "IfNotPresent", Keyring(), lambda *_: None)
        except ImageError as error:
            return f"{type(error).__name__}: {error}"
    return ""


def left(store: ImageStore) -> dict[str, object]:
    names = {part: [p.name for p in (store.path / part).iterdir()] for part in ("tmp", "partial", "layers")}
    wrong = [p.name for p in (store.path / "blobs").iterdir() if sha256(p.read_bytes()) != f"sha256:{p.name}"]
    return {**names, "wrong": wrong, "names": list(store.entries())}


def try_size(folder: Path, size: int, other: ImageStore) -> str:
    disk = folder / f"disk{size}"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
    subprocess.run(mount, check=True)
    store = ImageStore(disk / "images", mounted=frozenset)
    said = trio.run(pull, store, other)
    found = left(store)
    subprocess.run([*mount[:4], "remount,size=64m", *mount[5:]], check=True)
    found |= {"size": size, "said": said, "later": trio.run(pull, store, other)}
    found["layer"] = [p.name for layer in (store.path / "layers").iterdir() for p in layer.iterdir()]
    print(json.dumps(found), flush=True)
    return said


def main(folder: Path) -> None:
    other = ImageStore(folder / "other", mounted=frozenset)
    content = {f"file{n}": (random.Random(n).randbytes(250_000), 0o644) for n in range(4)}
    make_image(folder / "app.tar", ref=REF, files=content)
    other.import_file(folder / "app.tar")
    for size in range(STEP, LARGEST, STEP):
        if not try_size(folder, size, other):
            break
    for close in range(size - STEP + PAGE, size, PAGE):  # the last steps write little
        try_size(folder, close, other)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
