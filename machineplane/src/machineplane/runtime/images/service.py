"""Images for pods: pull policies as Kubernetes means them, over one store, its registries and the other machines.

Where Kubernetes would not run a pod because the registry is away, and the image is here, it is run (and said): a machine of
this fabric has no other place to ask, and a registry that is down is no reason to stop a rollout.
"""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
import trio

from machineplane.runtime.images.download import Downloader, Watch
from machineplane.runtime.images.errors import (
    ImageNotFound,
    NeverPull,
    PullFailed,
    RegistryUnreachable,
    StoreDamaged,
)
from machineplane.runtime.images.model import Image, ImageInfo
from machineplane.runtime.images.names import Reference, parse_reference
from machineplane.runtime.images.peers import NoPeers, Peers
from machineplane.runtime.images.progress import Account
from machineplane.runtime.images.pull import Puller
from machineplane.runtime.images.registry.client import Registries, open_registries
from machineplane.runtime.images.registry.credentials import Credential, Keyring
from machineplane.runtime.images.registry.settings import RegistrySettings
from machineplane.runtime.images.store import ImageStore
from machineplane.runtime.images.waits import Waits

ALWAYS, IF_NOT_PRESENT, NEVER = "Always", "IfNotPresent", "Never"
ALLOWED_MAX = 1000  # remembered answers of registries on who may have which private image; at it the oldest goes. A guess

Report = Callable[[str, str], None]
"""Takes the reason (``Pulling``, ``Pulled``) and the message of an Event."""


def default_policy(reference: Reference) -> str:
    """Kubernetes' rule, for pods that come without: ``Always`` for the tag ``latest``."""
    return ALWAYS if reference.tag == "latest" and reference.digest is None else IF_NOT_PRESENT


class ImageService:
    """Use :func:`open_images`. ``peers`` may be set once the mesh is there."""

    def __init__(self, store: ImageStore, registries: Registries, waits: Waits) -> None:
        self.store = store
        self.peers: Peers = NoPeers()
        self._registries = registries
        self._downloader = Downloader(store.partials, at_once=registries.settings.at_once, waits=waits)
        self._turns: dict[str, tuple[trio.Lock, int]] = {}
        self._allowed: dict[tuple[str, frozenset[Credential]], None] = {}
        self._log = structlog.get_logger(room="runtime")

    async def image(self, text: str, policy: str, keyring: Keyring, report: Report) -> Image:
        """The image a container is to be started with.

        Raises ``BadReference`` where the name is none, ``NeverPull``, or another ``ImageError`` that says why there is
        none at present.
        """
        reference = parse_reference(text)
        policy = policy or default_policy(reference)
        async with self._turn(str(reference)):
            image = await self._by_policy(reference, text, policy, keyring, report)
        await trio.to_thread.run_sync(self.store.use, image)
        return image

    async def pull(self, text: str, watch: Watch) -> ImageInfo:
        """Pull by hand, with the credentials of this machine alone. Raises ``ImageError``."""
        reference = parse_reference(text)
        async with self._turn(str(reference)):
            return await self._puller().pull(reference, Keyring(), watch)

    async def _by_policy(
        self, reference: Reference, text: str, policy: str, keyring: Keyring, report: Report
    ) -> Image:
        here = await self._local(reference)
        if policy == NEVER and here is None:
            raise NeverPull(f"image {reference}", "is not present with pull policy of Never")
        elsewhere = bool(self._registries.sources(reference, keyring))
        if here is not None and (policy != ALWAYS or not elsewhere):
            await self._require_allowed(here, reference, keyring)
            report("Pulled", f'Container image "{text}" already present on machine')
            return here
        try:
            return await self._pull(reference, text, keyring, report)
        except RegistryUnreachable as error:
            if here is None:
                raise
            await self._require_allowed(here, reference, keyring)
            self._log.warning("image-as-it-is", image=str(reference), digest=here.digest, reason=str(error))
            report("Pulled", f'Container image "{text}" is used as it is on this machine: {error}')
            return here

    async def _local(self, reference: Reference) -> Image | None:
        try:
            return await trio.to_thread.run_sync(self.store.resolve, str(reference))
        except ImageNotFound:
            return None
        except StoreDamaged as error:
            self._log.warning("image-damaged", image=str(reference), error=str(error))
            return None  # a pull may mend it

    async def _pull(self, reference: Reference, text: str, keyring: Keyring, report: Report) -> Image:
        report("Pulling", f'Pulling image "{text}"')
        began = trio.current_time()
        said = Account(str(reference), self._log, trio.current_time)
        info = await self._puller().pull(reference, keyring, said.watch)
        took = trio.current_time() - began
        self._log.info(
            "image-pulled",
            image=info.ref,
            digest=info.digest,
            seconds=round(took, 3),
            blobs_from=said.sources,
        )
        report("Pulled", f'Successfully pulled image "{text}" in {took:.3g}s. Image size: {info.size} bytes.')
        return await trio.to_thread.run_sync(self.store.resolve, info.ref)

    def _puller(self) -> Puller:
        return Puller(
            store=self.store, registries=self._registries, peers=self.peers, downloader=self._downloader
        )

    # -- private images

    async def _require_allowed(self, image: Image, reference: Reference, keyring: Keyring) -> None:
        """An image that was had by credentials is for pods whose credentials the registry takes for it as well.

        What a registry has once said holds until this daemon ends; where it cannot be asked, who has a fitting key may.
        """
        entry = self.store.entries().get(image.ref)
        if entry is None or not entry.private:
            return
        keys = keyring + self._registries.settings.keyring
        answer = (image.digest, frozenset(keys.find(reference.domain, reference.path)))
        if answer in self._allowed:
            return
        failure: PullFailed | None = None
        for source in self._registries.sources(reference, keyring):
            try:
                await source.exists(image.digest)
                self._remember(answer)
                return
            except PullFailed as error:
                failure = error
        if failure is None or not (isinstance(failure, RegistryUnreachable) and answer[1]):
            raise failure or ImageNotFound(image.ref)

    def _remember(self, answer: tuple[str, frozenset[Credential]]) -> None:
        self._allowed[answer] = None
        while len(self._allowed) > ALLOWED_MAX:
            del self._allowed[next(iter(self._allowed))]

    # -- one at a time

    @asynccontextmanager
    async def _turn(self, ref: str) -> AsyncIterator[None]:
        """Pods that start together with one image wait for one pull."""
        lock, users = self._turns.get(ref, (trio.Lock(), 0))
        self._turns[ref] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns[ref]
            if users == 1:
                del self._turns[ref]
            else:
                self._turns[ref] = (lock, users - 1)


@asynccontextmanager
async def open_images(store: ImageStore, settings: RegistrySettings) -> AsyncIterator[ImageService]:
    """The service, its connections closed at the end."""
    waits = Waits(random.SystemRandom())
    async with open_registries(settings, waits) as registries:
        yield ImageService(store, registries, waits)
