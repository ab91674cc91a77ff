"""Make this Debian machine ready for the demo and the integration tests: packages, libcrun, kubectl.

Does nothing where all is there; `--packages` leaves libcrun out. Needs root for what is missing; says what it does and how
long that takes.
"""

import os
import shutil
import subprocess
import sys
import time
from ctypes.util import find_library
from pathlib import Path

# what is needed -> (how to see that it is there, Debian's package)
NEEDS = {
    "libnftables (pod network)": (lambda: find_library("nftables"), "libnftables1"),
    "a static busybox (test image)": (lambda: _static_busybox(), "busybox-static"),
    "curl": (lambda: shutil.which("curl"), "curl"),
    "ip": (lambda: shutil.which("ip"), "iproute2"),
    "ps": (lambda: shutil.which("ps"), "procps"),
    "a registry for images": (lambda: shutil.which("docker-registry"), "docker-registry"),
    "kubectl": (lambda: shutil.which("kubectl"), "kubernetes-client"),
}


def _static_busybox() -> bool:
    return Path("/usr/share/doc/busybox-static").exists() and Path("/bin/busybox").exists()


def main() -> int:
    if os.geteuid() != 0:
        print("setup: this needs root (namespaces, containers): run it with sudo", file=sys.stderr)
        return 1
    missing = {what: package for what, (there, package) in NEEDS.items() if not there()}
    if missing and (status := install(missing)):
        return status
    if "--packages" in sys.argv[1:]:
        return 0
    return subprocess.run([sys.executable, "-m", "machineplane.runtime.libcrun_build"]).returncode


def install(missing: dict[str, str]) -> int:
    """Install Debian's packages for what is missing."""
    if shutil.which("apt-get") is None:
        print(
            f"setup: missing {', '.join(missing)}, and this is no Debian: install them by hand",
            file=sys.stderr,
        )
        return 1
    print(f"setup: installing {', '.join(missing.values())} for {', '.join(missing)}", flush=True)
    began = time.monotonic()
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", *missing.values()]):
        if subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode:
            print(f"setup: `{' '.join(command)}` failed: see above", file=sys.stderr)
            return 1
    print(f"setup: packages installed in {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
