"""The JSON documents of images: descriptors, indexes, manifests and configurations, read strictly enough to
trust.

Field names are those of the OCI image specification 1.1 and of Docker's schema 2, which agree in all that
is used here.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from attrs import field, frozen

from machineplane.runtime.images.errors import NotAnImage, UnsupportedImage, shown
from machineplane.runtime.images.model import ImageConfig
from machineplane.runtime.images.names import is_digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEX_TYPES = (OCI_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_TYPES = (OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
_CONFIG_TYPES = (OCI_CONFIG, "application/vnd.docker.container.image.v1+json")
_LAYER_TYPES = (
    OCI_LAYER,
    f"{OCI_LAYER}+gzip",
    f"{OCI_LAYER}+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
)
# A WebAssembly module as an artifact: the layout of CNCF's TAG Runtime, and that of wasm-to-oci, which was before it;
# with the empty configuration (image-spec 1.1) it is what `oras push` makes of a file.
MODULE_CONFIG = "application/vnd.wasm.config.v0+json"
MODULE = "application/wasm"
_MODULE_CONFIG_TYPES = (
    MODULE_CONFIG,
    "application/vnd.wasm.config.v1+json",
    "application/vnd.oci.empty.v1+json",
)
_MODULE_TYPES = (MODULE, "application/vnd.wasm.content.layer.v1+wasm")
WASM_ARCHITECTURE = "wasm"
WASM_SYSTEMS = ("", "wasi", "wasip1")
"""Operating systems, so called, of modules that run here: WASI preview 1. Components are ``wasip2``."""
MODULE_FILE = "app.wasm"
"""Where the module of an artifact is, for it has no name of its own."""


@frozen
class Platform:
    os: str
    architecture: str
    variant: str = ""


@frozen(kw_only=True)
class Descriptor:
    """A pointer to content: what it is, its digest and its size in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(factory=dict)


