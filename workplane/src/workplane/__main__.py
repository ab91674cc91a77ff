"""``python -m workplane``."""

from workplane.cli import main

main()
