"""The container in which a module runs: what it may, what it sees, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from machineplane.runtime.engine import CrunEngine, EngineStatus, WasmEngine
from machineplane.runtime.errors import PodSpecError
from machineplane.runtime.wasm.config import IMAGE, RUNNER, runner_paths, wasm_config

CONFIG: dict[str, Any] = {
    "process": {
        "args": ["/app.wasm", "x"],
        "env": ["A=1", "B=a=b"],
        "cwd": "/data",
        "user": {"uid": 5, "gid": 5},
    },
    "root": {"path": "/pods/p/c/rootfs", "readonly": False},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": []},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []},
        {"destination": "/dev/shm", "type": "bind", "source": "/pods/p/shm", "options": []},
        {"destination": "/etc/hosts", "type": "bind", "source": "/pods/p/hosts", "options": []},
        {"destination": "/data", "type": "bind", "source": "/pods/p/data", "options": []},
    ],
    "linux": {"resources": {"memory": {"limit": 1 << 26}}},
}
CONTAINER = {"name": "main", "resources": {"limits": {"memory": "64Mi"}}}


def test_the_module_is_run_by_this_python_with_the_pods_limits() -> None:
    made = wasm_config(CONFIG, CONTAINER)
    python, isolated, runner, options, *words = made["process"]["args"]
    assert (python, isolated, runner, words) == (sys.executable, "-I", str(RUNNER), ["/app.wasm", "x"])
    assert json.loads(options) == {
        "root": IMAGE,
        "cwd": "/data",
        "environment": {"A": "1", "B": "a=b"},
        "memory": 64 << 20,
    }
    assert made["linux"] == CONFIG["linux"] and made["process"]["user"] == {"uid": 5, "gid": 5}


def test_the_runner_has_no_privileges_and_none_of_the_pods_variables() -> None:
    process = wasm_config(CONFIG, CONTAINER)["process"]
    assert not any(process["capabilities"].values()) and process["noNewPrivileges"]
    assert process["env"] == ["PATH=/usr/bin:/bin"]


@pytest.mark.parametrize("path", ["/devices", "/process/x", "/system", "/data"])
def test_a_volume_that_is_only_spelled_like_the_runners_own_is_the_guests(path: str) -> None:
    mount = {"destination": path, "type": "bind", "source": "/pods/p/v", "options": []}
    found = wasm_config({**CONFIG, "mounts": [mount]}, CONTAINER)["mounts"]
    assert [made["destination"] for made in found if made["source"] == "/pods/p/v"] == [IMAGE + path]


def test_image_and_volumes_are_the_guests_and_python_is_read_only() -> None:
    made = wasm_config(CONFIG, CONTAINER)
    assert made["root"] == {"path": "/pods/p/c/host", "readonly": True}
    order = [mount["destination"] for mount in made["mounts"]]
    assert order.index(IMAGE) < order.index(f"{IMAGE}/data")
    assert {"/proc", "/dev", "/dev/shm", f"{IMAGE}/etc/hosts"} <= set(order)
    found = {mount["destination"]: mount for mount in made["mounts"]}
    assert found[IMAGE]["source"] == "/pods/p/c/rootfs" and "rw" in found[IMAGE]["options"]
    for path in runner_paths():
        assert found[path]["source"] == path and "ro" in found[path]["options"]


def test_a_read_only_root_stays_read_only() -> None:
    made = wasm_config({**CONFIG, "root": {**CONFIG["root"], "readonly": True}}, CONTAINER)
    assert "ro" in next(m for m in made["mounts"] if m["destination"] == IMAGE)["options"]


def test_no_folder_of_the_runner_lies_in_another() -> None:
    paths = runner_paths()
    assert not any(a != b and b.startswith(a + "/") for a in paths for b in paths)
    assert any(str(RUNNER).startswith(path) for path in paths)


@pytest.mark.parametrize(
    ("more", "told"),
    [({"tty": True}, "tty"), ({"lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}, "exec hooks")],
)
def test_what_a_module_cannot_have_is_refused(more: dict[str, Any], told: str) -> None:
    with pytest.raises(PodSpecError, match=told):
        wasm_config(CONFIG, {**CONTAINER, **more})


class Containers(CrunEngine):
    def __init__(self, *, available: bool) -> None:
        self._available = available

    def check(self) -> EngineStatus:
        return EngineStatus(name="crun", available=self._available, reason="no libcrun")


@pytest.mark.parametrize(
    ("available", "missing", "reason"),
    [(False, "", "it needs crun: no libcrun"), (True, "install it", "install it")],
)
def test_the_engine_says_what_it_lacks(available: bool, missing: str, reason: str) -> None:
    status = WasmEngine(Containers(available=available), lambda: missing).check()
    assert (status.name, status.available, status.reason) == ("wasm", False, reason)


def test_the_runner_knows_nothing_of_the_rest(tmp_path: Path) -> None:
    """It is started isolated, in a container where nothing else of this distribution is importable on purpose."""
    assert "machineplane" not in RUNNER.read_text()
