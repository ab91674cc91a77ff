"""A thousand pods one after the other, and what they leave: nothing. Root; minutes; namespaces of its own.

The last line is one JSON object: growth of descriptors, of private memory (KiB) and of mounts from the hundredth cycle to
the last, for the daemon's process and its zygote, and control groups and files that are left. `--cycles N` (1000).
"""

import argparse
import json
import os
import shutil
import tempfile
import uuid
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import trio

from machineplane.linux import libc
from machineplane.podnet import PodNetConfig, open_pod_network
from machineplane.runtime import Runtime, RuntimeConfig, Zygote, cgroups, open_runtime, start_zygote
from machineplane.runtime.images.make import busybox_image

IMAGE = "localhost/busybox:latest"
GROUP = "magik-cycles"
WARM = 100


def footprint(zygote: Zygote) -> dict[str, int]:
    found = {"mounts": len(Path("/proc/self/mountinfo").read_text().splitlines())}
    for name, pid in (("daemon", os.getpid()), ("zygote", zygote.pid)):
        found[f"{name}_descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        found[f"{name}_private_kib"] = sum(int(line.split()[1]) for line in lines if "Private" in line)
    return found


async def cycle(runtime: Runtime) -> None:
    uid = str(uuid.uuid4())
    spec = {"containers": [{"name": "main", "image": IMAGE, "command": ["sleep", "1000"]}]}
    pod = {"metadata": {"uid": uid, "name": f"p-{uid[:8]}", "namespace": "default"}, "spec": spec}
    status = await runtime.run_pod(pod)
    assert status.phase == "Running", status
    await runtime.stop_pod(uid, 0)


def left(config: RuntimeConfig) -> list[str]:
    found = [*config.pods_dir.iterdir(), *(config.run_dir / "pods").iterdir()]
    found += Path("/sys/fs/cgroup").glob(f"*/{GROUP}/*")
    return [str(path) for path in found]


async def measure(zygote: Zygote, folder: Path, cycles: int) -> dict[str, Any]:
    config = RuntimeConfig(state_dir=folder / "state", run_dir=folder / "run", cgroup_parent=GROUP)
    network = PodNetConfig(subnet=IPv4Network("10.213.0.0/16"), masquerade=False, mtu=1500)
    busybox_image(folder / "busybox.tar")
    async with open_pod_network(network) as net, open_runtime(config, net, zygote) as runtime:
        await trio.to_thread.run_sync(runtime.images.import_file, folder / "busybox.tar", None)
        for number in range(cycles):
            if number == min(WARM, cycles - 1):
                before = footprint(zygote)
            await cycle(runtime)
        after = footprint(zygote)
        remains = left(config)
    growth = {name: after[name] - before[name] for name in before}
    return {"name": "cycles", "ratios": {}, "figures": {"cycles": cycles, "growth": growth, "left": remains}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=1000)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("this needs root: it runs containers")
    libc.unshare(libc.CLONE_NEWNS | libc.CLONE_NEWNET)
    libc.mount("none", "/", "", libc.MS_REC | libc.MS_PRIVATE)
    cgroups.prepare()
    folder = Path(tempfile.mkdtemp(prefix="cycles-"))
    try:
        with start_zygote() as zygote:
            result = trio.run(measure, zygote, folder, options.cycles)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
