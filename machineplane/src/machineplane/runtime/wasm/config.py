"""From the configuration of a container to one in which a WebAssembly module runs.

The container's root is an empty folder with this machine's Python, read-only; the image, and the pod's volumes in it, are
at ``/image``, and that folder is all that the guest sees, as its ``/``. So a module stands in two boxes: WebAssembly's,
and a container without capabilities whose limits are those of the pod.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from attrs import evolve

from machineplane.runtime.bundle import Bundle
from machineplane.runtime.bundle.quantity import byte_count
from machineplane.runtime.errors import PodSpecError

WASM: Final = "wasm"
"""The engine's name, in ``magik.io/runtime`` as well."""
IMAGE: Final = "/image"
"""Where image and volumes are in the container."""
_HOST_LIBRARIES = ("/usr/lib", "/lib", "/lib64")
_OWN: Final = ("/proc", "/dev", "/sys")
"""Mounts for the runner; all others are the guest's."""
RUNNER: Final = Path(__file__).with_name("runner.py")


def missing_wasmtime() -> str:
    """Empty if the package wasmtime is there, else what to do."""
    if importlib.util.find_spec("wasmtime") is None:
        return "the Python package wasmtime is missing; install magik-machineplane[wasm]"
    return ""


def runner_paths() -> tuple[str, ...]:
    """The folders of this machine that Python needs to run the runner, none inside another."""
    package = importlib.util.find_spec("wasmtime")
    site = [str(Path(package.origin).parents[1])] if package and package.origin else []
    wanted = [sys.base_prefix, sys.prefix, *_HOST_LIBRARIES, *site, str(RUNNER.parent)]
    return _outermost(path for path in wanted if os.path.isdir(path))


def _outermost(paths: Iterable[str]) -> tuple[str, ...]:
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(path == other or path.startswith(other.rstrip("/") + "/") for other in found):
            found.append(path)
    return tuple(found)


def check_module(container: Mapping[str, Any]) -> None:
    """Raises PodSpecError where a container's spec asks for what a module cannot have."""
    if container.get("tty"):
        raise PodSpecError(f"{container['name']}: a WebAssembly module has no terminal; leave `tty` out")
    if any("exec" in hook for hook in (container.get("lifecycle") or {}).values()):
        raise PodSpecError(
            f"{container['name']}: a WebAssembly module runs no commands; leave exec hooks out"
        )


def wasm_config(config: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that runs the module named by the process's first word.

    ``config`` is the container's as for any other engine, ``container`` its spec.

    Raises:
        PodSpecError: as :func:`check_module`.
    """
    check_module(container)
    process, root = config["process"], config["root"]
    limits = (container.get("resources") or {}).get("limits") or {}
    rootfs = Path(root["path"])
    options = {
        "root": IMAGE,
        "cwd": process["cwd"],
        "environment": dict(entry.split("=", 1) for entry in process["env"]),
        "memory": byte_count(limits.get("memory", 0), f"{container['name']}.resources.limits.memory"),
    }
    nothing: dict[str, list[str]] = {
        name: [] for name in ("bounding", "effective", "permitted", "inheritable", "ambient")
    }
    return {
        **config,
        "process": {
            **process,
            "args": [sys.executable, "-I", str(RUNNER), json.dumps(options), *process["args"]],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
            "capabilities": nothing,
            "noNewPrivileges": True,
        },
        "root": {"path": str(host_root(rootfs)), "readonly": True},
        "mounts": [*_mounts(config["mounts"], rootfs, read_only=bool(root["readonly"]))],
    }


def as_module(made: Bundle, container: Mapping[str, Any]) -> Bundle:
    """A container's bundle as one that runs a module; makes its root. Raises PodSpecError as :func:`check_module`."""
    config = wasm_config(made.config, container)
    Path(config["root"]["path"]).mkdir(exist_ok=True)
    return evolve(made, config=config)


def host_root(rootfs: Path) -> Path:
    """The empty folder that becomes the container's root."""
    return rootfs.with_name("host")


def _mounts(
    mounts: Iterable[Mapping[str, Any]], rootfs: Path, *, read_only: bool
) -> Iterable[dict[str, Any]]:
    others = []
    for mount in mounts:
        if mount["destination"].startswith(_OWN):
            yield dict(mount)
        else:
            others.append({**mount, "destination": IMAGE + mount["destination"]})
    for path in runner_paths():
        yield _bind(path, path, "ro")
    yield _bind(str(rootfs), IMAGE, "ro" if read_only else "rw")
    yield from others


def _bind(source: str, destination: str, access: str) -> dict[str, Any]:
    options = ["rbind", "rprivate", "nosuid", "nodev", access]
    return {"destination": destination, "type": "bind", "source": source, "options": options}
