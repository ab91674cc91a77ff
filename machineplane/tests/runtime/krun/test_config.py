"""The container in which a machine runs: what its monitor may, what the guest gets, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from machineplane.runtime.engine import NO_EXEC, CrunEngine, EngineStatus, KrunEngine
from machineplane.runtime.errors import PodSpecError
from machineplane.runtime.hosted import IMAGE
from machineplane.runtime.krun.config import MONITOR_MEMORY, guest_text, machine_config
from machineplane.runtime.krun.locate import KrunReport

CONFIG: dict[str, Any] = {
    "process": {"args": ["sh", 'say "x"'], "env": ["A=\n"], "cwd": "/data", "user": {"uid": 0, "gid": 0}},
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
    return machine_config(config, container, "/opt/krun/libkrun.so.1", Path("/private/c/guest.json"))


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


def test_volumes_are_in_the_guests_root_and_its_configuration_is_a_file_in_memory() -> None:
    made = made_of(limited())
    order = [mount["destination"] for mount in made["mounts"]]
    assert order.index(IMAGE) < order.index(f"{IMAGE}/data") < order.index(f"{IMAGE}/.krun_config.json")
    assert "/dev" in order and made["mounts"][-1]["source"] == "/private/c/guest.json"
    assert json.loads(guest_text(CONFIG["process"])) == {
        "process": {"args": ["sh", 'say "x"'], "env": ["A=\n"], "cwd": "/data"}
    }


def test_the_monitor_makes_no_devices_and_gains_no_privileges() -> None:
    process = made_of(limited())["process"]
    assert "CAP_MKNOD" not in process["capabilities"]["bounding"] and process["noNewPrivileges"]
    assert process["env"] == ["PATH=/usr/bin:/bin"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"tty": True}, "tty"),
        ({"lifecycle": {"preStop": {"exec": {"command": ["x"]}}}}, "exec hooks"),
        ({"securityContext": {"privileged": True}}, "privileged"),
        ({"volumeMounts": [{"name": "v", "mountPath": "/dev/v"}]}, "/dev/v"),
        ({"resources": {"limits": {"cpu": "256"}}}, "255 vCPUs"),
        ({"resources": {"limits": {"memory": "8Mi"}}}, "32Mi at least"),
    ],
)
def test_what_a_guest_cannot_have_is_refused(more: dict[str, Any], told: str) -> None:
    with pytest.raises(PodSpecError, match=told):
        made_of({"name": "main", **more})


def test_another_user_than_root_is_refused_and_not_left_out() -> None:
    config = {**CONFIG, "process": {**CONFIG["process"], "user": {"uid": 5, "gid": 6}}}
    with pytest.raises(PodSpecError, match="not as 5:6"):
        made_of(limited(), config)


class Containers(CrunEngine):
    def __init__(self, *, available: bool) -> None:
        self._available = available

    def check(self) -> EngineStatus:
        return EngineStatus(name="crun", available=self._available, reason="" if self._available else "none")


@pytest.mark.parametrize(
    ("available", "reason", "said"),
    [
        (True, "", ""),
        (True, "no KVM", "no KVM"),
        (False, "", "it needs crun: none"),
        (False, "no KVM", "no KVM; it needs crun: none"),
    ],
)
def test_the_engine_says_what_it_lacks(*, available: bool, reason: str, said: str) -> None:
    status = KrunEngine(Containers(available=available), KrunReport("/l", reason)).check()
    assert (status.name, status.available, status.reason) == ("krun", not said, said)
    assert "krun" in NO_EXEC
