"""ConfigMaps and Secrets from `kubectl` into containers, on real machines; and what a spec may not ask for."""

import json
import os
import signal

from lab_support import Lab, deployment, wait_for


def with_objects(name: str, replicas: int) -> dict:  # type: ignore[type-arg]
    wanted = deployment(name, replicas, "echo $LEVEL $(cat /s/token); while :; do sleep 0.1; done")
    spec = wanted["spec"]["template"]["spec"]
    level = {"configMapKeyRef": {"name": f"{name}-conf", "key": "level"}}
    spec["containers"][0]["env"] = [{"name": "LEVEL", "valueFrom": level}]
    spec["containers"][0]["volumeMounts"] = [{"name": "s", "mountPath": "/s"}]
    spec["volumes"] = [{"name": "s", "secret": {"secretName": f"{name}-key"}}]
    return wanted


def make_objects(lab: Lab, machine: str, name: str) -> None:
    lab.kubectl(machine, "create", "configmap", f"{name}-conf", "--from-literal=level=high")
    lab.kubectl(machine, "create", "secret", "generic", f"{name}-key", "--from-literal=token=t0ken")


def test_objects_reach_pods_on_every_machine(lab: Lab) -> None:
    make_objects(lab, "m0", "conf")
    lab.apply("m1", with_objects("conf", 3))
    found = lab.wait_running("m2", "conf", 3)
    assert sorted(found.values()) == ["m0", "m1", "m2"]
    for pod in found:
        wait_for("its words", lambda pod=pod: lab.kubectl("m2", "logs", pod).strip() == "high t0ken")  # type: ignore[misc]
    assert "level:" in lab.kubectl("m2", "describe", "configmap", "conf-conf")
    assert "Opaque" in lab.kubectl("m1", "get", "secrets") and "token:" in lab.kubectl(
        "m1", "describe", "secret", "conf-key"
    )
    lab.kubectl("m1", "delete", "secret/conf-key", "configmap/conf-conf")
    wait_for(
        "it is gone everywhere", lambda: not lab.get("m2", "secrets") and not lab.get("m0", "configmaps")
    )
    lab.remove("m0", "conf")


def test_a_lone_machine_s_secrets_outlive_its_daemon_with_the_pods_that_use_them(lone_lab: Lab) -> None:
    lab = lone_lab
    make_objects(lab, "m0", "keep")
    lab.apply("m0", with_objects("keep", 1))
    before = lab.wait_running("m0", "keep", 1)
    os.kill(int(lab.machines["m0"]["pid"]), signal.SIGKILL)
    lab.command("start", "m0")
    wait_for("the pod is shown again", lambda: lab.running("m0", "keep") == before, 30)
    wait_for(
        "its Secret too", lambda: [s["data"] for s in lab.get("m0", "secrets")] == [{"token": "dDBrZW4="}], 20
    )
    lab.remove("m0", "keep")


def test_what_no_machine_can_do_is_refused_with_the_field(lab: Lab) -> None:
    wanted = deployment("no", 1)
    wanted["spec"]["template"]["spec"]["hostNetwork"] = True
    said = lab.kubectl("m0", "apply", "-f", "-", check=False, stdin=json.dumps(wanted))
    assert "spec.template.spec.hostNetwork is not supported" in said and "is invalid" in said
