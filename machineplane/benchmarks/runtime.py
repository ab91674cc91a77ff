"""What starting a container costs with the image present, side by side with `crun run`, `podman run` and `docker run`.

Root; about half a minute; in namespaces of its own (mounts, network). Two things are measured, in turns with the others:
*container*: prepare, create, start, wait for the end, delete, of one container in a pod that runs, against a bare `crun run`
of a bundle whose root file system is mounted already; *pod*: from nothing to a pod with network, root file systems and its
container started, against `podman run` and `docker run --rm`. The last line is one JSON object; null where a program is
missing or does not run here, with the reason in `figures`. `--rounds N` (30), `--pods N`: also the memory of N helpers.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import trio

from machineplane.linux import libc
from machineplane.podnet import PodNetConfig, open_pod_network
from machineplane.runtime import Runtime, RuntimeConfig, Zygote, cgroups, open_runtime, start_zygote
from machineplane.runtime.bundle import BundleContext, container_bundle
from machineplane.runtime.container_task import new_id
from machineplane.runtime.images.make import busybox_image
from machineplane.runtime.private import PrivateFolder, open_private
from machineplane.runtime.shim.wire import Message

IMAGE = "localhost/busybox:latest"
# podman's own are higher than what a process without CAP_SYS_RESOURCE may give on.
LOW_LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")


def own_namespaces() -> None:
    """Nothing that is mounted or linked here is seen by the machine."""
    libc.unshare(libc.CLONE_NEWNS | libc.CLONE_NEWNET)
    libc.mount("none", "/", "", libc.MS_REC | libc.MS_PRIVATE)
    cgroups.prepare()  # crun refuses a machine with both versions of control groups
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


def pod(command: list[str]) -> dict[str, Any]:
    uid = str(uuid.uuid4())
    container = {"name": "main", "image": IMAGE, "command": command}
    spec = {"restartPolicy": "Never", "containers": [container]}
    return {"metadata": {"uid": uid, "name": f"p-{uid[:8]}", "namespace": "default"}, "spec": spec}


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


class Other:
    """Another program's way to run `true`; ``why`` it cannot, empty if it can."""

    def __init__(self, command: list[str], setup: list[str] | None = None) -> None:
        self.command = command
        self.times: list[float] = []
        self.why = ""
        if shutil.which(command[0]) is None:
            self.why = f"{command[0]} is not installed"
            return
        for first in filter(None, (setup, command)):
            done = subprocess.run(first, capture_output=True, text=True)
            if done.returncode:
                self.why = (done.stderr.strip().splitlines() or ["failed"])[-1][:200]
                return

    def turn(self) -> None:
        if not self.why:
            self.times.append(timed(lambda: subprocess.run(self.command, check=True, capture_output=True)))


def crun(folder: Path) -> Other:
    """A bundle as podman and others make one, its root file system ready."""
    root = folder / "crun-bundle/rootfs"
    for name in ("bin", "proc", "dev", "sys", "etc"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/true")
    bundle = root.parent
    subprocess.run(["crun", "spec"], cwd=bundle, check=True) if shutil.which("crun") else None
    path = bundle / "config.json"
    if path.exists():
        config = json.loads(path.read_text())
        config["process"] |= {"args": ["/bin/true"], "terminal": False}
        config["process"]["rlimits"] = []
        path.write_text(json.dumps(config))
    return Other(["crun", "--root", str(folder / "crun"), "run", "--bundle", str(bundle), "bench"])


def podman(folder: Path, image: Path) -> Other:
    base = ["podman", "--root", str(folder / "podman"), "--runroot", str(folder / "podman-run")]
    base += ["--cgroup-manager=cgroupfs"]
    return Other([*base, "run", "--rm", *LOW_LIMITS, IMAGE, "true"], [*base, "load", "-i", str(image)])


class Ours:
    """One container after another in a pod that runs."""

    def __init__(self, runtime: Runtime, uid: str, private: PrivateFolder) -> None:
        self._private = private
        self._worker = runtime._worker(uid)
        self._runtime = runtime
        self._image = runtime.images.resolve(IMAGE)
        self.times: list[float] = []

    async def turn(self) -> None:
        began = time.perf_counter()
        folder, link, name = self._worker.book.folder, self._worker.link, new_id()
        bundle = folder / "containers/bench" / name[:12]
        (folder / "logs/bench").mkdir(parents=True, exist_ok=True)
        bundle.mkdir(parents=True)
        layers = self._runtime.images.layer_paths(self._image)
        context = BundleContext(
            pod=self._worker.book.status.pod,
            pod_dir=folder,
            bundle=bundle,
            private=folder / "private" / name[:12],
            cgroup=f"/magik-bench/{self._worker.uid}/{name[:12]}",
            cgroup_mode=self._runtime._services.cgroup_mode,
            image=self._image.config,
            layers=layers,
            infra_pid=self._worker.book.record.infra_pid,
        )
        (bundle / "termination-log").touch()
        self._private.write_config(
            name[:12],
            container_bundle({"name": "bench", "image": IMAGE, "command": ["true"]}, context).config,
        )
        await link.create(
            name,
            name="bench",
            attempt=0,
            bundle=bundle,
            layers=layers,
            log=folder / f"logs/bench/{name[:12]}.log",
            cgroup=context.cgroup,
        )
        await link.start(name)
        await link.wait_exit(name)
        await link.delete(name)
        self._private.forget(name[:12])
        self.times.append((time.perf_counter() - began) * 1000)


async def whole_pod(runtime: Runtime, times: list[float]) -> None:
    wanted = pod(["sleep", "1000"])
    began = time.perf_counter()
    status = await runtime.run_pod(wanted)
    times.append((time.perf_counter() - began) * 1000)
    assert status.phase == "Running", status
    await runtime.stop_pod(status.uid, 0)


def helper_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))


