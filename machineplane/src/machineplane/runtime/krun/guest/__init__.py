"""What runs inside a microVM as its init, and who speaks to it from the monitor's side.

These modules need nothing but Python's own library, and import each other relatively: the machine's Python runs them in the
guest, and in the monitor's container, where this folder is the package ``guest`` and nothing else of Magik is there.
"""
