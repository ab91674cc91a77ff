"""A fabric of more machines than one holds connections: any of them shows, reaches and changes everything all the same."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_support import BIN, Lab, deployment, own_image, run, running_lab, wait_for

MACHINES = 7


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Seven machines of which each has four connections."""
    folder = tmp_path_factory.mktemp("large")
    yield from running_lab(
        "itestb", MACHINES, folder, "--", "--mesh-connections", "4", "--log-level", "debug"
    )


def test_a_machine_lists_reads_scales_and_deletes_what_others_run(large: Lab) -> None:
    large.apply("m0", deployment("web", 6, "echo here; while :; do sleep 0.2; done"))
    for through in ("m6", "m3"):
        found = large.wait_running(through, "web", 6)
        assert large.ready_nodes(through) == set(large.machines)
        elsewhere = next(name for name, node in found.items() if node not in (through, "m0"))
        assert "here" in large.kubectl(through, "logs", elsewhere)
        assert "busy" in large.kubectl(through, "exec", elsewhere, "--", "sh", "-c", "echo busy")
    large.kubectl("m5", "rollout", "status", "deployment/web", "--timeout=60s")
    large.kubectl("m5", "scale", "deployment/web", "--replicas=2")
    large.wait_running("m4", "web", 2)
    large.kubectl("m2", "delete", "pod", next(iter(large.running("m2", "web"))), "--wait=false")
    wait_for("another in its place", lambda: len(large.running("m4", "web")) == 2)
    large.remove("m1", "web")
    missing = large.kubectl("m3", "get", "deployment", "web", check=False)
    assert "not found" in missing


def test_an_image_is_found_where_there_is_no_connection(large: Lab, tmp_path: Path) -> None:
    """One machine has it, and is connected to four of the six others: the index says to the rest who has it."""
    own_image(tmp_path / "far.tar", "localhost/far:1", "from far away")
    digest = large.image("m0", "import", tmp_path / "far.tar").split()[-1]

    def pull(machine: str) -> bool:
        run_dir = Path("/var/lib/magik-lab", large.name, machine, "run")
        words = (BIN / "machineplane", "image", "pull", "localhost/far:1", "--run-dir", run_dir)
        said = run(*words, "--state-dir", run_dir.with_name("state"), check=False)
        return "from machine " in said and digest in said

    for machine in sorted(large.machines.keys() - {"m0"}):
        wait_for(f"{machine} finds it", lambda machine=machine: pull(machine), 60)  # type: ignore[misc]
        large.image(machine, "rm", "localhost/far:1")  # the next one has it of m0 again


def settings(word: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}, "data": {"word": word}}


def with_settings(wanted: dict[str, Any]) -> dict[str, Any]:
    spec = wanted["spec"]["template"]["spec"]
    spec["volumes"] = [{"name": "settings", "configMap": {"name": "kept"}}]
    spec["containers"][0]["volumeMounts"] = [{"name": "settings", "mountPath": "/settings"}]
    return wanted


def wait_moved(large: Lab, dead: str) -> dict[str, str]:
    """All run elsewhere: right after its death the machine's pods still show."""

    seen = []  # shown where it fails

    def attempt() -> dict[str, str] | None:
        found = large.running("m6", "kept")
        if seen[-1:] != [found]:
            seen.append(found)
            print(f"{time.monotonic():.1f} {found}")
        return found if len(found) == 4 and dead not in found.values() else None

    return wait_for(f"4 pods run, none of them on {dead}", attempt, 180)


def test_replicas_and_the_author_may_die_and_volumes_follow(large: Lab) -> None:
    large.apply("m0", settings("before"), with_settings(deployment("kept", 4)))
    found = large.wait_running("m6", "kept", 4)
    large.apply("m6", settings("after"))
    victim = next(node for node in sorted(found.values(), reverse=True) if node not in ("m0", "m6"))
    large.command("kill", victim)
    wait_moved(large, victim)
    large.command("kill", "m0")
    again = wait_moved(large, "m0")
    old = next(name for name in again if name in found)
    wait_for(
        "the volume follows",
        lambda: "after" in large.kubectl("m6", "exec", old, "--", "cat", "/settings/word"),
        90,
    )
    large.command("start", victim)
    large.command("start", "m0")
    wait_for("all are back", lambda: large.ready_nodes("m6") == set(large.machines), 60)
    large.wait_running("m0", "kept", 4, 90)
    large.remove("m0", "kept")
