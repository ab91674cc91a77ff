"""The main job on real machines: place, show, read, heal, change, delete; through any machine."""

import json
import os
import signal
import time
from pathlib import Path

import wasmtime
import yaml
from lab_support import IMAGE, Lab, deployment, is_ready, run, wait_for


def test_a_deployment_runs_on_three_machines_and_every_machine_shows_it(lab: Lab) -> None:
    lab.apply("m0", deployment("web", 3, "echo hello from $(hostname); while :; do sleep 0.1; done"))
    found = lab.wait_running("m1", "web", 3)
    assert sorted(found.values()) == ["m0", "m1", "m2"]
    for machine in lab.machines:
        assert lab.running(machine, "web") == found
        (shown,) = lab.get(machine, "deployment", "web")
        assert shown["status"]["readyReplicas"] == 3
        pod = next(iter(found))
        assert lab.kubectl(machine, "logs", pod).strip() == f"hello from {pod}"
    assert "3/3" in lab.kubectl("m2", "get", "deployments")
    described = lab.kubectl("m2", "describe", "deployment", "web")
    assert "3 desired | 3 updated | 3 total | 3 available" in described
    events = lab.kubectl("m1", "get", "events", "--field-selector", "involvedObject.name=web")
    assert "Scheduled" in events
    lab.kubectl("m1", "delete", "deployment", "web")
    for machine in lab.machines:
        wait_for(
            f"{machine} shows nothing",
            lambda machine=machine: not lab.get(machine, "deployments,replicasets,pods"),  # type: ignore[misc]
        )


def test_rollout_and_wait_speak_kubectl_s_language(lab: Lab) -> None:
    lab.apply("m0", deployment("roll", 2, "echo one; while :; do sleep 0.1; done"))
    lab.kubectl("m1", "rollout", "status", "deployment/roll", "--timeout=60s")
    before = lab.running("m0", "roll")
    lab.apply("m2", deployment("roll", 2, "echo two; while :; do sleep 0.1; done"))
    lab.kubectl("m1", "rollout", "status", "deployment/roll", "--timeout=60s")
    after = lab.wait_running("m0", "roll", 2)
    assert not before.keys() & after.keys()
    assert lab.kubectl("m0", "logs", next(iter(after))).strip() == "two"
    lab.kubectl("m1", "scale", "deployment/roll", "--replicas=5")
    lab.wait_running("m2", "roll", 5)
    lab.kubectl("m1", "scale", "deployment/roll", "--replicas=1")
    lab.wait_running("m2", "roll", 1)
    lab.kubectl("m0", "wait", "--for=condition=Available", "deployment/roll", "--timeout=10s")
    lab.remove("m0", "roll")


def test_a_pod_that_is_deleted_comes_back_under_another_name(lab: Lab) -> None:
    lab.apply("m0", deployment("again", 2))
    before = lab.wait_running("m0", "again", 2)
    victim = next(iter(before))
    lab.kubectl("m1", "delete", "pod", victim)
    wait_for("another one", lambda: len(now := lab.running("m0", "again")) == 2 and victim not in now)
    lab.remove("m0", "again")


def test_the_replica_of_a_machine_that_dies_runs_elsewhere_within_30_s(lab: Lab) -> None:
    lab.apply("m0", deployment("heal", 3))
    before = lab.wait_running("m0", "heal", 3)
    assert "m2" in before.values()
    began = time.monotonic()
    lab.command("kill", "m2")
    wait_for(
        "three run on two machines",
        lambda: _on(lab, "heal") == ["m0", "m0", "m1"] or _on(lab, "heal") == ["m0", "m1", "m1"],
    )
    assert time.monotonic() - began < 30
    assert lab.ready_nodes("m0") == {"m0", "m1"}
    lab.command("start", "m2")
    wait_for("m2 is back", lambda: lab.ready_nodes("m0") == {"m0", "m1", "m2"}, 30)
    lab.remove("m1", "heal")


def _on(lab: Lab, app: str) -> list[str]:
    return sorted(lab.running("m1" if app != "author" else "m0", app).values())


def test_a_workload_survives_the_machine_that_took_it(lab: Lab) -> None:
    lab.apply("m2", deployment("orphan", 3))
    lab.wait_running("m0", "orphan", 3)
    lab.command("kill", "m2")
    wait_for(
        "three run without m2",
        lambda: len(now := lab.running("m0", "orphan")) == 3 and "m2" not in now.values(),
    )
    lab.kubectl("m1", "scale", "deployment/orphan", "--replicas=2")
    lab.wait_running("m0", "orphan", 2)
    lab.command("start", "m2")
    wait_for("m2 is back", lambda: lab.ready_nodes("m0") == {"m0", "m1", "m2"}, 30)
    lab.remove("m0", "orphan")


