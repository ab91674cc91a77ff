"""The baked image of pods' agents: what is in it, that it is made the same again, and that it runs on its own."""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import zstandard

from machineplane.runtime.images.agent import AGENT_REF, Baked, ensure_agent
from machineplane.runtime.images.store import machine_architecture

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "workplane/benchmarks"))
import idle  # noqa: E402 - a script

pytestmark = pytest.mark.root
SCRIPT = "import os, sys, workplane.cli, workplane.app; print(os.getuid(), os.getgid(), sys.prefix, sys.flags.isolated)"


@pytest.fixture(scope="module")
def baked() -> Baked:
    found = Baked.find(machine_architecture())
    assert found is not None, "no agent's image here: bake it by `python scripts/workplane_image`"
    return found


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def documents(archive: bytes) -> tuple[str, dict[str, Any], bytes]:
    """The digest of the manifest, the configuration, and the one layer."""
    files = members(archive)
    digest = json.loads(files["index.json"])["manifests"][0]["digest"]
    manifest = json.loads(files[f"blobs/sha256/{digest[7:]}"])
    (layer,) = manifest["layers"]
    config = json.loads(files["blobs/sha256/" + manifest["config"]["digest"][7:]])
    return digest, config, files["blobs/sha256/" + layer["digest"][7:]]


def test_there_is_nothing_dangerous_and_nothing_of_the_builder_in_it(baked: Baked) -> None:
    with baked.archive.open("rb") as file:
        archive = zstandard.ZstdDecompressor().stream_reader(file).read()
    digest, config, layer = documents(archive)
    assert digest == baked.digest
    assert config["config"]["User"] == "65534:65534" and config["config"]["Entrypoint"] == [
        "/usr/bin/workplane"
    ]
    foreign = [str(path).encode() for path in (ROOT, Path(sys.prefix))]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        found = list(tar)
        assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in found} == {(0, 0, "", "", 0)}
        assert {m.type for m in found} == {tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE}
        assert [m.name for m in found if not m.issym() and m.mode not in (0o644, 0o755)] == []
        for member in found:
            data = tar.extractfile(member).read() if member.isfile() else b""  # type: ignore[union-attr]
            assert not any(path in data for path in (*foreign, b"magik-workplane-")), member.name
    names = {member.name for member in found}
    assert not any(name.endswith((".py", "/pip", "/sh")) for name in names)
    assert all(m.linkname.lstrip("/") in names for m in found if m.issym() and "/" in m.linkname)


def test_the_same_sources_make_the_same_image(baked: Baked, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    subprocess.run(
        [sys.executable, ROOT / "scripts/workplane_image", "--out", again], check=True, timeout=300
    )
    assert documents(again.read_bytes())[0] == baked.digest


async def test_it_runs_on_its_own_as_nobody(
    bench: Any, pod: Callable[..., dict[str, Any]], until: Any, log: Any
) -> None:
    container = {"image": AGENT_REF, "imagePullPolicy": "Never"}
    async with bench.open() as runtime:
        await trio.to_thread.run_sync(ensure_agent, runtime.images)
        for command, said in (
            (["/usr/bin/python3.11", "-Ic", SCRIPT], "65534 65534 /usr 1\n"),
            (["/usr/bin/workplane", "--version"], "workplane, version"),
        ):
            made = pod("", container={**container, "command": command})
            uid = made["metadata"]["uid"]
            await runtime.run_pod(made)
            status = await until(runtime, uid, lambda s: s.containers[0].state == "terminated")
            assert said in await log(runtime, uid)
            assert status.containers[0].exit_code == 0
            await runtime.stop_pod(uid)


async def test_an_idle_agent_is_small(tmp_path: Path) -> None:
    """Of its memory what no file has, for that depends on nothing but the sources: MiB, with a tenth of room."""
    idle.unpack(tmp_path)
    async with idle.running(tmp_path, "only") as (process, _):
        assert idle.rollup(process)["anonymous"] < 27.0, "\n".join(idle.census(process))
