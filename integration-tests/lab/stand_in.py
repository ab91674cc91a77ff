"""A stand-in for the daemon in tests of the lab: says that it is ready, listens, and keeps a child as a pod."""

import argparse
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    always = "node-name state-dir run-dir rest-api-host mesh-host mesh-port pod-subnet invite cgroup-parent"
    for name in always.split():
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--bootstrap-peer", action="append", default=[])
    parser.add_argument("--die", help="end at once when this is the machine's name")
    parser.add_argument("--mute", action="store_true", help="never be ready")
    parser.add_argument("--pod", action="store_true", help="start a pod with a control group")
    return parser.parse_args()


def identity(state: Path) -> str:
    key = state / "key"
    if not key.exists():
        key.write_bytes(os.urandom(32))
    return hashlib.sha256(key.read_bytes()).hexdigest()


def start_pod(state: Path, parent: str) -> None:
    uid = "0f5b9ad4-3b6c-4c7e-9d5e-" + os.urandom(6).hex()
    (state / "pods" / uid).mkdir(parents=True)
    for root in map(Path, ("/sys/fs/cgroup/pids", "/sys/fs/cgroup")):
        if (root / "cgroup.procs").exists():
            group = root / parent / f"pod-{uid}"
            group.mkdir(parents=True, exist_ok=True)
            break
    pod = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    (group / "cgroup.procs").write_text(str(pod.pid))


def main() -> None:
    options = parse()
    if options.die == options.node_name:
        sys.exit("stand-in: told to die")
    assert Path(options.invite).read_text().startswith("magik-invite-1.")
    state, run = Path(options.state_dir), Path(options.run_dir)
    with (state / "starts").open("a") as file:
        file.write(json.dumps(sys.argv[1:]) + "\n")
    listener = socket.create_server((options.rest_api_host, 6443))
    if options.pod:
        start_pod(state, options.cgroup_parent)
    ready = {
        "pid": os.getpid(),
        "identity": identity(state),
        "mesh": f"{options.mesh_host}:{options.mesh_port}",
        "api": f"https://{options.rest_api_host}:6443",
        "node_name": options.node_name,
    }
    if not options.mute:
        temporary = run / ".ready"
        temporary.write_text(json.dumps(ready))
        temporary.rename(run / "machineplane.json")
    while True:
        connection, _ = listener.accept()
        connection.sendall(options.node_name.encode())
        connection.close()


if sys.argv[1:2] == ["kubeconfig"]:
    print(f"kubeconfig of {socket.gethostname()}: {' '.join(sys.argv[2:])}")
elif sys.argv[1:3] == ["image", "import"]:
    Path("/var/lib/magik/imported").write_text(
        Path(sys.argv[3]).read_text() + time.strftime("") + " ".join(sys.argv[4:])
    )
else:
    main()
