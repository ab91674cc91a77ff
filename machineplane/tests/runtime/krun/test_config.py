"""The container in which a machine runs: what its monitor may, what the guest gets, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from machineplane.runtime.engine import NO_EXEC, UNTRIED, CrunEngine, EngineStatus, KrunEngine
from machineplane.runtime.errors import PodSpecError
from machineplane.runtime.images import ImageNotFound
from machineplane.runtime.krun.config import MONITOR_MEMORY, Surroundings, guest_files, machine_config
from machineplane.runtime.krun.locate import KrunReport

CONFIG: dict[str, Any] = {
    "process": {
        "args": ["sh", 'say "x"'],
        "env": ["A=\n"],
        "cwd": "/data",
        "user": {"uid": 0, "gid": 0},
        "capabilities": {"bounding": ["CAP_KILL"]},
    },
    "root": {"path": "/pods/p/c/rootfs", "readonly": False},
    "mounts": [
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []},
        {"destination": "/data", "type": "bind", "source": "/pods/p/data", "options": ["ro"]},
    ],
    "linux": {"resources": {"memory": {"limit": 64 << 20}, "devices": [{"allow": False}]}},
}


def limited(**limits: str) -> dict[str, Any]:
    return {"name": "main", "resources": {"limits": limits}}


def made_of(container: dict[str, Any], config: dict[str, Any] = CONFIG) -> dict[str, Any]:
    around = Surroundings(
        library="/opt/krun/libkrun.so.1",
        init=Path("/layers/agent"),
        private=Path("/private/c"),
        devices=Path("/pods/p/c/devices"),
        grace=7.5,
    )
    return machine_config(config, container, around)


def options(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(config["process"]["args"][-1])
    return found


def test_the_guest_has_its_limits_and_the_monitor_a_little_more() -> None:
    made = made_of(limited(memory="64Mi", cpu="1500m"))
    assert (options(made)["vcpus"], options(made)["memory_mib"]) == (2, 64)
    assert made["linux"]["resources"]["memory"]["limit"] == (64 << 20) + MONITOR_MEMORY
    assert CONFIG["linux"]["resources"]["memory"]["limit"] == 64 << 20


def test_without_limits_there_are_defaults() -> None:
    made = made_of({"name": "main"}, {**CONFIG, "linux": {"resources": {}}})
    assert (options(made)["vcpus"], options(made)["memory_mib"]) == (1, 512)
    assert "memory" not in made["linux"].get("resources", {})


def test_volumes_are_in_the_programs_root_and_what_says_what_runs_is_in_memory() -> None:
    made = made_of(limited())
    found = {mount["destination"]: mount for mount in made["mounts"]}
    order = list(found)
    assert order.index("/guest") < order.index("/guest/app") < order.index("/guest/app/data")
    assert found["/guest"]["source"] == "/layers/agent" and "ro" in found["/guest"]["options"]
    assert found["/process.json"]["source"] == "/private/c/process.json"


def test_the_guest_sees_nothing_of_its_monitor() -> None:
    """Neither its processes, nor KVM, nor the way to the guest's init, nor any file of the machine but devices."""
    seen = [m for m in made_of(limited())["mounts"] if m["destination"].startswith("/guest/")]
    assert not any(m["type"] in {"proc", "sysfs"} or "kvm" in m["source"] for m in seen)
    assert not any(m["destination"].startswith("/guest/run") for m in seen)
    assert not any(m["source"].startswith(("/usr", "/lib", "/opt", "/etc", sys.base_prefix)) for m in seen)


def test_the_init_is_told_by_files() -> None:
    files = {name: json.loads(text) for name, text in guest_files(CONFIG["process"], limited()).items()}
    assert files["process.json"] == CONFIG["process"]
    assert files["exec.json"][0] == sys.executable and "['x']" not in files["exec.json"][-1]
    compile(files["exec.json"][-1], "exec", "exec")
    first = options(made_of({**limited(), "volumeMounts": [{"name": "v", "mountPath": "//dev/v/"}]}))["first"]
    assert first == {"grace": 7.5, "dev": ["/dev/termination-log", "/dev/v"], "privileged": False}


