"""Finds the images in a bundle: OCI image layout (with nested indexes), or what ``docker save`` writes.

Either way the result is a manifest with a map from digest to the bundle's file, so that the store knows one
form only.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

from attrs import field, frozen

from machineplane.runtime.images.archive import Bundle, Staged, read_document
from machineplane.runtime.images.documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_LAYER,
    WASM_ARCHITECTURE,
    WASM_SYSTEMS,
    Descriptor,
    Fields,
    encode_manifest,
    parse_index,
    sha256,
)
from machineplane.runtime.images.errors import (
    DigestMismatch,
    NotAnImage,
    SizeMismatch,
    UnsupportedImage,
    shown,
)
from machineplane.runtime.images.model import StoreLimits

INDEX_DEPTH = 4  # index within index; one is common, more is a guess
_NAME_ANNOTATIONS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_FORMS = "give an OCI layout directory, an OCI archive or a docker archive"


@frozen(kw_only=True)
class FoundImage:
    """An image: ``names`` as the archive has them, ``files`` from digests to files of the bundle."""

    names: tuple[str, ...]
    manifest: bytes
    manifest_digest: str
    index_digest: str | None
    files: Mapping[str, str]
    indexes: Mapping[str, bytes] = field(factory=dict)  # those that led to the manifest, outermost first


def find_images(bundle: Bundle, architecture: str, limits: StoreLimits) -> list[FoundImage]:
    """All images for ``architecture``. Raises ``NotAnImage``, ``UnsupportedImage``, or a mismatch."""
    if bundle.has("index.json"):
        return _Layout(bundle, architecture, limits).images()
    if bundle.has("manifest.json"):
        return _docker_images(bundle, limits)
    raise NotAnImage(bundle.subject, "has neither index.json nor manifest.json", _FORMS)


def check_content(staged: Staged, descriptor: Descriptor, subject: str) -> None:
    """Raises unless the content has the descriptor's size and digest."""
    what = f"{subject}: {descriptor.digest}"
    if staged.size != descriptor.size:
        raise SizeMismatch(
            what, f"has {staged.size} bytes instead of {descriptor.size}", "save the image again"
        )
    if staged.digest != descriptor.digest:
        raise DigestMismatch(what, f"has content with the digest {staged.digest}", "save the image again")


def blob_name(digest: str) -> str:
    """Where an image layout keeps a blob (image-layout.md)."""
    return "blobs/" + digest.replace(":", "/")


class _Layout:
    """The OCI image layout: ``index.json`` and ``blobs/sha256/…``."""

    def __init__(self, bundle: Bundle, architecture: str, limits: StoreLimits) -> None:
        self._bundle = bundle
        self._architecture = architecture
        self._limits = limits

    def images(self) -> list[FoundImage]:
        """One image a name: entries of the same name are the same image for several machines."""
        data, _ = read_document(self._bundle, "index.json", self._limits)
        entries = [entry for entry in parse_index(data, self._bundle.subject) if not _is_attestation(entry)]
        grouped = groupby(sorted(entries, key=_names_of), key=_names_of)
        found = [self._image(names, self._choose(list(group))) for names, group in grouped]
        if not found:
            raise NotAnImage(self._bundle.subject, "has no image in its index", _FORMS)
        return found

    def _image(self, names: tuple[str, ...], entry: Descriptor) -> FoundImage:
        indexes: dict[str, bytes] = {}
        for _ in range(INDEX_DEPTH):
            data = self._blob(entry)
            if entry.media_type in MANIFEST_TYPES:
                return self._found(names, data, entry.digest, indexes)
            if entry.media_type not in INDEX_TYPES:
                break
            indexes[entry.digest] = data
            entry = self._choose(list(parse_index(data, self._bundle.subject)))
        raise UnsupportedImage(self._bundle.subject, f"has an entry of the type {shown(entry.media_type)}")

    def _found(
        self, names: tuple[str, ...], data: bytes, digest: str, indexes: Mapping[str, bytes]
    ) -> FoundImage:
        fields = Fields.parse(data, self._bundle.subject)
        descriptors = [fields.child("config"), *fields.children("layers")]
        return FoundImage(
            names=names,
            manifest=data,
            manifest_digest=digest,
            index_digest=next(iter(indexes), None),
            files={found: blob_name(found) for d in descriptors if (found := d.text("digest"))},
            indexes=indexes,
        )

    def _blob(self, descriptor: Descriptor) -> bytes:
        name = blob_name(descriptor.digest)
        data, _ = read_document(self._bundle, name, self._limits)
        check_content(self._bundle.stage(name), descriptor, self._bundle.subject)
        return data

    def _choose(self, entries: list[Descriptor]) -> Descriptor:
        return choose_platform(entries, self._architecture, self._bundle.subject)


