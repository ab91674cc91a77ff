"""A guest's init starts with each container: what it imports is part of that."""

import subprocess
import sys


def test_the_init_imports_little() -> None:
    code = "import sys; before = set(sys.modules); import workplane.guest.init; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-IB", "-c", code], capture_output=True, text=True, check=True)
    ours = {"magik_proto", "workplane"}
    foreign = {name.partition(".")[0] for name in loaded.stdout.split()} - ours - set(sys.stdlib_module_names)
    assert foreign == set()
    heavy = {"asyncio", "ssl", "inspect", "subprocess", "logging", "importlib.metadata", "multiprocessing"}
    assert heavy & set(loaded.stdout.split()) == set()
