"""Restarts, phases, statuses, and what is kept of them."""

import pytest
from attrs import evolve

from machineplane.runtime import record
from machineplane.runtime.config import RuntimeConfig
from machineplane.runtime.policy import next_backoff, phase
from machineplane.runtime.record import PodRecord
from machineplane.runtime.status import ContainerStatus, PodStatus, Termination, pod_status_json, qos_class


def make_status(*containers, policy="Always"):
    return PodStatus(
        uid="u",
        name="p",
        namespace="n",
        pod={"spec": {"restartPolicy": policy}},
        containers=containers,
        started_at=1000,
    )


RUNNING = ContainerStatus(name="a", image="i", state="running", ready=True, started_at=5000)
DONE = ContainerStatus(name="b", image="i", state="terminated", exit_code=0)
BROKEN = evolve(DONE, exit_code=3)
NEW = ContainerStatus(name="c", image="i")
CRASHED = evolve(NEW, last=Termination(id="x", exit_code=1, reason="Error"))


def test_back_off_is_kubernetes():
    waits, previous = [], None
    for _ in range(8):
        previous = next_backoff(previous, ran_s=1)
        waits.append(previous)
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]
    assert next_backoff(300, ran_s=600) == 0


@pytest.mark.parametrize(
    ("containers", "policy", "expected"),
    [
        ((RUNNING, NEW), "Always", "Pending"),
        ((RUNNING, CRASHED), "Always", "Running"),
        ((DONE,), "Always", "Running"),
        ((DONE,), "Never", "Succeeded"),
        ((DONE, BROKEN), "Never", "Failed"),
        ((BROKEN,), "OnFailure", "Running"),
        ((evolve(BROKEN, init=True), NEW), "Never", "Failed"),
        ((evolve(BROKEN, init=True), NEW), "Always", "Pending"),
        ((evolve(DONE, init=True), RUNNING), "Always", "Running"),
    ],
)
def test_phases(containers, policy, expected):
    assert phase(make_status(*containers, policy=policy)) == expected


def test_status_object():
    made = pod_status_json(evolve(make_status(RUNNING, CRASHED), phase="Running", ip="10.0.0.2"))
    assert {c["type"]: c["status"] for c in made["conditions"]} == {
        "PodScheduled": "True",
        "Initialized": "True",
        "ContainersReady": "False",
        "Ready": "False",
    }
    assert made["podIPs"] == [{"ip": "10.0.0.2"}] and made["startTime"] == "1970-01-01T00:00:01Z"
    assert made["containerStatuses"][0]["state"] == {"running": {"startedAt": "1970-01-01T00:00:05Z"}}
    assert made["containerStatuses"][1]["lastState"]["terminated"]["exitCode"] == 1


def test_quality_of_service():
    def pod(**resources):
        return {"spec": {"containers": [{"resources": resources}]}}

    assert qos_class(pod()) == "BestEffort"
    assert qos_class(pod(requests={"cpu": "1"})) == "Burstable"
    assert qos_class(pod(limits={"cpu": "1", "memory": "1Gi"})) == "Guaranteed"
    assert qos_class({"spec": {"containers": ["nonsense"]}}) == "BestEffort"


def test_a_record_survives_its_file_and_damage_is_noticed(tmp_path):
    kept = PodRecord(status=evolve(make_status(RUNNING, CRASHED), attachment=b"\x00\xff"), infra_id="i")
    record.save(tmp_path, kept)
    assert record.load(tmp_path) == kept
    (tmp_path / "pod.json").write_text("{")
    assert record.load(tmp_path) is None


def test_a_run_directory_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(ValueError, match="too long by"):
        RuntimeConfig(state_dir=tmp_path, run_dir=tmp_path / ("x" * 90))
    with pytest.raises(ValueError, match="cgroup parent"):
        RuntimeConfig(state_dir=tmp_path, cgroup_parent="../x")
