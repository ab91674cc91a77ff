"""Find libcrun's shared library and know its version, without loading it."""

import re
import subprocess
from pathlib import Path

from attrs import frozen

DEFAULT_PREFIX = Path("/usr/local/lib/magik")
LIBRARY_NAME = "libcrun.so"
VERSION_NAME = "libcrun.version"

_VERSION = re.compile(r"[0-9]+\.[0-9]+(?:\.[0-9]+)*")
# The run-time linker's cache, as `ldconfig -p` prints it.
_CACHE_LINE = re.compile(r"^\s*libcrun\.so[.0-9]*\s.*=>\s*(\S+)$", re.MULTILINE)


@frozen
class Libcrun:
    """A shared library and its upstream version (``1.8.1``); the version decides how its structures are laid out."""

    path: Path
    version: str

    @property
    def version_tuple(self) -> tuple[int, ...]:
        """The version as numbers, for comparisons."""
        return tuple(int(part) for part in self.version.split("."))


def find_libcrun(prefix: Path) -> Libcrun | None:
    """The library that :mod:`machineplane.runtime.libcrun_build` left under ``prefix``, if it is whole."""
    try:
        version = (prefix / VERSION_NAME).read_text().strip()
    except OSError:
        return None
    library = prefix / LIBRARY_NAME
    return Libcrun(library, version) if library.is_file() and _VERSION.fullmatch(version) else None


def find_system_libcrun() -> Libcrun | None:
    """A shared libcrun of the system whose version can be told; none where it cannot (its layouts would be a guess)."""
    try:
        cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return None
    for name in _CACHE_LINE.findall(cache):
        version = embedded_version(Path(name).read_bytes())
        if version is not None:
            return Libcrun(Path(name), version)
    return None


def embedded_version(content: bytes) -> str | None:
    """The only string in a library's ``content`` that can be libcrun's version; none if there are several.

    Versions of the OCI specifications, and of other interfaces, stand in it as well; libcrun's is at least 1.5.
    """
    found = {raw.decode() for raw in re.findall(rb"\0([0-9]+\.[0-9]+(?:\.[0-9]+)*)(?=\0)", content)}
    fitting = [version for version in found if tuple(int(part) for part in version.split(".")) >= (1, 5)]
    return fitting[0] if len(fitting) == 1 else None
