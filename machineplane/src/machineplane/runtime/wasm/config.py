"""From the configuration of a container to one in which a WebAssembly module runs.

So a module stands in two boxes: WebAssembly's, and a container without capabilities whose limits are those of the pod.
"""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attrs import evolve

from machineplane.runtime.bundle import Bundle
from machineplane.runtime.bundle.quantity import byte_count
from machineplane.runtime.errors import PodSpecError
from machineplane.runtime.hosted import IMAGE, home_of, hosted_config, python_paths

WASM: Final = "wasm"
"""The engine's name, in ``magik.io/runtime`` as well."""
RUNNER: Final = Path(__file__).with_name("runner.py")


def missing_wasmtime() -> str:
    """Empty if the package wasmtime is there, else what to do."""
    if importlib.util.find_spec("wasmtime") is None:
        return "the Python package wasmtime is missing; install magik-machineplane[wasm]"
    return ""


def runner_paths() -> tuple[str, ...]:
    """The folders of this machine that Python needs to run the runner, none inside another."""
    return python_paths(home_of("wasmtime"), str(RUNNER.parent))


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
    process = config["process"]
    limits = (container.get("resources") or {}).get("limits") or {}
    options = {
        "root": IMAGE,
        "cwd": process["cwd"],
        "environment": dict(entry.split("=", 1) for entry in process["env"]),
        "memory": byte_count(limits.get("memory", 0), f"{container['name']}.resources.limits.memory"),
    }
    words = [str(RUNNER), json.dumps(options), *process["args"]]
    return hosted_config(config, words, runner_paths(), ())


def as_module(made: Bundle, container: Mapping[str, Any]) -> Bundle:
    """A container's bundle as one that runs a module; makes its root. Raises PodSpecError as :func:`check_module`."""
    config = wasm_config(made.config, container)
    Path(config["root"]["path"]).mkdir(exist_ok=True)
    return evolve(made, config=config)
