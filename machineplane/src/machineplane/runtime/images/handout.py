"""What this machine hands out to others: content of images that have a name here and are not private. Synchronous."""

from pathlib import Path

from attrs import field, frozen

from machineplane.runtime.images.documents import parse_manifest
from machineplane.runtime.images.errors import ImageError
from machineplane.runtime.images.refs import Entry
from machineplane.runtime.images.store import ImageStore


@frozen
class Held:
    """An image that is here: the digest to ask for, and when it was taken in (ms since the epoch)."""

    digest: str
    at: int


@frozen
class Handout:
    """Of one store. Keeps in memory which blobs belong to which manifest; manifests never change."""

    store: ImageStore
    everywhere: frozenset[str] = frozenset()  # names of what every machine has, which nobody has to be told
    _blobs: dict[str, frozenset[str]] = field(factory=dict)

    def by_digest(self, digest: str) -> Held | None:
        """The image whose manifest or index has this digest."""
        found = [entry for entry in self._public().values() if entry.is_named(digest)]
        return Held(digest, max(entry.stored for entry in found)) if found else None

    def by_name(self, ref: str) -> Held | None:
        """What is here under a complete name."""
        entry = self._public().get(ref)
        return Held(entry.root, entry.stored) if entry is not None else None

    def blob(self, digest: str) -> Path | None:
        """Where a blob is, if it may be handed out."""
        entries = {entry.digest: entry for entry in self._public().values()}
        for gone in self._blobs.keys() - entries.keys():
            del self._blobs[gone]
        if any(digest in entry.indexes or digest in self._blobs_of(entry) for entry in entries.values()):
            return self.store.blob_path(digest)
        return None

    def told(self) -> tuple[str, ...]:
        """The digests and names under which others may ask here: of images of which every blob is in its place.

        The oldest come first, so that what is told stays so where there is more than can be.
        """
        public = sorted(self._public().items(), key=lambda item: (item[1].stored, item[0]))
        found: dict[str, None] = {}
        for ref, entry in public:
            if ref not in self.everywhere and self._is_whole(entry):
                found |= dict.fromkeys((ref, entry.digest, *entry.indexes))
        return tuple(found)

    def _is_whole(self, entry: Entry) -> bool:
        blobs = self._blobs_of(entry)
        return bool(blobs) and all(
            self.store.blob_path(digest).exists() for digest in (*blobs, *entry.indexes)
        )

    def _public(self) -> dict[str, Entry]:
        return {ref: entry for ref, entry in self.store.entries().items() if not entry.private}

    def _blobs_of(self, entry: Entry) -> frozenset[str]:
        if entry.digest not in self._blobs:
            try:
                data = self.store.document(entry.digest) or b""
                manifest = parse_manifest(data, entry.digest, layers=self.store.limits.layers)
            except ImageError:
                return frozenset()  # damaged, which whoever runs it is told
            blobs = (manifest.config, *manifest.layers)
            self._blobs[entry.digest] = frozenset((entry.digest, *(blob.digest for blob in blobs)))
        return self._blobs[entry.digest]