def choose_platform(entries: Sequence[Descriptor], architecture: str, subject: str) -> Descriptor:
    """The entry for this machine, or one that names no platform (its configuration tells later), or a WebAssembly module."""
    for entry in entries:
        platform = entry.platform
        if platform is None or (platform.os, platform.architecture) == ("linux", architecture):
            return entry
    for entry in entries:
        platform = entry.platform
        if platform and platform.architecture == WASM_ARCHITECTURE and platform.os in WASM_SYSTEMS:
            return entry
    have = sorted({f"{e.platform.os}/{e.platform.architecture}" for e in entries if e.platform})
    raise UnsupportedImage(
        subject,
        f"is for {shown(', '.join(have)) if have else 'no machine'}, not linux/{architecture}",
        "save the image for this machine's architecture",
    )


def _is_attestation(entry: Descriptor) -> bool:
    """BuildKit lists provenance beside the images, under the platform unknown/unknown."""
    return entry.platform is not None and entry.platform.os == "unknown"


def _names_of(entry: Descriptor) -> tuple[str, ...]:
    """The image's name; a bare word is a tag without a name (so `skopeo copy … oci:dir:latest` writes it)."""
    for key in _NAME_ANNOTATIONS:
        name = entry.annotations.get(key, "")
        if "/" in name or ":" in name:
            return (name,)
    return ()


def _docker_images(bundle: Bundle, limits: StoreLimits) -> list[FoundImage]:
    data, _ = read_document(bundle, "manifest.json", limits)
    # the document is a list; it is given a name so that one reader serves for all documents
    fields = Fields.parse(b'{"manifest.json":' + data + b"}", bundle.subject)
    found = [_docker_image(bundle, entry, limits) for entry in fields.children("manifest.json")]
    if not found:
        raise NotAnImage(bundle.subject, "has no image in manifest.json", _FORMS)
    return found


def _docker_image(bundle: Bundle, entry: Fields, limits: StoreLimits) -> FoundImage:
    """Docker archives have no manifest with digests: the same content always gets the same one made here."""
    names = [entry.text("Config"), *entry.texts("Layers")]
    if not names[0]:
        raise NotAnImage(bundle.subject, "has an image without a configuration")
    if len(names) > limits.layers + 1:
        raise UnsupportedImage(
            bundle.subject, f"has {len(names) - 1} layers", f"{limits.layers} are supported"
        )
    config, *layers = (bundle.stage(name) for name in names)
    manifest = encode_manifest(
        _plain(OCI_CONFIG, config), [_plain(_layer_type(layer), layer) for layer in layers]
    )
    return FoundImage(
        names=entry.texts("RepoTags"),
        manifest=manifest,
        manifest_digest=sha256(manifest),
        index_digest=None,
        files={staged.digest: name for name, staged in zip(names, [config, *layers], strict=True)},
    )


def _plain(media_type: str, staged: Staged) -> dict[str, object]:
    return {"mediaType": media_type, "digest": staged.digest, "size": staged.size}


def _layer_type(staged: Staged) -> str:
    with staged.path.open("rb") as file:
        start = file.read(4)
    return OCI_LAYER + (
        "+gzip" if start[:2] == b"\x1f\x8b" else "+zstd" if start == b"\x28\xb5\x2f\xfd" else ""
    )
