"""One container's image: had by its pull policy, tried again with the kubelet's back-off, and shown with its words."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import trio
from attrs import frozen

from machineplane.runtime.book import PodBook
from machineplane.runtime.bundle.objects import Lookup, MissingReference, find_values
from machineplane.runtime.changes import PodEvent
from machineplane.runtime.errors import PodSpecError
from machineplane.runtime.images import Image, ImageError
from machineplane.runtime.images.errors import BadReference, BadSettings, NeverPull
from machineplane.runtime.images.registry.credentials import (
    Keyring,
    parse_docker_cfg,
    parse_docker_config,
)
from machineplane.runtime.images.service import ImageService
from machineplane.runtime.policy import next_backoff

SHOWN_S = 2.0
"""How long an error is shown before ``ImagePullBackOff`` takes its place: about when the kubelet looks again. A guess."""

PATIENCE_S = 60.0
"""How long a pull may take before the pod counts as handed over: half of what an owner gives to a deployment."""

_FORMS = {".dockerconfigjson": parse_docker_config, ".dockercfg": parse_docker_cfg}


def pod_keyring(spec: Mapping[str, Any], lookup: Lookup) -> Keyring:
    """The credentials of ``imagePullSecrets``. A Secret that is missing or broken is passed over, as the kubelet does:
    the pull shows whether it was needed."""
    keyring = Keyring()
    listed = spec.get("imagePullSecrets")
    for reference in listed if isinstance(listed, list) else ():
        if not isinstance(reference, Mapping):
            continue
        name = str(reference.get("name", ""))
        with suppress(MissingReference, PodSpecError, BadSettings):
            for key, data in (find_values(lookup, "Secret", reference) or {}).items():
                if key in _FORMS:
                    keyring += _FORMS[key](data, f"secret {name}")
    return keyring


@frozen(kw_only=True)
class ImageTask:
    """Gets the image of the container ``spec``. What happens meanwhile goes into the book, and as Events to ``tell``."""

    service: ImageService
    book: PodBook
    spec: Mapping[str, Any]
    lookup: Lookup
    tell: Callable[[PodEvent], None]

    async def get(self, failed: Callable[[], None]) -> Image:
        """The image, however long that takes. ``failed`` is called after each try that brought none, or takes long."""
        backoff = 0.0
        while True:
            try:
                return await self._patiently(failed)
            except BadReference as error:
                self._warn("InspectFailed", f'Failed to apply default image tag "{self._name}": {error}')
                self._show("InvalidImageName", str(error), failed)
                await trio.sleep_forever()  # a name does not get better
            except NeverPull as error:
                self._warn("ErrImageNeverPull", f'Container image "{self._name}" {error.problem}')
                self._show("ErrImageNeverPull", str(error), failed)
                reason = "ErrImageNeverPull"
            except ImageError as error:
                self._warn("Failed", f'Failed to pull image "{self._name}": {error}')
                self._show("ErrImagePull", str(error), failed)
                reason = "ImagePullBackOff"
            backoff = next_backoff(backoff, 0)
            await trio.sleep(SHOWN_S)
            if reason == "ImagePullBackOff":
                self._event("Normal", "BackOff", f'Back-off pulling image "{self._name}"')
                message = self.book.container(self.spec["name"]).message
                self._show(reason, f'Back-off pulling image "{self._name}": {message}', failed)
            await trio.sleep(backoff - SHOWN_S)

    @property
    def _name(self) -> str:
        return str(self.spec["image"])

    async def _patiently(self, failed: Callable[[], None]) -> Image:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_call_later, failed)
            try:
                return await self._try()
            except ImageError as error:
                problem = error  # raised below, outside of the nursery's group
            finally:
                nursery.cancel_scope.cancel()
        raise problem

    async def _try(self) -> Image:
        keyring = pod_keyring(self.book.status.pod["spec"], self.lookup)
        policy = str(self.spec.get("imagePullPolicy") or "")
        return await self.service.image(
            self._name, policy, keyring, lambda reason, message: self._event("Normal", reason, message)
        )

    def _show(self, reason: str, message: str, failed: Callable[[], None]) -> None:
        self.book.update_container(self.spec["name"], reason=reason, message=message)
        self._warn("Failed", f"Error: {reason}")
        failed()

    def _warn(self, reason: str, message: str) -> None:
        self._event("Warning", reason, message)

    def _event(self, kind: str, reason: str, message: str) -> None:
        self.tell(PodEvent(self.book.status.uid, kind, reason, message))


async def _call_later(call: Callable[[], None]) -> None:
    await trio.sleep(PATIENCE_S)
    call()
