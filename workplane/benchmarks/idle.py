"""What an idle agent costs its pod: memory, and how long it takes from its start until it is up.

    python workplane/benchmarks/idle.py [--pods 3] [--starts 20] [--census] [--root FOLDER]

Runs the agent of the baked image (`nox -s workplane-image`), or of an unpacked one below FOLDER, as a pod's container does:
in a root of its own, as nobody, isolated; the machine is the tests' stand-in, on a Unix socket. Needs root, for chroot.
Prints one JSON object: MiB of one agent alone and of each of ``--pods`` that share the image's files (PSS; USS is what is
its own, anonymous what no file has), and of ``--starts`` starts one after the other the milliseconds until it said that it
is up, by the clock and of CPU. ``--census`` writes to stderr what the memory of the lone agent is, by mapping.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
import zstandard

from machineplane.runtime.images.agent import Baked
from machineplane.runtime.images.store import machine_architecture

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "agent"))
from rig import PodApi

NOBODY = 65534
SETTLED_S = 2.0


# -- the image


def unpack(root: Path) -> None:
    """The baked image's one layer."""
    baked = Baked.find(machine_architecture())
    if baked is None:
        raise SystemExit("idle: no agent's image here: nox -s workplane-image")
    with baked.archive.open("rb") as packed, tempfile.TemporaryFile() as archive:
        zstandard.ZstdDecompressor().copy_stream(packed, archive)
        archive.seek(0)
        with tarfile.open(fileobj=archive) as outer:
            layer = max((member for member in outer if member.isfile()), key=lambda member: member.size)
            with tarfile.open(fileobj=outer.extractfile(layer)) as inner:
                inner.extractall(root, filter="fully_trusted")
    root.chmod(0o755)


# -- an agent


@asynccontextmanager
async def running(root: Path, name: str) -> AsyncIterator[tuple[int, float]]:
    """An agent that is up; its process and the seconds that it took."""
    folder = root / "run" / name
    folder.mkdir(parents=True)
    for made in (folder, folder / "app", folder / "agent"):
        made.mkdir(exist_ok=True)
        os.chown(made, NOBODY, NOBODY)
    api = PodApi(f"web-{name}", folder, [{"name": "app"}])
    api.hand_over()
    os.chown(api.credentials, NOBODY, NOBODY)
    async with trio.open_nursery() as nursery:
        await nursery.start(api.serve)
        os.chown(api.socket, NOBODY, NOBODY)
        process, seconds = await start(root, api)
        try:
            yield process.pid, seconds
        finally:
            process.kill()
            await process.wait()
            nursery.cancel_scope.cancel()


async def start(root: Path, api: PodApi) -> tuple[trio.Process, float]:
    """Until it says that it is up."""
    inside = f"/run/{api.folder.name}"
    environment = {
        "PATH": "/usr/bin",
        "BEE_NAMESPACE": api.resource.namespace,
        "BEE_WORKLOAD_NAME": api.resource.name,
        "BEE_WORKLOAD_KIND": api.resource.kind,
        "BEE_POD_NAME": api.name,
        "BEE_LISTEN_ADDRS": "127.0.0.1:0",
        "BEE_DNS_ADDR": "127.0.0.1:0",
        "BEE_LOCAL_API": "127.0.0.1:0",
        "BEE_RUN_FOLDER": inside,
        "BEE_MACHINE_API": f"unix:{inside}/machine.sock",
        "BEE_CREDENTIALS": f"{inside}/credentials",
    }
    command = ["chroot", f"--userspec={NOBODY}:{NOBODY}", str(root), "/usr/bin/workplane"]
    began = time.perf_counter()
    process = await trio.lowlevel.open_process(
        command, env=environment | {"PATH": os.environ["PATH"]}, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = b""
    async for data in process.stderr:
        said += data
        if b'"up"' in said:
            return process, time.perf_counter() - began
    raise SystemExit(f"idle: the agent ended:\n{said.decode()}")


def cpu_s(process: int) -> float:
    """Of the process until now, seconds; resolution is the scheduler's (ns)."""
    return (
        sum(
            int(Path(f"/proc/{process}/task/{task}/schedstat").read_text().split()[0])
            for task in os.listdir(f"/proc/{process}/task")
        )
        / 1e9
    )


# -- its memory


def rollup(process: int) -> dict[str, float]:
    """PSS and USS in MiB."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    fields = {name: int(value) for name, value in re.findall(r"(\w+): +(\d+) kB", text)}
    return {
        "pss": fields["Pss"] / 1024,
        "uss": (fields["Private_Clean"] + fields["Private_Dirty"]) / 1024,
        "anonymous": fields["Anonymous"] / 1024,
    }


def census(process: int) -> list[str]:
    """PSS and anonymous memory by mapping, KiB, largest first."""
    pss: Counter[str] = Counter()
    anonymous: Counter[str] = Counter()
    name = ""
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        if head := re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)", line):
            name = head[1].rpartition("/")[2] or "anonymous"
        elif found := re.match(r"(Pss|Anonymous): +(\d+)", line):
            (pss if found[1] == "Pss" else anonymous)[name] += int(found[2])
    return [f"{size:7} {anonymous[name]:7} {name}" for name, size in pss.most_common(25)]


async def measure(root: Path, options: argparse.Namespace) -> dict[str, object]:
    """All figures."""
    clock, cpu = [], []
    for number in range(options.starts):
        async with running(root, f"start{number}") as (process, seconds):
            clock.append(seconds * 1000)
            cpu.append(cpu_s(process) * 1000)
    async with running(root, "alone") as (process, _):
        await trio.sleep(SETTLED_S)
        alone = rollup(process)
        if options.census:
            print("\n".join(["    PSS    ANON", *census(process)]), file=sys.stderr)
    async with AsyncExitStack() as stack:
        agents = [await stack.enter_async_context(running(root, f"pod{n}")) for n in range(options.pods)]
        await trio.sleep(SETTLED_S)
        shared = [rollup(process) for process, _ in agents]
    return {
        "alone_mib": {name: round(value, 1) for name, value in alone.items()},
        f"of_{options.pods}_mib": {
            name: round(statistics.mean(one[name] for one in shared), 1) for name in alone
        },
        "start_clock_ms": {"min": round(min(clock)), "median": round(statistics.median(clock))},
        "start_cpu_ms": {"min": round(min(cpu)), "median": round(statistics.median(cpu))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=3)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--census", action="store_true")
    parser.add_argument("--root", type=Path, help="an unpacked image, in place of the baked one")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("this needs root: it runs agents below a root of their own")
    with tempfile.TemporaryDirectory(prefix="idle-") as scratch:
        root = options.root
        if root is None:
            unpack(root := Path(scratch))
        print(json.dumps(trio.run(measure, root, options)))


if __name__ == "__main__":
    main()
