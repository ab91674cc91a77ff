"""The package does no I/O: importing all of it loads no module that could."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import magik_proto

FORBIDDEN = {
    "socket",
    "ssl",
    "trio",
    "asyncio",
    "select",
    "selectors",
    "subprocess",
    "multiprocessing",
    "random",
}

SCRIPT = """
import importlib, json, sys
before = set(sys.modules)
for name in {names!r}:
    importlib.import_module(name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def modules() -> list[str]:
    """Every module of the package but the tools for tests, which hypothesis is a part of."""
    names = [m.name for m in pkgutil.walk_packages(magik_proto.__path__, "magik_proto.")]
    return ["magik_proto", *(name for name in names if not name.startswith("magik_proto.testing"))]


def test_importing_everything_loads_nothing_that_does_io() -> None:
    # In a process of its own, without site packages' start-up files, so that only our imports count.
    script = SCRIPT.format(names=modules())
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(json.loads(result.stdout))
    assert "magik_proto.wire" in loaded
    assert loaded & FORBIDDEN == set()


def test_importing_the_package_alone_loads_nothing_else() -> None:
    script = SCRIPT.format(names=["magik_proto"])
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == ["magik_proto"]
