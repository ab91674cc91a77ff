"""Build the three wheels and install each alone in an empty environment.

`magik-proto` pulls in only its own needs, and `magik-machineplane` has the agent's image in it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

DISTRIBUTIONS = {"shared-proto": "magik_proto", "machineplane": "machineplane", "workplane": "workplane"}
PROTO_ONLY = {
    "attrs",
    "cattrs",
    "cbor2",
    "cffi",
    "magik-proto",
    "pip",
    "pycparser",
    "pynacl",
    "setuptools",
    "wheel",
}
PROTO_ONLY |= {"typing-extensions", "exceptiongroup"}
AGENT_IMAGE = """
from machineplane.runtime.images.agent import Baked
from machineplane.runtime.images.store import machine_architecture
baked = Baked.find(machine_architecture())
print(f"the agent's image in it: {baked.digest}, {baked.archive.stat().st_size // 1024} KiB")
"""


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch, "wheels")
        for folder in DISTRIBUTIONS:
            run(sys.executable, "-m", "build", "--wheel", "--outdir", wheels, folder)
        for folder, package in DISTRIBUTIONS.items():
            environment = Path(scratch, folder)
            run(sys.executable, "-m", "virtualenv", environment)
            name = "magik_proto" if folder == "shared-proto" else f"magik_{folder}"
            (wheel,) = wheels.glob(f"{name}-*.whl")
            run(environment / "bin" / "pip", "install", "--find-links", wheels, wheel)
            run(environment / "bin" / "python", "-c", f"import {package}")
            listed = run(environment / "bin" / "pip", "list", "--format=freeze").split()
            names = {line.partition("==")[0].partition(" @")[0].lower().replace("_", "-") for line in listed}
            if folder == "machineplane":
                print(run(environment / "bin" / "python", "-c", AGENT_IMAGE).strip())
            if folder == "shared-proto" and names - PROTO_ONLY:
                sys.exit(f"magik-proto pulls in {sorted(names - PROTO_ONLY)}")
            print(
                f"{wheel.name}: {wheel.stat().st_size // 1024} KiB, installs alone with {len(names)} packages"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
