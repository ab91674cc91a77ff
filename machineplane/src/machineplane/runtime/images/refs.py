"""The index of names: one JSON file, replaced atomically, changed under a lock."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import asdict, field, frozen

from machineplane.linux.files import replace_file
from machineplane.runtime.images.disk import locked
from machineplane.runtime.images.documents import encode
from machineplane.runtime.images.errors import ImageNotFound, StoreDamaged
from machineplane.runtime.images.model import ImageInfo

_VERSION = 1


def _texts(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(values)


@frozen(kw_only=True)
class Entry:
    """What a name stands for. ``index_digest`` is empty when the image came in no index."""

    digest: str
    index_digest: str
    size: int
    created: int  # ms since the epoch, 0 when the image does not say
    architecture: str
    indexes: tuple[str, ...] = field(
        default=(), converter=_texts
    )  # kept beside the manifest, outermost first
    private: bool = False  # credentials were shown for it: it is not handed to other machines
    pulled: bool = False  # it can be had again; what was imported perhaps nowhere
    stored: int = 0  # when the name was given, ms since the epoch; 0 in stores of earlier versions

    @property
    def root(self) -> str:
        """The digest by which others ask for it: of the outermost index, else of the manifest."""
        return self.indexes[0] if self.indexes else self.digest

    def is_named(self, digest: str) -> bool:
        """Whether the digest is the manifest's, or that of an index that led to it."""
        return digest in (self.digest, *self.indexes)

    def info(self, ref: str) -> ImageInfo:
        return ImageInfo(
            ref=ref,
            digest=self.digest,
            size=self.size,
            created=self.created,
            architecture=self.architecture,
        )


class RefIndex:
    """Names → entries in ``index.json`` of a store."""

    def __init__(self, store: Path) -> None:
        self._file = store / "index.json"
        self._lock = store / "index.lock"

    def all(self) -> dict[str, Entry]:
        """Every name. Needs no lock: the file is only ever replaced as a whole."""
        try:
            document = json.loads(self._file.read_bytes())
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']}")
            return {ref: Entry(**entry) for ref, entry in document["images"].items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            remedy = "move the file away and import the images again"
            raise StoreDamaged(str(self._file), f"cannot be read ({error})", remedy) from error

    def set(self, entries: Mapping[str, Entry]) -> None:
        with locked(self._lock):
            self._write({**self.all(), **entries})

    def delete(self, ref: str) -> None:
        """Raises ``ImageNotFound``."""
        with locked(self._lock):
            entries = self.all()
            if entries.pop(ref, None) is None:
                raise ImageNotFound(ref)
            self._write(entries)

    def _write(self, entries: Mapping[str, Entry]) -> None:
        images = {ref: asdict(entry) for ref, entry in sorted(entries.items())}
        replace_file(self._file, encode({"version": _VERSION, "images": images}))
