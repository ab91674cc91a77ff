"""What a pod shows while its image is not to be had: the kubelet's states, pauses and Events."""

import base64
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from machineplane.runtime.book import PodBook
from machineplane.runtime.changes import PENDING_MAX, Changes, PodEvent
from machineplane.runtime.image_task import ImageTask, pod_keyring
from machineplane.runtime.images.errors import BadReference, ImageError, NeverPull, PullFailed
from machineplane.runtime.images.registry.credentials import Keyring
from machineplane.runtime.record import PodRecord
from machineplane.runtime.status import ContainerStatus, PodStatus

FAILURE = PullFailed("registry a.test", "does not answer")


class Service:
    """Fails with each of ``failures`` in turn, then gives an image."""

    def __init__(self, *failures: ImageError, takes: float = 0.0) -> None:
        self.failures = list(failures)
        self.asked: list[tuple[float, str, str, Keyring]] = []
        self.takes = takes

    async def image(
        self, text: str, policy: str, keyring: Keyring, report: Callable[[str, str], None]
    ) -> str:
        self.asked.append((trio.current_time(), text, policy, keyring))
        await trio.sleep(self.takes)
        if self.failures:
            raise self.failures.pop(0)
        report("Pulled", "fine")
        return "the image"


def secret(data: dict[str, bytes] | None) -> dict[str, Any] | None:
    """A Secret as the API has it."""
    return data and {"data": {key: base64.b64encode(value).decode() for key, value in data.items()}}


class Scene:
    """One container's task; ``states`` are what was seen of it, with times."""

    def __init__(
        self, folder: Path, service: Service, secrets: dict[str, dict[str, bytes]] | None = None
    ) -> None:
        container = {"name": "main", "image": "a.test/app:1", "imagePullPolicy": "Always"}
        spec = {"containers": [container], "imagePullSecrets": [{"name": name} for name in secrets or ()]}
        pod = {"metadata": {}, "spec": spec}
        status = PodStatus(
            uid="u",
            name="p",
            namespace="default",
            pod=pod,
            containers=(ContainerStatus(name="main", image="x"),),
        )
        self.states: list[tuple[float, str, str]] = []
        self.events: list[PodEvent] = []
        self.failed: list[float] = []
        self.book = PodBook(folder, PodRecord(status=status), self._changed)
        self.task = ImageTask(
            service=service,  # type: ignore[arg-type]
            book=self.book,
            spec=container,
            lookup=lambda kind, name: secret((secrets or {}).get(name)),
            tell=self.events.append,
        )

    def _changed(self, status: PodStatus) -> None:
        container = status.containers[0]
        self.states.append((trio.current_time(), container.reason, container.message))

    async def get(self) -> Any:
        return await self.task.get(lambda: self.failed.append(trio.current_time()))


async def test_the_back_off_is_the_kubelets(tmp_path: Path, autojump_clock: Any) -> None:
    service = Service(*[FAILURE] * 7)
    scene = Scene(tmp_path, service)
    assert await scene.get() == "the image"
    times = [asked[0] for asked in service.asked]
    assert [round(b - a) for a, b in itertools.pairwise(times)] == [10, 20, 40, 80, 160, 300, 300]
    first = [(round(at - times[0]), reason) for at, reason, _ in scene.states][:3]
    assert first == [(0, "ErrImagePull"), (2, "ImagePullBackOff"), (10, "ErrImagePull")]
    assert scene.failed[0] == times[0]
    assert scene.states[1][2] == f'Back-off pulling image "a.test/app:1": {FAILURE}'


async def test_events_are_the_kubelets(tmp_path: Path, autojump_clock: Any) -> None:
    scene = Scene(tmp_path, Service(FAILURE))
    await scene.get()
    assert [(event.kind, event.reason, event.message) for event in scene.events] == [
        ("Warning", "Failed", f'Failed to pull image "a.test/app:1": {FAILURE}'),
        ("Warning", "Failed", "Error: ErrImagePull"),
        ("Normal", "BackOff", 'Back-off pulling image "a.test/app:1"'),
        ("Warning", "Failed", "Error: ImagePullBackOff"),
        ("Normal", "Pulled", "fine"),
    ]


async def test_never_says_so_and_looks_again(tmp_path: Path, autojump_clock: Any) -> None:
    scene = Scene(tmp_path, Service(NeverPull("image x", "is not present with pull policy of Never")))
    await scene.get()
    assert [reason for _, reason, _ in scene.states] == ["ErrImageNeverPull"]
    assert scene.events[0].reason == "ErrImageNeverPull"
    assert (
        scene.events[0].message == 'Container image "a.test/app:1" is not present with pull policy of Never'
    )


async def test_a_name_that_is_none_is_not_tried_again(tmp_path: Path, autojump_clock: Any) -> None:
    service = Service(BadReference("image reference 'X'", "has upper-case letters"))
    scene = Scene(tmp_path, service)
    with trio.move_on_after(100_000):
        await scene.get()
    assert [reason for _, reason, _ in scene.states] == ["InvalidImageName"]
    assert [event.reason for event in scene.events] == ["InspectFailed", "Failed"]
    assert len(service.asked) == len(scene.failed) == 1


async def test_a_long_pull_does_not_hold_up_who_waits_for_the_pod(
    tmp_path: Path, autojump_clock: Any
) -> None:
    scene = Scene(tmp_path, Service(takes=1000))
    began = trio.current_time()
    await scene.get()
    assert [at - began for at in scene.failed] == [60]
    quick = Scene(tmp_path, Service(takes=59))
    await quick.get()
    assert quick.failed == []


def docker_config(host: str) -> bytes:
    auth = base64.b64encode(b"u:p").decode()
    return json.dumps({"auths": {host: {"auth": auth}}}).encode()


async def test_pull_secrets_are_handed_on(tmp_path: Path, autojump_clock: Any) -> None:
    secrets = {
        "new": {".dockerconfigjson": docker_config("a.test")},
        "old": {".dockercfg": b'{"b.test": {"username": "v", "password": "q"}}'},
        "broken": {".dockerconfigjson": b"{"},
        "other": {"password": b"x"},
    }
    service = Service()
    await Scene(tmp_path, service, secrets).get()
    keyring = service.asked[0][3]
    assert [key.username for key in keyring.find("a.test", "app")] == ["u"]
    assert [key.username for key in keyring.find("b.test", "app")] == ["v"]


def test_a_pull_secret_that_is_missing_is_passed_over() -> None:
    assert pod_keyring({"imagePullSecrets": [{"name": "none"}]}, lambda *_: None) == Keyring()
    for malformed in ({}, {"imagePullSecrets": 7}, {"imagePullSecrets": [7, None, {}]}):
        assert pod_keyring(malformed, lambda *_: None) == Keyring()


async def test_events_reach_a_subscriber_once_and_never_in_the_place_of_a_state() -> None:
    async with trio.open_nursery() as nursery:
        changes = Changes(nursery)
        channel = changes.subscribe()
        state = PodStatus(uid="u", name="p", namespace="default", pod={})
        event = PodEvent("u", "Normal", "Pulled", "fine")
        for change in (event, event, state):
            changes.publish(change)
        for number in range(PENDING_MAX + 5):
            changes.publish(PodEvent("u", "Normal", "Pulled", str(number)))
        late = PodStatus(uid="late", name="p", namespace="default", pod={})
        changes.publish(late)
        seen = [await channel.receive() for _ in range(PENDING_MAX + 1)]
        assert seen[:2] == [event, state]
        assert seen[-1] == late
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.WouldBlock):
            channel.receive_nowait()
        nursery.cancel_scope.cancel()
