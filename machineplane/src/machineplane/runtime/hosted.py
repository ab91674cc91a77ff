"""Containers in which this machine's Python runs the guest: as a WebAssembly module, or as a virtual machine.

Such a container's root is an empty folder with Python, read-only; the image, and the pod's volumes in it, are at `IMAGE`,
and that folder is all that the guest sees, as its ``/``. So a guest stands in two boxes: its own kind's, and a container.
"""

import importlib.util
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

IMAGE: Final = "/image"
"""Where image and volumes are in the container."""
_RUNNERS: Final = ("/proc", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys")
"""Mounts for the runner; all others are the guest's, also a pod's own in the same place."""
_HOST_LIBRARIES = ("/usr/lib", "/lib", "/lib64")


def home_of(package: str) -> str:
    """The folder that a package is imported from; empty where it is not there."""
    spec = importlib.util.find_spec(package)
    return str(Path(spec.origin).parents[1]) if spec and spec.origin else ""


def python_paths(*more: str) -> tuple[str, ...]:
    """The folders of this machine that Python needs, and ``more``; none inside another."""
    wanted = [sys.base_prefix, sys.prefix, *_HOST_LIBRARIES, *more]
    return _outermost(path for path in wanted if os.path.isdir(path))


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(path == other or path.startswith(other.rstrip("/") + "/") for other in found):
            found.append(path)
    return tuple(found)


def hosted_config(
    config: Mapping[str, Any],
    words: Sequence[str],
    paths: Iterable[str],
    capabilities: Sequence[str],
    image: str = IMAGE,
) -> dict[str, Any]:
    """A container's configuration as one in which Python runs ``words``, isolated, with nothing of the pod's variables.

    ``paths`` are the folders that it sees of the machine, read-only; ``image`` is where image and volumes are.
    """
    process, root = config["process"], config["root"]
    granted = ("bounding", "effective", "permitted")
    return {
        **config,
        "process": {
            **process,
            "args": [sys.executable, "-I", *words],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": {name: list(capabilities) for name in granted},
            "noNewPrivileges": True,
        },
        "root": {"path": str(host_root(Path(root["path"]))), "readonly": True},
        "mounts": [*_mounts(config, paths, image)],
    }


def host_root(rootfs: Path) -> Path:
    """The empty folder that becomes the container's root."""
    return rootfs.with_name("host")


def _mounts(config: Mapping[str, Any], paths: Iterable[str], image: str) -> Iterable[dict[str, Any]]:
    others, left = [], set(_RUNNERS)
    for mount in config["mounts"]:
        if mount["destination"] in left:
            left.discard(mount["destination"])
            yield dict(mount)
        else:
            others.append({**mount, "destination": image + mount["destination"]})
    for path in paths:
        yield bind(path, path, "ro")
    yield bind(config["root"]["path"], image, "ro" if config["root"]["readonly"] else "rw")
    yield from others


def bind(source: str, destination: str, access: str) -> dict[str, Any]:
    """A mount of what is at ``source``, ``ro`` or ``rw``."""
    options = ["rbind", "rprivate", "nosuid", "nodev", access]
    return {"destination": destination, "type": "bind", "source": source, "options": options}
