"""Machines behind source NAT take part like all others: by a direct path where the NATs let it, else by a relay."""

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from lab_support import Lab, deployment, wait_for

from machineplane.linux import nft
from machineplane.linux.netns import in_netns

T = TypeVar("T")
TABLE = "inet magik-test"
MIB = 1 << 20
STRANGER_PORT = 5555


def outside(lab: Lab, machine: str) -> str:
    """The address at which others see a machine."""
    return str(lab.machines[machine]["mesh"]).rpartition(":")[0]


def inside(lab: Lab, machine: str, work: Callable[[], T]) -> T:
    return in_netns(Path("/run/netns") / lab.machines[machine]["netns"], work)


@contextmanager
def counted(
    lab: Lab, machine: str, rules: dict[str, str], unit: str = "bytes"
) -> Iterator[Callable[[], dict[str, int]]]:
    """Count, at `machine`, what comes in and matches each rule, in bytes or packets (the kernel makes one of many large
    ones); gives a reader of the counts.
    """
    lines = [f"add table {TABLE}", f"add chain {TABLE} in {{ type filter hook input priority 10; }}"]
    for name, rule in rules.items():
        lines += [f"add counter {TABLE} {name}", f"add rule {TABLE} in {rule} counter name {name}"]

    def read() -> dict[str, int]:
        text = inside(lab, machine, lambda: nft.run(f"list counters table {TABLE}"))
        return {
            name: int(count) for name, count in re.findall(rf"counter (\w+) \{{[^}}]*\b{unit} (\d+)", text)
        }

    inside(lab, machine, lambda: nft.run("\n".join(lines)))
    try:
        yield read
    finally:
        inside(lab, machine, lambda: nft.run(f"delete table {TABLE}"))


def send_from_a_strange_port(lab: Lab, machine: str, address: str) -> None:
    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("", STRANGER_PORT))
            sender.sendto(b"is anybody there?", (address, 4001))

    inside(lab, machine, work)


def test_the_routers_let_nobody_in_by_himself(hidden_lab: Lab) -> None:
    """Else what follows would prove nothing."""
    rules = {"strange": f"udp sport {STRANGER_PORT}"}
    for hidden in ("m1", "m2", "m3"):
        with counted(hidden_lab, hidden, rules) as read:
            send_from_a_strange_port(hidden_lab, "m0", outside(hidden_lab, hidden))
            assert read() == {"strange": 0}
    with counted(hidden_lab, "m0", rules, unit="packets") as read:
        send_from_a_strange_port(hidden_lab, "m1", outside(hidden_lab, "m0"))
        assert read() == {"strange": 1}


@pytest.mark.parametrize(("host", "direct"), [("m2", True), ("m3", False), ("m0", True)])
def test_a_pod_on_one_machine_is_used_through_a_hidden_one(hidden_lab: Lab, host: str, direct: bool) -> None:
    lab = hidden_lab
    for machine in lab.machines:
        wait_for(f"{machine} sees all", lambda m=machine: lab.ready_nodes(m) == set(lab.machines), 30)  # type: ignore[misc]
    name = f"on-{host}"
    script = "echo hello from $(hostname); while :; do sleep 0.1; done"
    lab.apply("m1", deployment(name, 1, script, nodeSelector={"kubernetes.io/hostname": host}))
    (pod,) = lab.wait_running("m1", name, 1)
    assert lab.running("m1", name) == {pod: host}
    assert lab.kubectl("m1", "logs", pod).strip() == f"hello from {pod}"
    assert lab.kubectl("m3", "exec", pod, "--", "hostname").strip() == pod
    rules = {other: f"ip saddr {outside(lab, other)} meta l4proto udp" for other in lab.machines}
    with counted(lab, "m1", rules) as read:
        said = lab.kubectl("m1", "exec", pod, "--", "sh", "-c", f"head -c {MIB} /dev/zero | tr '\\0' x")
        came = read()
    assert said == "x" * MIB
    # All of it came from the pod's machine itself, or from a relay.
    assert (came[host] if direct else came["m0"] + came["m4"]) > MIB, came
    assert direct or came[host] == 0, came
    lab.remove("m2", name)


def test_another_relay_takes_over_from_one_that_dies(hidden_lab: Lab) -> None:
    lab = hidden_lab
    lab.apply("m1", deployment("kept", 1, nodeSelector={"kubernetes.io/hostname": "m3"}))
    (pod,) = lab.wait_running("m1", "kept", 1)
    rules = {relay: f"ip saddr {outside(lab, relay)} meta l4proto udp" for relay in ("m0", "m4")}
    with counted(lab, "m1", rules) as read:
        lab.kubectl("m1", "exec", pod, "--", "sh", "-c", f"head -c {MIB} /dev/zero | tr '\\0' x")
        came = read()
    relay = max(came, key=lambda name: came[name])
    lab.command("kill", relay)
    wait_for(
        f"m1 reaches the pod on m3 without {relay}",
        lambda: lab.kubectl("m1", "exec", pod, "--", "hostname", check=False).strip() == pod,
        40,
    )
    others = set(lab.machines) - {relay}
    for machine in others:
        wait_for(f"{machine} sees the others", lambda m=machine: lab.ready_nodes(m) == others, 30)  # type: ignore[misc]
    assert lab.running("m1", "kept") == {pod: "m3"}
    lab.command("start", relay)
    lab.remove("m1", "kept")
