"""The agents of real pods, from the image that pods get: replicas on different machines find each other."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from lab_support import Lab, deployment, running_lab, wait_for

from machineplane.runtime.images.agent import Baked
from machineplane.runtime.images.store import machine_architecture


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    baked = Baked.find(machine_architecture())
    assert baked is not None, "no agent's image here: bake it by `python scripts/workplane_image`"
    yield from running_lab("itestd", 2, tmp_path_factory.mktemp("discovery"))


def peers(lab: Lab, pod: str, workload: str) -> dict[str, dict[str, Any]]:
    """The replicas of a workload, as the app of a pod is told by its agent; nothing while there is none."""
    url = f"http://127.0.0.1:4700/v1/peers?workload={workload}"
    said = lab.kubectl("m0", "exec", pod, "--", "busybox", "wget", "-qO-", url, check=False)
    try:
        return {peer["pod"]: peer for peer in json.loads(said)["peers"]}
    except ValueError:
        return {}


def test_pods_on_different_machines_find_each_other(lab: Lab) -> None:
    lab.apply("m0", deployment("web", 2), deployment("db", 2))
    running = {name: lab.wait_running("m0", name, 2) for name in ("web", "db")}
    assert all(set(places.values()) == set(lab.machines) for places in running.values())
    web, db = sorted(running["web"]), sorted(running["db"])
    for pod in (*web, *db):
        for workload, names in (("web", web), ("db", db)):
            found = wait_for(
                f"{pod} finds {workload}",
                lambda p=pod, w=workload, n=names: (  # type: ignore[misc]
                    sorted(f := peers(lab, p, f"default/Deployment/{w}")) == n
                    and all(peer["ready"] for peer in f.values())
                    and f
                ),
            )
            assert found
    lab.kubectl("m0", "scale", "deployment/db", "--replicas=1")
    wait_for(
        "the one that has gone is found no more",
        lambda: len([p for p in peers(lab, web[0], "default/Deployment/db").values() if p["ready"]]) == 1,
        20,
    )
    for name in ("web", "db"):
        lab.remove("m0", name)
