"""Ending a pod's containers: hooks and SIGTERM within the grace, sidecars after the others, then SIGKILL."""

import signal
from collections.abc import Mapping
from functools import partial
from typing import Any

import trio

from machineplane.runtime.bundle.supported import all_containers, is_sidecar
from machineplane.runtime.container_task import finished
from machineplane.runtime.hooks import hook_of, run_hook
from machineplane.runtime.live import LivePod
from machineplane.runtime.shim.wire import Message


async def end_gently(live: LivePod) -> None:
    """End the apps, all at once, then the sidecars in the reverse of their order. The caller bounds the time."""
    sidecars = [c for c, init in all_containers(live.pod) if init and is_sidecar(c)]
    names = {c["name"] for c in sidecars}
    async with trio.open_nursery() as nursery:
        for container, _ in all_containers(live.pod):
            if container["name"] not in names:
                nursery.start_soon(end_container, live, container)
    for container in reversed(sidecars):
        await end_container(live, container)


async def end_container(live: LivePod, container: Mapping[str, Any]) -> None:
    """``preStop``, SIGTERM, and wait for the end of a container, if it runs."""
    status = live.book.container(container["name"])
    if status.state == "running":
        await ask_to_end(live, container, status.id)
        await finished(live, container, status.id)


async def ask_to_end(live: LivePod, container: Mapping[str, Any], container_id: str) -> None:
    """``preStop`` and SIGTERM for the run of a container that has this id."""
    hook = hook_of(container, "preStop")
    if hook is not None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(_stop_at_end, live, container_id, nursery.cancel_scope))
            await run_hook(live, container, container_id, hook)
            nursery.cancel_scope.cancel()
    await live.link.kill(container_id, signal.SIGTERM)


async def _stop_at_end(live: LivePod, container_id: str, scope: trio.CancelScope) -> None:
    await live.link.wait_exit(container_id)
    scope.cancel()


async def kill_all(live: LivePod, *, spare: str) -> None:
    """Kill every container but ``spare``, wait for their ends, note them, and delete what is left."""
    while True:
        listed, creating = await live.link.containers()
        found = [container for container in listed if container["id"] != spare]
        if not found and not creating:
            return
        for container in found:
            await live.link.kill(container["id"], signal.SIGKILL)
        for container in found:
            await _note_and_delete(live, container)
        if not found:
            await trio.sleep(0.02)  # one is being made: it will be listed soon


async def _note_and_delete(live: LivePod, container: Message) -> None:
    spec = next((c for c, _ in all_containers(live.pod) if c["name"] == container["name"]), None)
    if spec is not None and live.book.container(spec["name"]).id == container["id"]:
        await finished(live, spec, str(container["id"]))
        return
    await live.link.wait_exit(str(container["id"]))
    await live.link.delete(str(container["id"]))