def test_the_monitor_makes_no_devices_and_gains_no_privileges() -> None:
    process = made_of(limited())["process"]
    assert "CAP_MKNOD" not in process["capabilities"]["bounding"] and process["noNewPrivileges"]
    assert process["env"] == ["PATH=/usr/bin:/bin"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"volumeMounts": [{"name": "v", "mountPath": "/proc/v"}]}, "/proc/v"),
        ({"volumeMounts": [{"name": "v", "mountPath": "//sys"}]}, "//sys"),
        ({"resources": {"limits": {"cpu": "256"}}}, "255 vCPUs"),
        ({"resources": {"limits": {"memory": "8Mi"}}}, "32Mi at least"),
    ],
)
def test_what_a_guest_cannot_have_is_refused(more: dict[str, Any], told: str) -> None:
    with pytest.raises(PodSpecError, match=told):
        made_of({"name": "main", **more})


def test_the_monitor_is_root_whoever_its_program_is() -> None:
    user = {"uid": 5, "gid": 6, "additionalGids": [7]}
    config = {**CONFIG, "process": {**CONFIG["process"], "user": user}}
    assert made_of(limited(), config)["process"]["user"] == {"uid": 0, "gid": 0}
    assert json.loads(guest_files(config["process"], limited())["process.json"])["user"] == user


def test_privileged_is_the_guest_and_not_its_monitor() -> None:
    """What a privileged container's configuration gives its first process, the monitor does not get."""
    privileged = {**limited(), "securityContext": {"privileged": True}}
    linux = {"resources": {"devices": [{"allow": True, "access": "rwm"}]}}
    sys_mount = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid"]}
    made = made_of(privileged, {**CONFIG, "linux": linux, "mounts": [*CONFIG["mounts"], sys_mount]})
    assert made["linux"]["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert made["linux"]["maskedPaths"] and made["linux"]["seccomp"]
    assert "ro" in next(mount for mount in made["mounts"] if mount["destination"] == "/sys")["options"]
    assert "CAP_SYS_ADMIN" not in made["process"]["capabilities"]["bounding"]
    assert options(made)["first"]["privileged"]
    bounding = json.loads(guest_files(CONFIG["process"], privileged)["process.json"])["capabilities"][
        "bounding"
    ]
    assert "CAP_SYS_ADMIN" in bounding
    plain = json.loads(guest_files(CONFIG["process"], limited())["process.json"])["capabilities"]["bounding"]
    assert plain == ["CAP_KILL"]


def test_a_volume_in_a_place_of_the_monitors_is_the_guests() -> None:
    twice = {"destination": "/dev", "type": "bind", "source": "/pods/p/shm", "options": ["rw"]}
    made = made_of(limited(), {**CONFIG, "mounts": [*CONFIG["mounts"], twice]})
    found = [mount["destination"] for mount in made["mounts"]]
    assert found.count("/dev") == 1 and "/guest/app/dev" in found


def test_without_the_agents_image_there_is_no_init() -> None:
    def missing() -> Path:
        raise ImageNotFound("localhost/x")

    status = KrunEngine(Containers(available=True), KrunReport("/l", ""), missing).check()
    assert not status.available and "localhost/x is not on this machine" in status.reason


class Containers(CrunEngine):
    def __init__(self, *, available: bool) -> None:
        self._available = available

    def check(self) -> EngineStatus:
        return EngineStatus(name="crun", available=self._available, reason="" if self._available else "none")


@pytest.mark.parametrize(
    ("available", "reason", "said"),
    [
        (True, "", UNTRIED),
        (True, "no KVM", "no KVM"),
        (False, "", "it needs crun: none"),
        (False, "no KVM", "no KVM; it needs crun: none"),
    ],
)
def test_the_engine_says_what_it_lacks(*, available: bool, reason: str, said: str) -> None:
    status = KrunEngine(
        Containers(available=available), KrunReport("/l", reason), lambda: Path("/init")
    ).check()
    assert (status.name, status.available, status.reason) == ("krun", said == UNTRIED, said)
    assert "krun" not in NO_EXEC
