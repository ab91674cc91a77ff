"""Pods' agents on real machines, as kubectl shows them. The agent is a shell script that asks what the real one asks."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "runtime"))

from agent_image import make_agent
from lab_support import Lab, deployment, running_lab, wait_for

REF = "localhost/magik/workplane:latest"
SCRIPT = r"""#!/bin/busybox sh
trap 'exit 0' TERM
C=/run/magik/agent/credentials
TOKEN=$(busybox sed 's/.*"token": "\([^"]*\)".*/\1/' $C); busybox rm $C
call() {
  printf '%s %s HTTP/1.1\r\nHost: m\r\nAuthorization: Bearer %s\r\nContent-Length: %s\r\nConnection: close\r\n\r\n%s' \
    "$1" "$2" "$TOKEN" "${#3}" "$3" | talk /run/magik/agent/machine.sock; echo
}
has() { call POST /v1/containers/main/exec "{\"command\": [\"test\", \"-e\", \"$1\"], \"timeout_s\": 5}" |
  busybox grep -q '"exit_code": 0'; }
KEY=$(busybox head -c 32 /dev/urandom | busybox od -An -tx1 | busybox tr -d ' \n')
call POST /v1/pass "{\"key\": \"$KEY\"}" > /run/magik/app/pass
call POST /v1/pass "{\"key\": \"11$(echo $KEY | busybox cut -c3-)\"}" > /run/magik/app/second
call GET /v1/services/default/web > /run/magik/app/service
call GET /v1/services/kube-system/web > /run/magik/app/foreign
call POST /v1/heal '{"missing": 1, "generation": 1}' > /run/magik/app/heal
call GET /v1/pods > /run/magik/app/unknown
LEADER=null
case "$BEE_WORKLOAD_KIND/$BEE_POD_NAME" in StatefulSet/*-0) LEADER='{"generation": 1, "term": 5}';; esac
while :; do
  READY=false; has /ready && READY=true
  has /dead && call POST /v1/containers/main/restart '{"reason": "Liveness probe failed: /dead is there"}'
  call PUT /v1/status "{\"containers\": {\"main\": {\"ready\": $READY, \"started\": true, \
\"message\": \"Readiness probe failed: no /ready\"}}, \"agent\": {\"peer\": \"$KEY\", \"port\": 4701}, \"leader\": $LEADER}"
  call GET /v1/state?since=0 > /run/magik/app/state.new; busybox mv /run/magik/app/state.new /run/magik/app/state
  busybox sleep 0.2 & wait $!
done > /dev/null 2>&1
"""


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two machines that have the image of an agent."""
    folder = tmp_path_factory.mktemp("agents")
    for lab in running_lab("itesta", 2, folder):
        lab.command("image", "import", str(make_agent(folder, REF, SCRIPT)))
        yield lab


def probed(name: str, replicas: int = 2, ready: str = "") -> dict[str, Any]:
    wanted = deployment(name, replicas, f"{ready} while :; do sleep 0.1; done")
    probe = {"exec": {"command": ["test", "-e", "/ready"]}, "periodSeconds": 1}
    wanted["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = probe
    return wanted


def pod_names(lab: Lab, app: str) -> list[str]:
    return sorted(p["metadata"]["name"] for p in lab.pods("m0", app))


def show(lab: Lab, pod: str, name: str) -> str:
    """What the agent of a pod was answered."""

    def attempt() -> str:
        said = lab.kubectl("m1", "exec", pod, "--", "cat", f"/run/magik/app/{name}", check=False)
        return said if "HTTP/1.1" in said else ""

    return wait_for(f"{pod} has {name}", attempt)


def test_a_pod_is_ready_when_its_agent_says_so(agents: Lab) -> None:
    agents.apply("m0", probed("web"))
    names = wait_for("two pods run", lambda: len(found := pod_names(agents, "web")) == 2 and found)
    wait_for("both agents say no", lambda: "Readiness probe failed" in agents.kubectl("m1", "get", "events"))
    assert "0/2" in agents.kubectl("m1", "get", "deployment", "web")
    said = agents.kubectl("m0", "rollout", "status", "deployment/web", "--timeout=2s", check=False)
    assert "0 of 2" in said and "successfully" not in said
    for name in names:
        agents.kubectl("m0", "exec", name, "--", "touch", "/ready")
    agents.kubectl("m1", "rollout", "status", "deployment/web", "--timeout=60s")
    assert "2/2" in agents.kubectl("m1", "get", "deployment", "web")
    assert "Unhealthy" in agents.kubectl("m1", "describe", "pod", names[0])
    agents.kubectl("m0", "exec", names[0], "--", "rm", "/ready")
    wait_for("one is ready no more", lambda: "1/2" in agents.kubectl("m1", "get", "deployment", "web"))
    agents.remove("m0", "web")


def test_what_is_not_alive_is_restarted_and_kubectl_says_why(agents: Lab) -> None:
    agents.apply("m0", deployment("sick", 1, "while :; do sleep 0.1; done"))
    (name,) = agents.wait_running("m0", "sick", 1)
    agents.kubectl("m0", "exec", name, "--", "touch", "/dead")
    wait_for(
        "a restart",
        lambda: agents.pods("m0", "sick")[0]["status"]["containerStatuses"][0]["restartCount"] == 1,
    )
    said = agents.kubectl("m1", "describe", "pod", name)
    assert "Unhealthy" in said and "/dead is there" in said and "Killing" in said
    agents.remove("m0", "sick")


def test_an_agent_gets_a_pass_for_one_key_and_is_told_of_its_own_alone(agents: Lab) -> None:
    agents.kubectl("m0", "create", "service", "clusterip", "web", "--tcp=80:8080")
    agents.apply("m0", deployment("web", 2, "while :; do sleep 0.1; done"))
    names = sorted(agents.wait_running("m0", "web", 2))
    for name in names:
        assert "HTTP/1.1 200" in (said := show(agents, name, "pass")) and '"pass": "' in said
        assert "HTTP/1.1 409" in show(agents, name, "second")
        assert '"workloads": ["default/Deployment/web"]' in show(agents, name, "service")
        assert "HTTP/1.1 404" in show(agents, name, "foreign") and "HTTP/1.1 404" in show(
            agents, name, "unknown"
        )
        assert '"disposed": false' in show(agents, name, "heal")
    others = {
        p["metadata"]["name"]: p["metadata"]["annotations"].get("magik.io/agent")
        for p in agents.pods("m1", "web")
    }
    assert all(others.values()) and len(set(others.values())) == 2
    for name, other in zip(names, reversed(names), strict=True):
        place = str(others[other])
        wait_for("an agent is told of the other", lambda n=name, p=place: p in show(agents, n, "state"))  # type: ignore[misc]
        assert str(others[name]) not in show(agents, name, "state")
    agents.kubectl("m0", "delete", "service", "web")
    agents.remove("m0", "web")


def test_the_leader_of_a_stateful_set_is_marked(agents: Lab) -> None:
    wanted = deployment("db", 2, "while :; do sleep 0.1; done") | {"kind": "StatefulSet"}
    wanted["spec"]["serviceName"] = "dbs"
    agents.apply("m0", wanted)
    agents.kubectl("m0", "rollout", "status", "statefulset/db", "--timeout=60s")
    wait_for(
        "the leader is marked",
        lambda: agents.kubectl("m1", "get", "pods", "-l", "magik.io/leader=true", "-o", "name"),
    )
    marked = agents.get("m1", "pods", "-l", "magik.io/leader=true")
    assert [p["metadata"]["name"] for p in marked] == ["db-0"]
    assert marked[0]["metadata"]["annotations"]["magik.io/leader"] == "1/5"
    agents.kubectl("m0", "delete", "statefulset", "db")
    wait_for("no pod is left", lambda: not agents.get("m0", "pods", "-l", "app=db"))


def test_agents_outlive_the_daemon(agents: Lab) -> None:
    agents.apply("m0", probed("web", 2, "touch /ready;"))
    names = agents.wait_running("m1", "web", 2)
    mine = next(name for name, machine in names.items() if machine == "m1")
    before = agents.get("m0", "pod", mine)[0]
    os.kill(int(agents.machines["m1"]["pid"]), signal.SIGKILL)
    agents.command("start", "m1")
    agents.wait_running("m1", "web", 2)
    after = agents.get("m0", "pod", mine)[0]
    assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"]
    assert (
        after["metadata"]["annotations"] == before["metadata"]["annotations"]
    )  # the agent's key is the same
    agents.kubectl("m0", "exec", mine, "--", "rm", "/ready")
    wait_for("its agent is heard", lambda: "1/2" in agents.kubectl("m0", "get", "deployment", "web"))
    agents.remove("m1", "web")
