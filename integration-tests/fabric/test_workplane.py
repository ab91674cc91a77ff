"""Pods with their real agents, on two machines: as the wheel's image has them (`nox -s workplane-image`)."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_support import Lab, deployment, processes_of, run, running_lab, wait_for

from machineplane.runtime.images.agent import Baked
from machineplane.runtime.images.store import machine_architecture

NAME = "web.default.svc.cluster.local"


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if Baked.find(machine_architecture()) is None:
        pytest.fail("the agents' image is not baked: nox -s workplane-image")
    yield from running_lab("itestw", 2, tmp_path_factory.mktemp("workplane"))


def web(replicas: int, **probes: Any) -> dict[str, Any]:
    """An HTTP server that says its pod's name."""
    script = "exec sh -c 'mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 8080 -h /www'"
    wanted = deployment("web", replicas, script)
    wanted["spec"]["template"]["spec"]["containers"][0] |= probes
    return wanted


def test_pods_are_ready_by_their_probes_and_know_the_service_s_name(agents: Lab) -> None:
    agents.kubectl("m0", "create", "service", "clusterip", "web", "--tcp=80:8080")
    probe = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}
    agents.apply("m0", web(2, readinessProbe=probe))
    names = agents.wait_running("m1", "web", 2)
    assert set(names.values()) == {"m0", "m1"}
    agents.kubectl("m1", "rollout", "status", "deployment/web", "--timeout=10s")
    caller = next(name for name, machine in names.items() if machine == "m0")

    def resolved() -> bool:
        said = agents.kubectl("m1", "exec", caller, "--", "nslookup", NAME, check=False)
        return re.search(r"Address: 127\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.", said) is not None

    wait_for("the Service's name is a loopback's of the pod", resolved)
    said = agents.kubectl("m1", "describe", "service", "web")
    assert said.count(":8080") == 2  # both pods are behind it
    agents.kubectl("m0", "exec", caller, "--", "rm", "/www/index.html")
    wait_for("it is ready no more", lambda: set(agents.running("m1", "web")) == set(names) - {caller})
    agents.remove("m0", "web")
    agents.kubectl("m0", "delete", "service", "web")


def test_pods_that_listen_at_a_port_call_others_at_the_same_port(agents: Lab) -> None:
    agents.kubectl("m0", "create", "service", "clusterip", "web", "--tcp=8080:8080")
    agents.apply("m0", web(2))
    names = agents.wait_running("m1", "web", 2)
    for caller, machine in names.items():
        seen: set[str] = set()

        def reached(caller: str = caller, machine: str = machine, seen: set[str] = seen) -> bool:
            said = agents.kubectl(machine, "exec", caller, "--", "nslookup", NAME, check=False)
            for address in re.findall(r"Address: (127\.[\d.]+)\n", said):
                # Not by wget: Debian's busybox, linked statically, crashes there.
                call = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 8080"
                answer = agents.kubectl(machine, "exec", caller, "--", "sh", "-c", call, check=False)
                seen.update(answer.split()[-1:])
            return set(names) <= seen

        wait_for(f"{caller} reaches both", reached)
        own = agents.kubectl(machine, "exec", caller, "--", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/")
        assert own.strip() == caller
    agents.remove("m0", "web")
    agents.kubectl("m0", "delete", "service", "web")


def test_what_is_not_alive_is_restarted(agents: Lab) -> None:
    probe = {"exec": {"command": ["test", "!", "-e", "/dead"]}, "periodSeconds": 1, "failureThreshold": 2}
    agents.apply("m0", web(1, livenessProbe=probe))
    (name,) = agents.wait_running("m0", "web", 1)
    agents.kubectl("m0", "exec", name, "--", "touch", "/dead")
    wait_for(
        "it is restarted",
        lambda: agents.pods("m1", "web")[0]["status"]["containerStatuses"][0]["restartCount"] >= 1,
    )
    assert "Killing" in agents.kubectl("m1", "describe", "pod", name)
    agents.remove("m0", "web")


def test_a_stateful_set_has_one_leader_which_is_shown(agents: Lab) -> None:
    wanted = deployment("db", 3, "while :; do sleep 0.1; done") | {"kind": "StatefulSet"}
    wanted["spec"]["serviceName"] = "dbs"
    agents.apply("m0", wanted)
    agents.kubectl("m0", "rollout", "status", "statefulset/db", "--timeout=60s")

    def leaders() -> list[str]:
        return [p["metadata"]["name"] for p in agents.get("m1", "pods", "-l", "app=db,magik.io/leader=true")]

    wait_for("one leads", lambda: len(leaders()) == 1)

    def followed() -> bool:
        said = agents.kubectl("m0", "exec", "db-1", "--", "cat", "/run/magik/app/leader")
        return f'"leader": "{leaders()[0]}"' in said

    wait_for("a replica follows it", followed)
    agents.kubectl("m0", "delete", "statefulset", "db")
    wait_for("no pod is left", lambda: not agents.get("m0", "pods", "-l", "app=db"))


def test_a_bare_pod_has_an_agent_as_well(agents: Lab) -> None:
    container = {"name": "main", "image": "localhost/busybox:latest", "command": ["sleep", "1000000"]}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    agents.apply("m1", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "once"}, "spec": spec})
    wait_for(
        "it tells of itself",
        lambda: (
            "magik.io/agent" in str(agents.kubectl("m0", "get", "pod", "once", "-o", "json", check=False))
        ),
    )
    agents.kubectl("m0", "delete", "pod", "once")


def shell(agents: Lab, pod: str, script: str) -> str:
    return agents.kubectl("m0", "exec", pod, "--", "sh", "-c", script, check=False)


def try_doors(agents: Lab, process: int, peer: str, url: str) -> dict[str, dict[str, Any]]:
    script = str(Path(__file__).with_name("intruder.py"))
    said = run("nsenter", f"--net=/proc/{process}/ns/net", sys.executable, script, peer, url)
    return dict(json.loads(said.splitlines()[-1]))


def test_a_pod_gets_nothing_at_machines_doors(agents: Lab) -> None:
    """Neither the socket of its own agent, nor what machines have open to the network."""
    agents.apply("m0", deployment("pry", 1, "while :; do sleep 0.1; done"))
    (pod,) = agents.wait_running("m0", "pry", 1)
    wait_for("its agent's door is open", lambda: "agent.sock" in shell(agents, pod, "ls /run/magik/app"))
    said = shell(
        agents, pod, "ls /run/magik/agent; find / -name machine.sock -o -name credentials; > /run/magik/app/x"
    )
    assert "/run/magik/agent: No such file" in said and "x: Read-only file system" in said
    assert "machine.sock" not in said and "credentials" not in said
    process = processes_of(pod)[0]
    for node in agents.get("m0", "nodes"):
        marks = node["metadata"]["annotations"]
        machine = agents.machines[node["metadata"]["name"]]
        said_there = try_doors(
            agents, process, f"{marks['magik.io/identity']}@{marks['magik.io/mesh']}", machine["api"]
        )
        assert set(said_there["rest"].values()) == {401}, said_there
        assert "membership.missing" in said_there["mesh"]["magik-machine/1"], said_there
        assert "ALPN" in said_there["mesh"]["magik-workload/1"], said_there
    agents.remove("m0", "pry")
