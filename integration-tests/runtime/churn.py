"""A daemon that starts and stops pods all the time and says so, until it is killed.

``python churn.py <folder> <cgroup parent> <pods>``: half of the pods are stopped again as soon as they run.
"""

import os
import sys
import uuid
from pathlib import Path

import trio
from driver import NoNetwork

from machineplane.runtime import Runtime, RuntimeConfig, Zygote, open_runtime, start_zygote

IMAGE = "localhost/busybox:latest"


def make_pod() -> dict:  # type: ignore[type-arg]
    uid = str(uuid.uuid4())
    container = {
        "name": "main",
        "image": IMAGE,
        "command": ["sleep", "100000"],
        "env": [{"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
    }
    spec = {"terminationGracePeriodSeconds": 0, "containers": [container]}
    return {"metadata": {"uid": uid, "name": f"pod-{uid[:8]}", "namespace": "default"}, "spec": spec}


async def one(runtime: Runtime, number: int) -> None:
    status = await runtime.run_pod(make_pod())
    if status.phase != "Running":
        return
    print("running", status.uid, flush=True)
    if number % 2:
        print("stopping", status.uid, flush=True)
        await runtime.stop_pod(status.uid)
        print("stopped", status.uid, flush=True)


async def main(zygote: Zygote, folder: Path, parent: str, pods: int) -> None:
    config = RuntimeConfig(
        state_dir=folder / "state",
        run_dir=folder / "run",
        cgroup_parent=parent,
        cgroup_driver=zygote.report.cgroup_driver,
    )
    async with open_runtime(config, NoNetwork(), zygote) as runtime, trio.open_nursery() as nursery:
        print("begin", flush=True)
        for number in range(pods):
            nursery.start_soon(one, runtime, number)
        await trio.sleep_forever()


if __name__ == "__main__":
    with start_zygote(cgroup_driver=os.environ.get("MAGIK_TEST_CGROUP_DRIVER", "cgroupfs")) as started:
        trio.run(main, started, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
