"""Import the distributions' packages before any test module is.

Their folders (`machineplane/`, `workplane/`) have the packages' names: pytest would make namespace packages of the folders
when it names test modules, and hide the real ones.
"""

import importlib
from contextlib import suppress

for package in ("magik_proto", "machineplane", "workplane"):
    with suppress(ModuleNotFoundError):
        importlib.import_module(package)
