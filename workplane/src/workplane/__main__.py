"""``python -m workplane``."""

from workplane.lean import importing

with importing():
    from workplane.cli import main

main()
