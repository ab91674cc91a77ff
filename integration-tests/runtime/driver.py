"""A stand-in for the daemon: runs one pod and then only lives, until it is killed.

``python driver.py <folder> <cgroup parent> [<engine> <libkrun>]`` reads a pod (JSON) on stdin and prints
its status as one JSON line.
"""

import json
import os
import sys
from pathlib import Path

import trio

from machineplane.runtime import RuntimeConfig, Zygote, open_runtime, start_zygote


class Address:
    ip = "192.0.2.7"
    gateway = "192.0.2.1"


class NoNetwork:
    async def attach(self, pod_uid: str, pid: int) -> Address:
        return Address()

    async def detach(self, pod_uid: str) -> None:
        pass

    async def recover(self, pod_uid: str, pid: int) -> Address:
        return Address()


async def main(zygote: Zygote, folder: Path, parent: str, engine: str, library: str) -> None:
    config = RuntimeConfig(
        state_dir=folder / "state",
        run_dir=folder / "run",
        cgroup_parent=parent,
        cgroup_driver=zygote.report.cgroup_driver,
        default_engine=engine,
        krun_library=Path(library) if library else None,
    )
    async with open_runtime(config, NoNetwork(), zygote) as runtime:
        status = await runtime.run_pod(json.load(sys.stdin), b"receipt")
        container = status.containers[0]
        print(json.dumps([status.phase, container.id, container.started_at, container.pid]), flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    with start_zygote(cgroup_driver=os.environ.get("MAGIK_TEST_CGROUP_DRIVER", "cgroupfs")) as started:
        engine, library = sys.argv[3:] or ("crun", "")
        trio.run(main, started, Path(sys.argv[1]), sys.argv[2], engine, library)
