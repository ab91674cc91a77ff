"""The agent's image: baked into this distribution's wheel by ``nox -s workplane-image``, and put into the store at start."""

import json
from pathlib import Path

from attrs import frozen

from machineplane.runtime.images.errors import ImageNotFound, StoreDamaged, UnsupportedImage
from machineplane.runtime.images.store import ImageStore

AGENT_REF = "localhost/magik/workplane:latest"
BAKED = Path(__file__).with_name("baked")
"""Where the wheel has it; in a source tree it is a product of the build."""


@frozen(kw_only=True)
class Baked:
    """An image that came with this distribution. ``digest`` is its manifest's; ``key`` says what sources it is of."""

    architecture: str
    digest: str
    key: str
    folder: Path = BAKED

    @classmethod
    def find(cls, architecture: str, folder: Path = BAKED) -> "Baked | None":
        """The one for ``architecture``; None where none was baked, or what is there cannot be read."""
        wanted = cls(architecture=architecture, digest="", key="", folder=folder)
        try:
            said = json.loads(wanted.description.read_bytes())
            return cls(
                architecture=architecture, digest=str(said["digest"]), key=str(said["key"]), folder=folder
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def archive(self) -> Path:
        """An OCI archive, compressed with zstd."""
        return self.folder / f"workplane-{self.architecture}.tar.zst"

    @property
    def description(self) -> Path:
        """The digest and the key, as JSON."""
        return self.folder / f"workplane-{self.architecture}.json"


def ensure_agent(store: ImageStore, folder: Path = BAKED) -> bool:
    """Put the agent's image of this distribution into the store unless it is there (blocking); whether that was done.

    Nothing is done where this distribution came without one. Raises ``ImageError`` for a broken archive or a store that
    cannot be written.
    """
    baked = Baked.find(store.architecture, folder)
    if baked is None or _is_there(store, baked.digest):
        return False
    store.import_file(baked.archive, AGENT_REF)
    return True


def agent_root(store: ImageStore) -> Path:
    """The folder of the agent's image, unpacked. Raises ``ImageError`` where it is not there, or of several layers."""
    layers = store.layer_paths(store.resolve(AGENT_REF))
    if len(layers) != 1:
        raise UnsupportedImage(f"image {AGENT_REF}", f"has {len(layers)} layers, not one")
    return layers[0]


def _is_there(store: ImageStore, digest: str) -> bool:
    try:
        image = store.resolve(AGENT_REF)
        return image.digest == digest and bool(store.layer_paths(image))
    except (ImageNotFound, StoreDamaged):
        return False
