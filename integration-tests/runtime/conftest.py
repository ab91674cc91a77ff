"""Real containers: a zygote, a state folder, a busybox image, and a look at what is left on the machine."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from machineplane.runtime import (
    HostPolicy,
    LogOptions,
    PodStatus,
    Runtime,
    RuntimeConfig,
    Zygote,
    open_runtime,
    start_zygote,
)
from machineplane.runtime.images.make import busybox_image
from machineplane.runtime.krun.locate import look_for_krun
from machineplane.runtime.slices import SYSTEMD, slice_of

STAND_IN = Path(__file__).parents[1] / "krun" / "stand_in.c"
REAL_KRUN = "MAGIK_TEST_LIBKRUN"
"""A variable with the path of a real libkrun: the scenarios of microVMs run on it, where its guests boot."""
CGROUP_DRIVER = "MAGIK_TEST_CGROUP_DRIVER"
"""A variable with the driver of control groups: with `systemd` the scenarios run in slices and scopes."""
IMAGE = "localhost/busybox:latest"


class Address:
    ip = "192.0.2.7"
    gateway = "192.0.2.1"


class NoNetwork:
    """Satisfies PodNetwork and keeps a list of what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    async def attach(self, pod_uid: str, pid: int) -> Address:
        assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
        self.calls.append(("attach", pod_uid))
        return Address()

    async def detach(self, pod_uid: str) -> None:
        self.calls.append(("detach", pod_uid))

    async def recover(self, pod_uid: str, pid: int) -> Address:
        self.calls.append(("recover", pod_uid))
        return Address()

    async def redirect(self, pod_uid: str, pid: int, tcp_ports: Sequence[int]) -> int:
        self.calls.append(("redirect", pod_uid))
        return tcp_ports[0]


def make_pod(command: str, **spec: Any) -> dict[str, Any]:
    """A pod of one container ``main`` that runs ``command`` in a shell; ``container`` adds to the container."""
    uid = str(uuid.uuid4())
    container = {
        "name": "main",
        "image": IMAGE,
        "command": ["sh", "-c", command],
        **spec.pop("container", {}),
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"uid": uid, "name": f"pod-{uid[:8]}", "namespace": "default", "labels": {"app": "test"}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 2,
            "containers": [container],
            **spec,
        },
    }


class Bench:
    """A runtime's folders, and how to open a runtime on them."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder = folder
        self.zygote = zygote
        self.network = NoNetwork()
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.agents: Any = None
        self.config = RuntimeConfig(
            state_dir=folder / "state",
            run_dir=folder / "run",
            cgroup_parent=f"magik-test-{folder.name[-8:]}",
            cgroup_driver=zygote.report.cgroup_driver,
            node_name="bench",
            host_ip="192.0.2.1",
        )

    def allow(self, **policy: Any) -> None:
        """Open the next runtime with another policy of this machine."""
        self.config = evolve(self.config, policy=HostPolicy(**policy))

    def lookup(self, records: bytes, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        return self.objects.get((kind, name))

    @asynccontextmanager
    async def open(self, *, keep: bool = False) -> AsyncIterator[Runtime]:
        """A runtime; its pods are stopped at the end, so that a failed test leaves nothing either (but ``keep``)."""
        async with open_runtime(self.config, self.network, self.zygote, self.lookup, self.agents) as runtime:
            archive = self.folder / "busybox.tar"
            if not archive.exists():
                busybox_image(archive)
                runtime.images.import_file(archive, None)
            try:
                yield runtime
            finally:
                with trio.CancelScope(deadline=trio.current_time() + 20, shield=True):
                    for left in () if keep else runtime.pods():
                        await runtime.stop_pod(left.uid, 0)

    def remains(self) -> list[str]:
        """Everything of this bench's pods that is still on the machine."""
        mine = str(self.folder)
        found = [
            str(path) for folder in ("state/pods", "run/pods") for path in (self.folder / folder).glob("*")
        ]
        groups, mine_there = Path("/sys/fs/cgroup"), self.config.pods_cgroup
        found += [
            str(path)
            for path in (*groups.glob(f"*{mine_there}"), Path(f"{groups}{mine_there}"))
            if path.exists()
        ]
        found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if mine in line]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                mounts = (process / "mountinfo").read_text()
                comm = (process / "comm").read_text().strip()
                output = os.readlink(process / "fd/1") if comm == "magik-shim" else ""
            except (OSError, ValueError):  # it has ended meanwhile
                continue
            if mine in mounts or mine in output:
                found.append(f"{process.name} {comm}")
        return found


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    if os.geteuid() != 0:
        pytest.fail("these tests need root: they run containers")
    with start_zygote(cgroup_driver=os.environ.get(CGROUP_DRIVER, "cgroupfs")) as running:
        if running.report.error or running.report.libcrun is None:
            pytest.fail(
                f"no containers here: {running.report.error or 'no libcrun'}: "
                "run `python -m machineplane.runtime.libcrun_build`"
            )
        yield running


@pytest.fixture
def bench(zygote: Zygote) -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="mrt-"))
    made = Bench(folder, zygote)
    yield made
    if made.config.cgroup_driver == SYSTEMD:  # a machine's own slice stays for as long as the machine is up
        subprocess.run(["systemctl", "stop", slice_of(made.config.cgroup_parent)], check=True)
    left = made.remains()
    shutil.rmtree(folder)
    assert left == []


@pytest.fixture(scope="session")
def krun_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real library that the environment names, or else the stand-in, whose guests are processes."""
    if named := os.environ.get(REAL_KRUN):
        found = look_for_krun(tmp_path_factory.mktemp("boot") / "memory", Path(named))
        if found.reason:
            pytest.skip(f"{REAL_KRUN}={named}: {found.reason}")
        return Path(named)
    library = tmp_path_factory.mktemp("krun") / "libkrun.so.1"
    command = ["cc", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror", "-O1"]
    subprocess.run([*command, "-o", str(library), str(STAND_IN)], check=True)
    return library


@pytest.fixture(params=["crun", "krun"])
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine that must keep the same promises; the bench's pods run on it."""
    bench: Bench = request.getfixturevalue("bench")
    library = request.getfixturevalue("krun_library") if request.param == "krun" else None
    bench.config = evolve(bench.config, default_engine=request.param, krun_library=library)
    return str(request.param)


@pytest.fixture
def pod() -> Callable[..., dict[str, Any]]:
    return make_pod


async def read_log(runtime: Runtime, uid: str, container: str = "main", **options: Any) -> str:
    chunks = [chunk async for chunk in runtime.logs(uid, container, LogOptions(**options))]
    return b"".join(chunks).decode()


@pytest.fixture
def log() -> Callable[..., Any]:
    return read_log


async def wait_for(check: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for what gives no event: files and processes of the machine."""
    with trio.fail_after(seconds):
        while not check():  # noqa: ASYNC110
            await trio.sleep(0.02)


@pytest.fixture
def eventually() -> Callable[..., Any]:
    return wait_for


async def wait_status(runtime: Runtime, uid: str, wanted: Callable[[PodStatus], bool]) -> PodStatus:
    with trio.fail_after(30):
        async with runtime.changes() as changes:
            async for change in changes:
                if isinstance(change, PodStatus) and change.uid == uid and wanted(change):
                    return change
    raise AssertionError("the channel of changes ended")


@pytest.fixture
def until() -> Callable[..., Any]:
    return wait_status