def test_a_daemon_s_death_does_not_touch_its_pods(lab: Lab) -> None:
    lab.apply("m0", deployment("stay", 3))
    lab.wait_running("m0", "stay", 3)
    before = {p["metadata"]["uid"]: p["status"]["containerStatuses"] for p in lab.pods("m0", "stay")}
    daemon = json.loads(_ready_file(lab, "m1"))
    os.kill(_pid(lab, "m1"), signal.SIGKILL)
    lab.command("start", "m1")
    assert json.loads(_ready_file(lab, "m1"))["identity"] == daemon["identity"]
    wait_for("m1 is back", lambda: lab.ready_nodes("m0") == {"m0", "m1", "m2"}, 30)
    lab.wait_running("m1", "stay", 3)
    after = {p["metadata"]["uid"]: p["status"]["containerStatuses"] for p in lab.pods("m0", "stay")}
    assert {uid: _lives(statuses) for uid, statuses in after.items()} == {
        uid: _lives(statuses) for uid, statuses in before.items()
    }
    lab.remove("m0", "stay")


def _ready_file(lab: Lab, machine: str) -> str:
    return lab.command("exec", machine, "--", "cat", "/run/magik/machineplane.json")


def _pid(lab: Lab, machine: str) -> int:
    return int(lab.machines[machine]["pid"])


def _lives(statuses: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(s["containerID"], s["state"]) for s in statuses]


def test_a_partition_heals_to_exactly_the_wish(lab: Lab) -> None:
    lab.apply("m0", deployment("split", 3))
    lab.wait_running("m0", "split", 3)
    lab.command("partition", "m0,m1", "m2")
    wait_for(
        "m0's side has three",
        lambda: len(now := lab.running("m0", "split")) == 3 and "m2" not in now.values(),
    )
    lab.command("heal")
    wait_for("all see all again", lambda: all(len(lab.ready_nodes(m)) == 3 for m in lab.machines), 40)
    found = lab.wait_running("m2", "split", 3)
    assert lab.running("m0", "split") == found
    lab.remove("m1", "split")


def test_a_machine_that_slept_through_a_delete_obeys_it_when_it_wakes(lab: Lab) -> None:
    lab.apply("m0", deployment("slept", 3))
    lab.wait_running("m0", "slept", 3)
    lab.command("pause", "m2")
    wait_for("m2 is missed", lambda: "m2" not in lab.ready_nodes("m0"), 40)
    lab.kubectl("m0", "delete", "deployment", "slept")
    lab.command("resume", "m2")
    wait_for("m2 is back", lambda: lab.ready_nodes("m0") == {"m0", "m1", "m2"}, 40)
    wait_for("nothing is left", lambda: not lab.get("m2", "deployments,pods"), 40)
    assert not lab.get("m0", "deployments,pods")


