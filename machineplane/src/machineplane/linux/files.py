"""Replacing a file as a whole."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A file to write to that becomes ``path`` at the end: readers see the old content or the new one, nothing between.

    Where the block raises, the old content stays and nothing is left. The directory must be there. Raises OSError.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write ``data`` as ``path``; also a power cut leaves the old content or the new one.

    The file has ``mode`` from its first byte on. Its directory must be there. Raises OSError.
    """
    with replacing(path, mode) as file:
        file.write(data)
