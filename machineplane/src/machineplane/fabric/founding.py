"""Which StatefulSets made here nobody has founded yet: their marks, on disk, as a daemon may end before it gives one away.

A set's leadership is founded by one pod in its life. The machine that made the set holds the mark for it and gives it away
with an award of ordinal 0. It is gone from the disk before that award leaves: a power cut may lose a mark, and never
doubles one.
"""

import os
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog
from attrs import define

MARKS_MAX: Final = 1_000
"""As many as a machine holds manifests. At it the oldest goes: its set is long gone, or was never placed."""


@define
class Founding:
    """The mark of one set, which can be taken once."""

    _marks: "Foundings"
    _uid: UUID

    def take(self) -> bool:
        """Whether it is still there; it is gone then."""
        return self._marks.take(self._uid)

    def give_back(self) -> None:
        """It was certainly not used."""
        self._marks.put(self._uid)


class Foundings:
    """The marks of this machine, one empty file for each, named by the set's uid.

    Raises OSError where ``folder`` cannot be made or read. Files are synced where this is called: some milliseconds, once
    in a set's life.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = structlog.get_logger(room="fabric")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = sorted((entry.stat().st_mtime_ns, entry.name) for entry in os.scandir(folder))
        self._left = dict.fromkeys(UUID(name) for _, name in found if _is_uid(name))  # oldest first

    def of(self, uid: UUID) -> Founding | None:
        """The mark of a set, if it is here."""
        return Founding(self, uid) if uid in self._left else None

    def put(self, uid: UUID) -> None:
        """A set was made here and now, or what was taken was not used."""
        if uid not in self._left and len(self._left) >= MARKS_MAX:
            self.take(next(iter(self._left)))
        self._left[uid] = None
        try:
            (self._folder / str(uid)).touch(mode=0o600)
            self._sync()
        except OSError as error:
            self._log.warning("founding-not-kept", uid=str(uid), error=str(error))  # until the daemon ends

    def take(self, uid: UUID) -> bool:
        """Whether it is still there; it is gone then. Where the disk does not let it go it is not given away."""
        if uid not in self._left:
            return False
        del self._left[uid]
        try:
            (self._folder / str(uid)).unlink(missing_ok=True)
            self._sync()
        except OSError as error:
            self._log.error("founding-stays", uid=str(uid), error=str(error))
            return False
        return True

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_uid(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False
