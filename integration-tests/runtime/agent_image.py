"""An image whose agent is a shell script: static busybox, and a helper that talks to Unix sockets."""

import subprocess
from pathlib import Path

from machineplane.runtime.images.make import make_image


def make_agent(folder: Path, ref: str, script: str) -> Path:
    """Write the archive of an image that runs ``script``; its path. Needs a C compiler."""
    talk, archive = folder / "talk", folder / "agent.tar"
    source = Path(__file__).with_name("talk.c")
    subprocess.run(["cc", "-static", "-Wall", "-Werror", "-o", talk, source], check=True)
    files: dict[str, tuple[bytes | Path, int]] = {
        "bin/busybox": (Path("/bin/busybox"), 0o755),
        "bin/talk": (talk, 0o755),
        "agent": (script.encode(), 0o755),
    }
    make_image(archive, ref=ref, files=files, entrypoint=["/agent"], env=["PATH=/bin"])
    return archive