@frozen
class Manifest:
    """``module``: the one layer is a bare WebAssembly module."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    module: bool = False


@frozen(kw_only=True)
class Configuration:
    """The part of an image configuration that the store needs. ``created`` is ms since the epoch or 0."""

    config: ImageConfig
    architecture: str
    os: str
    created: int
    diff_ids: tuple[str, ...]


def sha256(data: bytes) -> str:
    """The digest of ``data`` as documents write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def encode(document: object) -> bytes:
    """JSON with sorted keys and no blanks: the same document gives the same bytes, hence the same digest."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def encode_manifest(config: Mapping[str, object], layers: Sequence[Mapping[str, object]]) -> bytes:
    """A manifest of the given descriptors."""
    return encode({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": list(layers)})


class Fields:
    """A JSON object, its fields asked for by type; a wrong type raises ``NotAnImage`` naming the field."""

    def __init__(self, value: object, subject: str) -> None:
        if not isinstance(value, dict):
            raise NotAnImage(subject, "is not a JSON object")
        self._value: dict[str, Any] = value
        self._subject = subject

    @classmethod
    def parse(cls, data: bytes, subject: str) -> "Fields":
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise NotAnImage(subject, "is not JSON", "save the image again") from error
        return cls(value, subject)

    def text(self, name: str) -> str:
        text: str = self._typed(name, str, "")
        return text

    def number(self, name: str) -> int:
        number: int = self._typed(name, int, 0)
        return number

    def child(self, name: str) -> "Fields":
        return Fields(self._typed(name, dict, {}), f"{self._subject}: {name}")

    def has(self, name: str) -> bool:
        return self._value.get(name) is not None

    def children(self, name: str) -> list["Fields"]:
        items: list[object] = self._typed(name, list, [])
        return [Fields(item, f"{self._subject}: {name}") for item in items]

    def texts(self, name: str) -> tuple[str, ...]:
        items: list[object] = self._typed(name, list, [])
        return tuple(self._string(item, name) for item in items)

    def mapping(self, name: str) -> dict[str, str]:
        items: dict[str, object] = self._typed(name, dict, {})
        return {key: self._string(value, name) for key, value in items.items()}

    def keys(self, name: str) -> tuple[str, ...]:
        items: dict[str, object] = self._typed(name, dict, {})
        return tuple(sorted(items))

    def _typed(self, name: str, kind: type, default: Any) -> Any:
        value = self._value.get(name)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise NotAnImage(self._subject, f"has a bad field {name!r}", "save the image again")
        return value

    def _string(self, value: object, name: str) -> str:
        if not isinstance(value, str):
            raise NotAnImage(self._subject, f"has a bad field {name!r}", "save the image again")
        return value


def parse_descriptor(fields: Fields, subject: str) -> Descriptor:
    """Raises ``UnsupportedImage`` for digests other than SHA-256, the one the specification demands."""
    digest, size = fields.text("digest"), fields.number("size")
    if not is_digest(digest):
        raise UnsupportedImage(
            subject, f"names content by {shown(digest)}", "only sha256 digests are supported"
        )
    if size < 0:
        raise NotAnImage(subject, "has a descriptor of negative size")
    return Descriptor(
        media_type=fields.text("mediaType"),
        digest=digest,
        size=size,
        platform=_platform(fields.child("platform")) if fields.has("platform") else None,
        annotations=fields.mapping("annotations"),
    )


def _platform(fields: Fields) -> Platform:
    return Platform(fields.text("os"), fields.text("architecture"), fields.text("variant"))


def parse_index(data: bytes, subject: str) -> tuple[Descriptor, ...]:
    """The entries of an OCI index or a Docker manifest list."""
    entries = Fields.parse(data, subject).children("manifests")
    return tuple(parse_descriptor(entry, subject) for entry in entries)


def parse_manifest(data: bytes, subject: str, *, layers: int) -> Manifest:
    """A manifest of at most ``layers`` layers of known types; others raise ``UnsupportedImage``."""
    fields = Fields.parse(data, subject)
    config = parse_descriptor(fields.child("config"), subject)
    found = tuple(parse_descriptor(entry, subject) for entry in fields.children("layers"))
    if config.media_type in _MODULE_CONFIG_TYPES and any(x.media_type in _MODULE_TYPES for x in found):
        if len(found) != 1:
            raise UnsupportedImage(subject, f"has {len(found)} layers", "a module is one layer")
        return Manifest(config, found, module=True)
    if config.media_type not in _CONFIG_TYPES:
        raise UnsupportedImage(subject, f"is no container image but {shown(config.media_type)}")
    if unknown := [layer.media_type for layer in found if layer.media_type not in _LAYER_TYPES]:
        raise UnsupportedImage(subject, f"has a layer of the unknown type {shown(unknown[0])}")
    if not 0 < len(found) <= layers:
        raise UnsupportedImage(subject, f"has {len(found)} layers", f"between 1 and {layers} are supported")
    return Manifest(config, found)


def parse_configuration(data: bytes, subject: str) -> Configuration:
    """An image configuration of OCI or Docker."""
    fields = Fields.parse(data, subject)
    diff_ids = fields.child("rootfs").texts("diff_ids")
    if unknown := [diff_id for diff_id in diff_ids if not is_digest(diff_id)]:
        raise UnsupportedImage(subject, f"has the bad diff id {shown(unknown[0])}")
    return Configuration(
        config=_run_config(fields.child("config")),
        architecture=fields.text("architecture"),
        os=fields.text("os"),
        created=_milliseconds(fields.text("created")),
        diff_ids=diff_ids,
    )


def configuration_of(manifest: Manifest, data: bytes, subject: str) -> Configuration:
    """What the configuration ``data`` says of the manifest's image; of a module it may say nothing at all."""
    if not manifest.module:
        return parse_configuration(data, subject)
    fields = Fields.parse(data, subject)
    return Configuration(
        config=_run_config(Fields({"Entrypoint": [f"/{MODULE_FILE}"]}, subject)),
        architecture=fields.text("architecture") or WASM_ARCHITECTURE,
        os=fields.text("os"),
        created=_milliseconds(fields.text("created")),
        diff_ids=tuple(layer.digest for layer in manifest.layers),
    )


def _run_config(fields: Fields) -> ImageConfig:
    return ImageConfig(
        entrypoint=fields.texts("Entrypoint"),
        cmd=fields.texts("Cmd"),
        env=fields.texts("Env"),
        working_dir=fields.text("WorkingDir"),
        user=fields.text("User"),
        exposed_ports=fields.keys("ExposedPorts"),
        stop_signal=fields.text("StopSignal"),
        labels=fields.mapping("Labels"),
    )


def _milliseconds(text: str) -> int:
    """RFC 3339 to ms since the epoch; what cannot be read counts as not told (it is only ever shown)."""
    try:
        moment = datetime.fromisoformat(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        return 0
