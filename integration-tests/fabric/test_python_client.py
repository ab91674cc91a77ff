"""Python's own Kubernetes client against any machine: what it lists, runs in pods, and forwards."""

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config
from kubernetes.stream import portforward, stream
from lab_support import IMAGE, Lab, is_ready, running_lab, wait_for

MACHINES = ("m0", "m1")

# The library leaves sockets and threads of its streams to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What the library leaves is collected within the test that allows for it."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from running_lab("ptest", 2, tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def echo(lab: Lab) -> str:
    """A pod in which port 7000 gives back what comes."""
    container = {"name": "main", "image": IMAGE, "command": ["nc", "-ll", "-p", "7000", "-e", "cat"]}
    spec = {"terminationGracePeriodSeconds": 0, "containers": [container]}
    lab.apply("m0", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "echo"}, "spec": spec})
    wait_for("the pod runs", lambda: is_ready(lab.get("m1", "pod", "echo")[0]))
    return "echo"


def core(lab: Lab, machine: str) -> Any:
    """A client of its own for each use: the library's streams change the client that they are given."""
    return client.CoreV1Api(config.new_client_from_config(str(lab.directory / machine)))


def execute(lab: Lab, machine: str, pod: str, *command: str, stdin: str = "") -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in a pod."""
    running = stream(
        core(lab, machine).connect_get_namespaced_pod_exec,
        pod,
        "default",
        command=list(command),
        stdin=bool(stdin),
        stdout=True,
        stderr=True,
        tty=False,
        _preload_content=False,
    )
    if stdin:
        running.write_stdin(stdin)
    running.run_forever(timeout=20)
    out, err = running.read_stdout(timeout=1), running.read_stderr(timeout=1)
    running.close()
    return running.returncode, out, err


@pytest.mark.parametrize("machine", MACHINES)
def test_it_lists_what_the_fabric_runs(lab: Lab, echo: str, machine: str) -> None:
    listed = core(lab, machine).list_namespaced_pod("default").items
    assert [(pod.metadata.name, pod.status.phase) for pod in listed] == [(echo, "Running")]
    assert {node.metadata.name for node in core(lab, machine).list_node().items} == set(MACHINES)


@pytest.mark.parametrize("machine", MACHINES)
def test_it_runs_commands_in_a_pod(lab: Lab, echo: str, machine: str) -> None:
    assert execute(lab, machine, echo, "sh", "-c", "echo out; echo err >&2; exit 7") == (7, "out\n", "err\n")
    assert execute(lab, machine, echo, "head", "-n", "1", stdin="one\ntwo\n") == (0, "one\n", "")


@pytest.mark.parametrize("machine", MACHINES)
def test_it_forwards_a_port(lab: Lab, echo: str, machine: str) -> None:
    forward = portforward(
        core(lab, machine).connect_get_namespaced_pod_portforward, echo, "default", ports="7000"
    )
    data = os.urandom(50_000)
    sock = forward.socket(7000)
    sock.setblocking(True)
    got = b""
    for begin in range(0, len(data), 10_000):
        sock.sendall(data[begin : begin + 10_000])
        while len(got) < min(begin + 10_000, len(data)):
            got += sock.recv(65536)
    sock.close()
    assert got == data
