"""From `apply` to three pods Running on three machines: how long, and how much of it is the auction.

Root; takes about a minute; uses a lab of its own. The last line is one JSON object. Absolute times mean little on a shared
machine: `ratios` are of the same run. `--rounds N` (20).
"""

import argparse
import base64
import json
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

BIN = Path(sys.executable).parent
LAB = "bench"
IMAGE = "localhost/busybox:latest"


def lab(*arguments: str) -> str:
    return subprocess.run(
        [BIN / "machineplane", "lab", *arguments], check=True, text=True, stdout=subprocess.PIPE
    ).stdout


class Api:
    """One machine's API, by its kubeconfig."""

    def __init__(self, machine: str) -> None:
        config = yaml.safe_load(lab("kubeconfig", machine, "--name", LAB))
        cluster = config["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.context = ssl.create_default_context(cadata=authority)
        self.server = cluster["server"]
        self.token = config["users"][0]["user"]["token"]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, context=self.context, timeout=30) as answer:
            return json.load(answer)


DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
PODS = "/api/v1/namespaces/default/pods"


def deployment(name: str) -> dict[str, Any]:
    container = {"name": "c", "image": IMAGE, "command": ["sleep", "100000"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
            },
        },
    }


def one_round(api: Api, number: int) -> float:
    """Seconds from the request to the moment when three Running pods are listed; the workload is deleted again."""
    name = f"round-{number}"
    began = time.perf_counter()
    api.call("POST", DEPLOYMENTS, deployment(name))
    while sum(p["status"].get("phase") == "Running" for p in api.call("GET", PODS)["items"]) < 3:
        time.sleep(0.01)
    took = time.perf_counter() - began
    api.call("DELETE", f"{DEPLOYMENTS}/{name}")
    while api.call("GET", PODS)["items"]:
        time.sleep(0.05)
    return took


def auctions() -> list[dict[str, Any]]:
    """What m0's daemon logged of its auctions."""
    lines = Path("/var/lib/magik-lab", LAB, "m0", "daemon.log").read_text().splitlines()
    said = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in said if line.get("event") == "auction"]


def memory(pid: int) -> dict[str, float]:
    """Resident and proportional set of a process, in MB."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Rss:", "Pss:")):
            found[line[:3].lower()] = round(int(line.split()[1]) / 1024, 1)
    return found


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    up = json.loads(lab("up", "--machines", "3", "--name", LAB, "--json"))
    try:
        with tempfile.TemporaryDirectory() as scratch:
            image = str(Path(scratch, "busybox.tar"))
            subprocess.run(
                [sys.executable, "-m", "machineplane.runtime.images.make", "busybox", image],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            subprocess.run(
                [BIN / "machineplane", "lab", "image", "import", image, "--name", LAB],
                check=True,
                stdout=subprocess.DEVNULL,
            )
        api = Api("m0")
        while len(api.call("GET", "/api/v1/nodes")["items"]) < 3:
            time.sleep(0.1)
        pid = up["machines"][0]["pid"]
        idle = {"daemon": memory(pid), "helper": [memory(c) for c in children(pid)]}
        times = sorted(one_round(api, number) for number in range(rounds))
        award = [a["tender_to_award_ms"] / 1000 for a in auctions()]
        print(json.dumps(report(times, award, idle)))
    finally:
        lab("down", "--name", LAB)


def report(times: list[float], award: list[float], idle: dict[str, Any]) -> dict[str, Any]:
    p50 = statistics.median(times)
    return {
        "name": "apply",
        "ratios": {"tender_to_award_share_of_p50": round(statistics.median(award) / p50, 3)},
        "figures": {
            "rounds": len(times),
            "apply_to_running_s": {"p50": round(p50, 3), "p95": round(times[int(len(times) * 0.95) - 1], 3)},
            "tender_to_award_s": {"p50": round(statistics.median(award), 4), "max": round(max(award), 4)},
            "idle_memory_mb": idle,
        },
    }


if __name__ == "__main__":
    main()
