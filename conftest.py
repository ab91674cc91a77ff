"""Import the distributions' packages before any test module is, and let properties take their time.

The distributions' folders (`machineplane/`, `workplane/`) have the packages' names: pytest would make namespace packages of
the folders when it names test modules, and hide the real ones.
"""

import importlib
from contextlib import suppress

from hypothesis import HealthCheck, settings

for package in ("magik_proto", "machineplane", "workplane"):
    with suppress(ModuleNotFoundError):
        importlib.import_module(package)

# How long an example takes says something of the machine, which others use as well, and nothing of the code.
settings.register_profile("magik", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("magik")
