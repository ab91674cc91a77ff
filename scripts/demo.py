"""The main job, shown: three machines, one `kubectl apply`, a machine dies, the replica comes back, all is deleted.

Run by `nox -s demo`; `--keep` leaves the fabric up and says how to use it. Ends with `demo: ok` and status 0, or says what
went wrong and leaves with status 1.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LAB = "demo"
BIN = Path(sys.executable).parent
IMAGE = "localhost/busybox:latest"
DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "hello"},
    "spec": {
        "replicas": 3,
        "selector": {"matchLabels": {"app": "hello"}},
        "template": {
            "metadata": {"labels": {"app": "hello"}},
            "spec": {
                "terminationGracePeriodSeconds": 2,
                "containers": [
                    {
                        "name": "hello",
                        "image": IMAGE,
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["sh", "-c", "echo hello from $(hostname); exec sleep 1000000"],
                        "resources": {"requests": {"cpu": "50m", "memory": "16Mi"}},
                    }
                ],
            },
        },
    },
}


class DemoFailed(Exception):
    """Something did not happen; the text says what."""


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def run(
    *command: str, quiet: bool = False, env: Mapping[str, str] | None = None, stdin: str | None = None
) -> str:
    """Run a command, show it as a user would type it, and return what it printed."""
    shown = ["machineplane" if word == str(BIN / "machineplane") else word for word in command]
    if not quiet:
        print(f"$ {shlex.join(shown)}", flush=True)
    done = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, env={**os.environ, **(env or {})}, input=stdin
    )
    if done.returncode:
        raise DemoFailed(f"`{shlex.join(shown)}` ended with status {done.returncode}: {done.stdout.strip()}")
    if not quiet and done.stdout:
        print(done.stdout.rstrip(), flush=True)
    return done.stdout


def machineplane(*arguments: str, quiet: bool = False) -> str:
    return run(str(BIN / "machineplane"), *arguments, quiet=quiet)


def wait_for(what: str, happened: Callable[[], bool], seconds: float) -> float:
    """Poll until it has happened; says so every five seconds. Returns how long it took."""
    began = shown = time.monotonic()
    while not happened():
        now = time.monotonic()
        if now - began > seconds:
            raise DemoFailed(f"{what}: not within {seconds:.0f} s")
        if now - shown > 5:
            print(f"   … waiting for {what} ({now - began:.0f} s)", flush=True)
            shown = now
        time.sleep(0.2)
    took = time.monotonic() - began
    print(f"   {what}: after {took:.1f} s", flush=True)
    return took


class Fabric:
    """The lab, and kubectl through any of its machines."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubectl_path = shutil.which("kubectl") or ""
        if not self.kubectl_path:
            raise DemoFailed("kubectl is missing: apt-get install kubernetes-client")

    def up(self) -> None:
        machineplane("lab", "up", "--machines", "3", "--name", LAB)
        for machine in ("m0", "m1", "m2"):
            text = machineplane("lab", "kubeconfig", machine, "--name", LAB, quiet=True)
            (self.directory / machine).write_text(text)

    def kubectl(self, machine: str, *arguments: str, quiet: bool = False, stdin: str | None = None) -> str:
        if not quiet:
            print(f"   (through {machine})", flush=True)
        environment = {"KUBECONFIG": str(self.directory / machine), "HOME": str(self.directory)}
        return run("kubectl", *arguments, quiet=quiet, env=environment, stdin=stdin)

    def running(self, machine: str) -> dict[str, str]:
        """Ready pods that are not being deleted, with their machines, as one machine tells them."""
        pods = json.loads(self.kubectl(machine, "get", "pods", "-o", "json", quiet=True))["items"]
        return {
            pod["metadata"]["name"]: pod["spec"].get("nodeName", "")
            for pod in pods
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        }


def show(fabric: Fabric, image: Path) -> None:
    """The main job from end to end."""
    say("an image for the pods, made of this system's busybox, and imported into every machine")
    run(sys.executable, "-m", "machineplane.runtime.images.make", "busybox", str(image), quiet=True)
    machineplane("lab", "image", "import", str(image), "--name", LAB)

    say("one `kubectl apply`, through m0: a Deployment of three replicas")
    manifest = fabric.directory / "hello.json"
    manifest.write_text(json.dumps(DEPLOYMENT, indent=2))
    fabric.kubectl("m0", "apply", "-f", str(manifest))
    wait_for("three replicas run", lambda: len(fabric.running("m1")) == 3, 60)

    say("where they run, as seen from another machine")
    fabric.kubectl("m1", "get", "nodes")
    fabric.kubectl("m1", "get", "deployments,pods", "-o", "wide")
    before = fabric.running("m1")
    if len(set(before.values())) != 3:
        raise DemoFailed(f"the replicas are not on three machines: {before}")
    fabric.kubectl("m1", "logs", next(pod for pod, node in before.items() if node == "m2"))

    say("m2 dies: daemon and pods at once, as when power fails")
    machineplane("lab", "kill", "m2", "--name", LAB)
    wait_for("its replica runs elsewhere", lambda: _healed(fabric, before), 60)
    fabric.kubectl("m1", "get", "pods", "-o", "wide")

    say("the Deployment is deleted, through m1")
    fabric.kubectl("m1", "delete", "deployment", "hello")
    wait_for("nothing is left", lambda: _empty(fabric), 60)
    fabric.kubectl("m0", "get", "deployments,replicasets,pods")


def _healed(fabric: Fabric, before: Mapping[str, str]) -> bool:
    now = fabric.running("m1")
    return len(now) == 3 and "m2" not in now.values() and now.keys() != before.keys()


def _empty(fabric: Fabric) -> bool:
    found = fabric.kubectl("m0", "get", "deployments,replicasets,pods", "-o", "json", quiet=True)
    return not json.loads(found)["items"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the fabric up and print how to use it")
    keep = parser.parse_args().keep
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="magik-demo-") as scratch:
        try:
            fabric = Fabric(Path(scratch))
            say(
                "a fabric of three machines on this computer, each with its own network, mounts, processes and daemon"
            )
            fabric.up()
            show(fabric, Path(scratch) / "busybox.tar")
        except DemoFailed as error:
            print(f"demo: failed: {error}", file=sys.stderr)
            if not keep:
                subprocess.run([BIN / "machineplane", "lab", "down", "--name", LAB])
            return 1
        if not keep:
            say("the fabric is taken down")
            machineplane("lab", "down", "--name", LAB)
    if keep:
        print(HOW_TO_USE.format(program=BIN / "machineplane", lab=LAB))
    print(f"\ndemo: ok ({time.monotonic() - began:.0f} s)")
    return 0


HOW_TO_USE = """
The fabric is up. To use it:
    {program} lab ls --name {lab}
    {program} lab start m2 --name {lab}
    {program} lab kubeconfig m0 --name {lab} > kubeconfig && export KUBECONFIG=$PWD/kubeconfig
    kubectl get nodes
and to take it down:
    {program} lab down --name {lab}"""


if __name__ == "__main__":
    sys.exit(main())
