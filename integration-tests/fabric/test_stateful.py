"""A StatefulSet on real machines: in order, under stable names, back elsewhere when a machine dies."""

from typing import Any

from lab_support import Lab, deployment, wait_for


def stateful_set(name: str, replicas: int, script: str) -> dict[str, Any]:
    obj = deployment(name, replicas, script)
    obj["spec"]["serviceName"] = f"{name}s"
    return obj | {"kind": "StatefulSet"}


def test_ordinals_come_up_in_order_come_back_and_go_from_the_top(lab: Lab) -> None:
    lab.apply("m0", stateful_set("db", 3, "hostname; while :; do sleep 0.1; done"))
    lab.kubectl("m1", "rollout", "status", "statefulset/db", "--timeout=60s")
    before = lab.running("m2", "db")
    assert sorted(before) == ["db-0", "db-1", "db-2"] and len(set(before.values())) == 3
    made = {p["metadata"]["name"]: p["status"]["startTime"] for p in lab.pods("m0", "db")}
    assert made["db-0"] <= made["db-1"] <= made["db-2"]
    assert lab.kubectl("m0", "logs", "db-1").strip() == "db-1"
    victim = next(name for name, machine in before.items() if machine == "m2")
    lab.command("kill", "m2")
    wait_for(
        f"{victim} runs elsewhere",
        lambda: (now := lab.running("m0", "db")).get(victim) in ("m0", "m1") and len(now) == 3,
    )
    lab.command("start", "m2")
    lab.kubectl("m1", "scale", "statefulset/db", "--replicas=1")
    wait_for("the highest went", lambda: set(lab.running("m0", "db")) == {"db-0"})
    assert "1/1" in lab.kubectl("m0", "get", "sts", "db")
    lab.kubectl("m1", "delete", "statefulset", "db")
    wait_for("no pod is left", lambda: not lab.get("m0", "pods", "-l", "app=db"))
    wait_for("m2 is back", lambda: lab.ready_nodes("m0") == {"m0", "m1", "m2"}, 30)


def test_a_service_is_kept_and_shown_by_every_machine(lab: Lab) -> None:
    lab.kubectl("m0", "create", "service", "clusterip", "web", "--tcp=80:8080")
    lab.kubectl("m0", "create", "service", "clusterip", "dbs", "--clusterip=None", "--tcp=5432")
    assert "80/TCP" in lab.kubectl("m1", "get", "services", "web")
    assert "8080/TCP" in lab.kubectl("m2", "describe", "service", "web")
    assert "None" in lab.kubectl("m2", "get", "svc", "dbs")
    said = lab.kubectl("m0", "create", "service", "nodeport", "no", "--tcp=80", check=False)
    assert "spec.type" in said and "ClusterIP" in said
    lab.kubectl("m1", "delete", "service", "web", "dbs")
    wait_for("they are gone", lambda: not lab.get("m2", "services"))
