"""The lab's closed fabric: its root key, kept in the lab's directory, and an invite for each start of a
daemon.
"""

import time
from pathlib import Path

from machineplane.lab.errors import LabError
from machineplane.linux.files import replace_file
from magik_proto.membership import RootKey


def make_root(path: Path) -> None:
    """A root key for a new fabric, its seed written to ``path`` as hex for the owner's eyes only."""
    with RootKey.generate() as root:
        replace_file(path, root.seed().hex().encode() + b"\n")


def invite(path: Path) -> str:
    """The text of a fresh invite, good for an hour, from the root key at ``path``."""
    try:
        seed = bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as error:
        raise LabError(
            f"the fabric's root key {path} cannot be read ({error}): take the lab down and up"
        ) from error
    with RootKey.from_seed(seed) as root, root.invite(int(time.time() * 1000)) as fresh:
        return fresh.text()
