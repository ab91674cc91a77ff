"""Puts the baked image of pods' agents into the wheel, which is then one for this machine's architecture."""

import platform
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# As `platform.machine` has it, and OCI, in which the files are named.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class AgentImageHook(BuildHookInterface[Any]):
    """Without a baked image the wheel is one for every machine, and its daemon says that pods have no agents."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        machine = platform.machine()
        baked = Path("src/machineplane/runtime/images/baked")
        names = [f"workplane-{_ARCHITECTURES.get(machine, machine)}.{end}" for end in ("json", "tar.zst")]
        if version == "editable" or not all((Path(self.root) / baked / name).is_file() for name in names):
            return
        # git ignores products of the build, and so would hatchling.
        build_data["artifacts"] += [f"/{baked / name}" for name in names]
        # The image brings its own C library; the tag only names the architecture, in the widest form that PyPI takes.
        build_data["tag"] = f"py3-none-manylinux2014_{machine}"
        build_data["pure_python"] = False
