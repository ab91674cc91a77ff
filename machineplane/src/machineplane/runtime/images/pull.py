"""Pulls an image: which content a name stands for, who has it, and then every blob, from other machines first.

A digest is proof, so content by digest is taken from whoever has it. A tag is somebody's word: the registry's, or where
the registry cannot be asked, the newest that a member of the fabric has under that very name.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import structlog
import trio
from attrs import field, frozen

from machineplane.runtime.images.archive import Staged
from machineplane.runtime.images.documents import (
    INDEX_TYPES,
    Descriptor,
    Fields,
    Manifest,
    parse_index,
    parse_manifest,
    sha256,
)
from machineplane.runtime.images.download import Downloader, Watch
from machineplane.runtime.images.errors import (
    DigestMismatch,
    ImageError,
    ImageNotFound,
    PullFailed,
    QuotaExceeded,
    RegistryUnreachable,
    UnsupportedImage,
)
from machineplane.runtime.images.formats import INDEX_DEPTH, FoundImage, choose_platform
from machineplane.runtime.images.intake import Downloaded, Origin
from machineplane.runtime.images.model import ImageInfo
from machineplane.runtime.images.names import Reference
from machineplane.runtime.images.partial import PartialBlob, remove_partials
from machineplane.runtime.images.peers import Peers
from machineplane.runtime.images.registry.client import Registries
from machineplane.runtime.images.registry.credentials import Keyring
from machineplane.runtime.images.registry.source import EndpointSource
from machineplane.runtime.images.sources import Source
from machineplane.runtime.images.store import FULL, ImageStore, wall_ms, writing


@frozen
class _Root:
    """What a name stands for: a digest, and the document if it came along."""

    digest: str
    document: bytes | None = None


@frozen(kw_only=True)
class _Plan:
    """An image that was found: its documents are here, its blobs are still to come."""

    reference: Reference
    manifest: Manifest
    data: bytes
    digest: str
    indexes: Mapping[str, bytes]
    sources: tuple[Source, ...]

    def found(self) -> FoundImage:
        blobs = (self.manifest.config, *self.manifest.layers)
        return FoundImage(
            names=(str(self.reference),),
            manifest=self.data,
            manifest_digest=self.digest,
            index_digest=next(iter(self.indexes), None),
            files={blob.digest: blob.digest for blob in blobs},
            indexes=self.indexes,
        )


@frozen(kw_only=True)
class Puller:
    """Pulls into one store. Every method raises subclasses of ``ImageError``."""

    store: ImageStore
    registries: Registries
    peers: Peers
    downloader: Downloader
    _log: Any = field(factory=lambda: structlog.get_logger(room="runtime"))

    async def pull(self, reference: Reference, keyring: Keyring, watch: Watch) -> ImageInfo:
        """The image of that name as it is now where it comes from; what the store has of it is not fetched again."""
        endpoints = self.registries.sources(reference, keyring)
        root = await self._root(reference, endpoints)
        offers = () if self._is_here(root.digest) else await self.peers.find_digest(root.digest)
        sources = (*(offer.source for offer in offers), *endpoints)
        if not sources and self.store.document(root.digest) is None:
            raise ImageNotFound(str(reference))
        plan = await self._plan(reference, root, sources)
        blobs = await self._download(plan, watch)
        try:
            origin = Origin(
                at=wall_ms(), pulled=True, private=any(endpoint.private for endpoint in endpoints)
            )
            bundle = Downloaded(str(reference), {d: _staged(blob) for d, blob in blobs.items()})
            return await trio.to_thread.run_sync(self.store.import_pulled, plan.found(), bundle, origin)
        finally:
            _give_up(blobs.values(), keep=False)

    # -- which

    async def _root(self, reference: Reference, endpoints: Sequence[EndpointSource]) -> _Root:
        if reference.digest is not None:
            await self._may_have(reference.digest, endpoints)
            return _Root(reference.digest)
        assert reference.tag is not None
        failure: PullFailed | None = None
        for endpoint in endpoints:
            try:
                tagged = await endpoint.resolve(reference.tag, self.store.limits.document_bytes)
                return _Root(tagged.digest, tagged.document)
            except PullFailed as error:
                failure = error  # the registry comes last, after its mirrors: its word counts
        if failure is not None and not isinstance(failure, RegistryUnreachable):
            raise failure
        return await self._by_hearsay(reference, failure)

    def _is_here(self, digest: str) -> bool:
        return any(entry.is_named(digest) for entry in self.store.entries().values())

    async def _may_have(self, digest: str, endpoints: Sequence[EndpointSource]) -> None:
        """Content that came here for somebody's credentials is no proof that these may have it: the registry is asked."""
        here = [entry for entry in self.store.entries().values() if entry.is_named(digest)]
        if here and all(entry.private for entry in here):
            failure: PullFailed | None = None
            for endpoint in endpoints:
                try:
                    return await endpoint.exists(digest)
                except PullFailed as error:
                    failure = error
            if failure is not None:
                raise failure
        return None

    async def _by_hearsay(self, reference: Reference, failure: PullFailed | None) -> _Root:
        """No registry to ask: the newest that a machine has under this name, equals by digest."""
        offers = await self.peers.find_name(str(reference))
        if not offers:
            raise failure or ImageNotFound(str(reference))
        newest = max(offers, key=lambda offer: (offer.at, offer.digest))
        self._log.warning(
            "image-tag-from-peer",
            image=str(reference),
            digest=newest.digest,
            machine=newest.source.subject,
            reason=str(failure) if failure else "no registry for this name",
        )
        return _Root(newest.digest)

    # -- documents

    async def _plan(self, reference: Reference, root: _Root, sources: tuple[Source, ...]) -> _Plan:
        """Down from the root to the manifest for this machine."""
        digest, indexes = root.digest, dict[str, bytes]()
        for _ in range(INDEX_DEPTH):
            data = await self._document(digest, root, sources)
            subject = f"{reference}: {digest}"
            if not _is_index(data, subject):
                manifest = parse_manifest(data, subject, layers=self.store.limits.layers)
                self._check_size(manifest, subject)
                return _Plan(
                    reference=reference,
                    manifest=manifest,
                    data=data,
                    digest=digest,
                    indexes=indexes,
                    sources=sources,
                )
            indexes[digest] = data
            entries = parse_index(data, subject)
            digest = choose_platform(entries, self.store.architecture, str(reference)).digest
        raise UnsupportedImage(str(reference), f"has indexes in indexes, more than {INDEX_DEPTH} deep")

    async def _document(self, digest: str, root: _Root, sources: Sequence[Source]) -> bytes:
        if digest == root.digest and root.document is not None:
            return root.document
        here = await trio.to_thread.run_sync(self.store.document, digest)
        if here is not None:
            return here
        failure: ImageError = PullFailed(f"manifest {digest}", "is to be had nowhere")
        for source in sources:
            try:
                data = await source.document(digest, self.store.limits.document_bytes)
            except PullFailed as error:
                failure = error
                continue
            if sha256(data) == digest:
                return data
            failure = DigestMismatch(f"{source.subject}: {digest}", f"is answered with {sha256(data)}")
        raise failure

    def _check_size(self, manifest: Manifest, subject: str) -> None:
        size = manifest.config.size + sum(layer.size for layer in manifest.layers)
        if size > self.store.limits.archive_bytes or manifest.config.size > self.store.limits.document_bytes:
            raise QuotaExceeded(
                subject, f"has {size} bytes to download, too many", "raise the store's limits"
            )

    # -- blobs

    async def _download(self, plan: _Plan, watch: Watch) -> dict[str, "PartialBlob | Staged"]:
        """All blobs at once, as the downloader lets them. Raises the first failure; what came is kept for the next try."""
        wanted = {blob.digest: blob for blob in (plan.manifest.config, *plan.manifest.layers)}
        blobs: dict[str, PartialBlob | Staged] = {}
        failures: list[Exception] = []

        async def fetch(descriptor: Descriptor) -> None:
            try:
                blobs[descriptor.digest] = await self._blob(descriptor, plan.sources, watch)
            except (ImageError, OSError) as error:
                failures.append(error)
                nursery.cancel_scope.cancel()

        whole = False
        try:
            async with trio.open_nursery() as nursery:
                for descriptor in wanted.values():
                    nursery.start_soon(fetch, descriptor)
            whole = not failures
        finally:
            if not whole:
                _give_up(blobs.values(), keep=True)
        if failures:
            await self._fail(failures[0])
        return blobs

    async def _fail(self, failure: Exception) -> NoReturn:
        """Raises it. Where the disk takes nothing more, what broken downloads have left makes room first."""
        with writing(self.store.path):
            if isinstance(failure, OSError) and failure.errno in FULL:
                await trio.to_thread.run_sync(remove_partials, self.store.partials, math.inf)
            raise failure

    async def _blob(
        self, wanted: Descriptor, sources: Sequence[Source], watch: Watch
    ) -> "PartialBlob | Staged":
        path = self.store.blob_path(wanted.digest)
        if path.exists() and path.stat().st_size == wanted.size:
            return Staged(path, wanted.digest, wanted.size)
        return await self.downloader.fetch(wanted, sources, watch)


def _is_index(data: bytes, subject: str) -> bool:
    """By what it holds; a document that could be both would be read differently by others (CVE-2021-41190)."""
    fields = Fields.parse(data, subject)
    index = fields.has("manifests")
    if index and (fields.has("layers") or fields.has("config")):
        raise UnsupportedImage(subject, "is an index and a manifest at once")
    if fields.number("schemaVersion") not in (0, 2):
        raise UnsupportedImage(
            subject, "is a manifest of an old schema", "push the image again with a newer tool"
        )
    if index != (fields.text("mediaType") in INDEX_TYPES) and fields.text("mediaType"):
        raise UnsupportedImage(subject, "is not what its media type says")
    return index


def _staged(blob: "PartialBlob | Staged") -> Staged:
    return blob if isinstance(blob, Staged) else blob.staged()


def _give_up(blobs: "Sequence[PartialBlob | Staged] | Any", *, keep: bool) -> None:
    for blob in blobs:
        if isinstance(blob, PartialBlob):
            blob.close(keep=keep)