async def memory(runtime: Runtime, config: RuntimeConfig, pods: int) -> float:
    """KiB of one helper's proportional share, with ``pods`` of them."""
    limiter = trio.CapacityLimiter(8)

    async def one() -> None:
        async with limiter:
            await runtime.run_pod(pod(["sleep", "1000"]))

    async with trio.open_nursery() as nursery:
        for _ in range(pods):
            nursery.start_soon(one)
    states: list[Message] = [
        json.loads((config.pod_dir(p.uid) / "shim.json").read_text()) for p in runtime.pods()
    ]
    share = statistics.mean(helper_kib(int(state["pid"])) for state in states)
    async with trio.open_nursery() as nursery:
        for status in runtime.pods():
            nursery.start_soon(runtime.stop_pod, status.uid, 0)
    return share


async def measure(zygote: Zygote, folder: Path, rounds: int, pods: int) -> dict[str, Any]:
    config = RuntimeConfig(
        state_dir=folder / "state", run_dir=folder / "run", cgroup_parent="magik-bench", node_name="bench"
    )
    image = folder / "busybox.tar"
    busybox_image(image)
    network = PodNetConfig(subnet=IPv4Network("10.213.0.0/16"), masquerade=False, mtu=1500)
    figures: dict[str, Any] = {}
    async with open_pod_network(network) as net, open_runtime(config, net, zygote) as runtime:
        await trio.to_thread.run_sync(runtime.images.import_file, image, None)
        first = await runtime.run_pod(pod(["sleep", "1000"]))
        link = runtime._worker(first.uid).link
        stack = ExitStack()
        private = stack.enter_context(open_private(config.pod_dir(first.uid), await link.pid()))
        ours, pod_times = Ours(runtime, first.uid, private), list[float]()
        others = {
            "crun_run": crun(folder),
            "podman_run": podman(folder, image),
            "docker_run": Other(
                ["docker", "run", "--rm", IMAGE, "true"], ["docker", "load", "-i", str(image)]
            ),
        }
        for _ in range(rounds):
            await ours.turn()
            await whole_pod(runtime, pod_times)
            for other in others.values():
                other.turn()
        stack.close()
        await runtime.stop_pod(first.uid, 0)
        if pods:
            figures["helper_pss_kib"] = round(await memory(runtime, config, pods), 1)
            figures["helpers"] = pods
    container, whole = statistics.median(ours.times), statistics.median(pod_times)
    figures |= {"container_ms": round(container, 1), "pod_ms": round(whole, 1), "rounds": rounds}
    ratios: dict[str, float | None] = {}
    for name, other in others.items():
        mine = container if name == "crun_run" else whole
        if other.why:
            figures[f"{name}_missing"] = other.why
        else:
            figures[f"{name}_ms"] = round(statistics.median(other.times), 1)
        ratios[f"start_vs_{name}"] = (
            round(mine / statistics.median(other.times), 2) if not other.why else None
        )
    return {"name": "runtime", "ratios": ratios, "figures": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--pods", type=int, default=0)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("this needs root: it runs containers")
    own_namespaces()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        with start_zygote() as zygote:
            result = trio.run(measure, zygote, folder, options.rounds, options.pods)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
