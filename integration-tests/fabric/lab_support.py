"""A lab of real daemons for the tests, driven as its user would: by `machineplane lab` and `kubectl`."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from machineplane.runtime.images.make import make_image

BIN = Path(sys.executable).parent
IMAGE = "localhost/busybox:latest"
T = TypeVar("T")


def run(*command: str | Path, check: bool = True, stdin: str | None = None, **environment: str) -> str:
    """A command's output, both streams; an assertion that shows it where it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        input=stdin,
        env={**os.environ, **environment},
        timeout=180,
    )
    assert not check or done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def wait_for(what: str, attempt: Callable[[], T], seconds: float = 60) -> T:
    """Poll until ``attempt`` gives something true; the last thing it gave is in the failure."""
    deadline = time.monotonic() + seconds
    while not (found := attempt()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s (last: {found!r})"
        time.sleep(0.1)
    return found


def deployment(
    name: str, replicas: int = 3, script: str = "exec sleep 1000000", **spec: Any
) -> dict[str, Any]:
    """A Deployment of busybox pods that end at once when told to."""
    trap = "trap 'exit 0' TERM; "
    container = {
        "name": "main",
        "image": IMAGE,
        "command": ["sh", "-c", script if script.startswith("exec") else trap + script],
        "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [container], **spec},
            },
        },
    }


def with_image(name: str, image: str, replicas: int = 3, **spec: Any) -> dict[str, Any]:
    """As ``deployment``, of another image."""
    wanted = deployment(name, replicas, **spec)
    wanted["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return wanted


def own_image(path: Path, ref: str, message: str) -> None:
    """Write a busybox with a file ``message``: its layer is no other test's."""
    files = {"bin/busybox": (Path("/bin/busybox"), 0o755), "message": (message.encode(), 0o644)}
    links = {f"bin/{applet}": "busybox" for applet in ("sh", "sleep", "cat")}
    make_image(path, ref=ref, files=files, symlinks=links, env=["PATH=/bin"])


class Lab:
    """A lab by name, its machines, and kubectl through any of them."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.machines: dict[str, dict[str, Any]] = {}

    def command(self, *arguments: str, check: bool = True) -> str:
        words = 2 if arguments[0] == "image" else 1
        verb, rest = arguments[:words], arguments[words:]
        return run(BIN / "machineplane", "lab", *verb, "--name", self.name, *rest, check=check)

    def image(self, machine: str, *words: str | Path) -> str:
        """`machineplane image` on a machine's disk, whatever its daemon does."""
        state = Path("/var/lib/magik-lab", self.name, machine, "state")
        return run(BIN / "machineplane", "image", *words, "--state-dir", state)

    def up(self, machines: int, *options: str) -> None:
        words = ("--name", self.name, "--machines", str(machines), "--json", *options)
        done = subprocess.run(
            [BIN / "machineplane", "lab", "up", *words],
            text=True,
            stdout=subprocess.PIPE,
            timeout=180,
        )
        assert done.returncode == 0, "lab up failed: see its output above"
        self.read(json.loads(done.stdout))
        image = self.directory / "busybox.tar"
        run(sys.executable, "-m", "machineplane.runtime.images.make", "busybox", image)
        self.command("image", "import", str(image))
        wait_for("all machines know each other", lambda: self.ready_nodes("m0") == set(self.machines), 30)

    def read(self, said: dict[str, Any]) -> None:
        self.machines = {machine["name"]: machine for machine in said["machines"]}
        for name in self.machines:
            (self.directory / name).write_text(self.command("kubeconfig", name))

    def kubectl(self, machine: str, *arguments: str, check: bool = True, stdin: str | None = None) -> str:
        program = shutil.which("kubectl")
        assert program, "kubectl is missing: apt-get install kubernetes-client"
        config = str(self.directory / machine)
        return run(program, *arguments, check=check, stdin=stdin, KUBECONFIG=config, HOME=str(self.directory))

    def apply(self, machine: str, *objects: dict[str, Any]) -> None:
        for obj in objects:
            self.kubectl(machine, "apply", "-f", "-", stdin=json.dumps(obj))

    def get(self, machine: str, *arguments: str) -> list[dict[str, Any]]:
        said = self.kubectl(machine, "get", *arguments, "-o", "json")
        # kubectl says on its other stream what the list may lack, while a machine is silent.
        found = json.loads(re.sub(r"(?m)^Warning: .*\n", "", said))
        items = found.get("items", [found])
        assert isinstance(items, list)
        return items

    def pods(self, machine: str, app: str) -> list[dict[str, Any]]:
        """Pods of a Deployment that are not being deleted."""
        found = self.get(machine, "pods", "-l", f"app={app}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def running(self, machine: str, app: str) -> dict[str, str]:
        """Names of ready pods of a Deployment, with their machines."""
        return {p["metadata"]["name"]: p["spec"]["nodeName"] for p in self.pods(machine, app) if is_ready(p)}

    def wait_running(self, machine: str, app: str, count: int, seconds: float = 60) -> dict[str, str]:
        def attempt() -> dict[str, str] | None:
            found = self.running(machine, app)
            return found if len(found) == count == len(self.pods(machine, app)) else None

        return wait_for(f"{count} pods of {app} run, as {machine} sees it", attempt, seconds)

    def ready_nodes(self, machine: str) -> set[str]:
        return {node["metadata"]["name"] for node in self.get(machine, "nodes") if is_ready(node)}

    def remove(self, machine: str, app: str) -> None:
        self.kubectl(machine, "delete", "deployment", app, "--ignore-not-found")
        wait_for(f"no pod of {app} is left", lambda: not self.get(machine, "pods", "-l", f"app={app}"), 60)


def processes_of(pod: str) -> list[int]:
    """All of a pod on this computer: its containers', its agent's, and what holds its namespaces."""
    nets: dict[str, list[int]] = {}
    own = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                net = os.readlink(entry / "ns/net")
                nets.setdefault(net, []).append(int(entry.name))
                if (entry / "root/etc/hostname").read_text().strip() == pod:
                    own.add(net)
            except OSError:
                continue  # it has ended, or is in no pod
    return [pid for net in own for pid in nets[net]]


def is_ready(obj: dict[str, Any]) -> bool:
    conditions = obj.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def running_lab(name: str, machines: int, directory: Path, *options: str) -> Iterator[Lab]:
    """For fixtures: a lab that is up, and gone afterwards; its name is ``name`` and which of several test processes."""
    assert os.geteuid() == 0, "these tests need root: they make namespaces and containers"
    lab = Lab(name + os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw"), directory)
    lab.command("down", check=False)
    try:
        lab.up(machines, *options)
        yield lab
    finally:
        lab.command("down")