def test_a_bare_pod_runs_to_its_end_and_stays_as_a_result(lab: Lab) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "once"},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{"name": "c", "image": IMAGE, "command": ["sh", "-c", "echo done; exit 3"]}],
        },
    }
    lab.apply("m1", pod)
    (found,) = wait_for(
        "it has ended",
        lambda: [p for p in lab.get("m0", "pods", "once") if p["status"].get("phase") == "Failed"],
    )
    assert found["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3
    assert lab.kubectl("m2", "logs", "once").strip() == "done"
    lab.kubectl("m2", "delete", "pod", "once")
    assert "not found" in lab.kubectl("m0", "get", "pod", "once", check=False)


def test_a_name_is_taken_for_the_whole_fabric(lab: Lab) -> None:
    lab.apply("m0", deployment("taken", 1))
    manifest = json.dumps(deployment("taken", 2))
    assert "already exists" in lab.kubectl("m1", "create", "-f", "-", check=False, stdin=manifest)
    lab.remove("m2", "taken")


def test_namespaces_keep_names_apart_and_go_with_what_is_in_them(lab: Lab) -> None:
    inside = deployment("twin", 1)
    inside["metadata"]["namespace"] = "team"
    refused = lab.kubectl("m0", "apply", "-f", "-", check=False, stdin=json.dumps(inside))
    assert 'namespaces "team" not found' in refused
    lab.kubectl("m0", "create", "namespace", "team")
    lab.apply("m1", inside, deployment("twin", 1))
    wait_for("both run", lambda: sum(is_ready(p) for p in lab.get("m2", "pods", "-A", "-l", "app=twin")) == 2)
    lab.kubectl("m2", "delete", "namespace", "team")
    wait_for("one is left", lambda: len(lab.get("m0", "pods", "-A", "-l", "app=twin")) == 1)
    lab.remove("m0", "twin")


def test_what_fits_nowhere_says_so_and_runs_when_it_fits(lab: Lab) -> None:
    lab.apply("m0", deployment("picky", 1, nodeSelector={"disk": "ssd"}))

    def conditions() -> list[str]:
        (found,) = lab.get("m1", "deployment", "picky")
        return [c["message"] for c in found["status"]["conditions"] if c["reason"] == "FailedScheduling"]

    (message,) = wait_for("the condition", conditions)
    assert "node selector disk=ssd is not met" in message
    assert "FailedScheduling" in lab.kubectl("m2", "get", "events")
    lab.apply("m0", deployment("picky", 1))
    lab.wait_running("m1", "picky", 1)
    lab.remove("m0", "picky")


def test_a_missing_image_is_shown_on_the_pod_and_the_daemon_goes_on(lab: Lab) -> None:
    wrong = deployment("noimage", 1)
    wrong["spec"]["template"]["spec"]["containers"][0]["image"] = "localhost/absent:1"
    lab.apply("m0", wrong)

    def waiting() -> list[str]:
        statuses = [s for p in lab.pods("m1", "noimage") for s in p["status"].get("containerStatuses", [])]
        return [w["message"] for s in statuses if (w := s["state"].get("waiting")) and "message" in w]

    (message, *_) = wait_for("the reason", waiting)
    assert "localhost/absent:1" in message and "machineplane image import" in message
    lab.remove("m0", "noimage")


def test_a_workload_that_names_a_runtime_is_never_run_with_another(lab: Lab) -> None:
    obj = deployment("named", 1)
    obj["metadata"]["annotations"] = {"magik.io/runtime": "krun"}
    lab.apply("m0", obj)
    wait_for("it is said", lambda: "needs runtime krun" in lab.kubectl("m1", "get", "events"))
    assert not lab.pods("m1", "named")
    lab.remove("m0", "named")


FOREVER = """(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 100) "hello from wasm\\n")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (i32.const 16))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (loop $again (br $again))))"""


def test_a_webassembly_module_is_a_workload_like_others(lab: Lab, tmp_path: Path) -> None:
    module = tmp_path / "hello.wasm"
    module.write_bytes(wasmtime.wat2wasm(FOREVER))
    lab.command("image", "import", str(module), "--ref", "localhost/hello:1")
    obj = deployment("wasm", 2)
    obj["metadata"]["annotations"] = {"magik.io/runtime": "wasm"}
    container = obj["spec"]["template"]["spec"]["containers"][0]
    container |= {"image": "localhost/hello:1", "resources": {"limits": {"cpu": "100m", "memory": "96Mi"}}}
    del container["command"]
    lab.apply("m0", obj)
    for pod in lab.wait_running("m1", "wasm", 2):
        wait_for("its line", lambda pod=pod: lab.kubectl("m2", "logs", pod) == "hello from wasm\n", 20)  # type: ignore[misc]
    lab.remove("m2", "wasm")


def test_pods_reach_the_world_outside_their_machine(lab: Lab) -> None:
    """From a pod on one machine to the API port of another: through the bridge and its machine's masquerading."""
    host = lab.machines["m1"]["api"].removeprefix("https://").rpartition(":")[0]
    script = f"nc -w 3 {host} 6443 </dev/null && echo reached || echo lost; while :; do sleep 0.1; done"
    lab.apply("m0", deployment("egress", 3, script))
    found = lab.wait_running("m0", "egress", 3)
    for pod in found:
        wait_for("an answer", lambda pod=pod: lab.kubectl("m0", "logs", pod).strip() == "reached", 15)  # type: ignore[misc]
    lab.remove("m0", "egress")


def test_one_machine_alone_runs_what_fits_on_it(lone_lab: Lab) -> None:
    lone_lab.apply("m0", deployment("alone", 3))
    assert set(lone_lab.wait_running("m0", "alone", 3).values()) == {"m0"}
    lone_lab.remove("m0", "alone")


def test_the_quick_start_s_curl_lines(lone_lab: Lab) -> None:
    """Plain HTTP on loopback, a YAML body; run inside the machine, whose loopback it is."""
    manifest = lone_lab.directory / "curled.yaml"
    manifest.write_text(yaml.safe_dump(deployment("curled", 1)))
    deployments = "http://localhost:3000/apis/apps/v1/namespaces/default/deployments"

    def curl(*arguments: str) -> str:
        return lone_lab.command("exec", "m0", "--", "curl", "-sS", "--fail-with-body", *arguments)

    made = curl(
        "-X", "POST", deployments, "-H", "Content-Type: application/yaml", "--data-binary", f"@{manifest}"
    )
    assert json.loads(made)["metadata"]["name"] == "curled"
    assert [item["metadata"]["name"] for item in json.loads(curl(deployments))["items"]] == ["curled"]
    wait_for(
        "its pod is listed",
        lambda: json.loads(curl("http://localhost:3000/api/v1/namespaces/default/pods"))["items"],
    )
    curl("-X", "DELETE", f"{deployments}/curled")
    wait_for("nothing is left", lambda: not lone_lab.get("m0", "pods"))


def test_the_api_is_closed_to_those_without_the_token(lone_lab: Lab) -> None:
    url = lone_lab.machines["m0"]["api"]
    assert _status("-k", f"{url}/api/v1/pods") == "401"
    assert _status("-k", "-H", "Authorization: Bearer wrong", f"{url}/api/v1/pods") == "401"
    assert _status(url.replace("https", "http").replace("6443", "3000")) == "000"  # nobody listens there


def _status(*arguments: str) -> str:
    return run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "5", *arguments, check=False)
