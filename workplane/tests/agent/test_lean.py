"""What the agent does without: modules that would cost each pod time and memory."""

import subprocess
import sys

CODE = """
import sys
from workplane.lean import importing
with importing():
    import workplane.app
print(*sorted(sys.modules))
import asyncio
print(asyncio.sleep.__module__)
"""


def test_the_agent_starts_without_what_it_does_not_use() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    loaded, asyncio = done.stdout.splitlines()
    assert not {"asyncio.events", "h2.connection", "multiprocessing"} & set(loaded.split())
    assert asyncio == "asyncio.tasks"  # and whoever wants it has it
