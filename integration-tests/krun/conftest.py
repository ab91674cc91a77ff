"""Libraries with libkrun's ABI: a stand-in built here, as old and as new as are supported, and a real one from PyPI."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("stand_in.c")


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    def compiled(*flags: str) -> str:
        library = tmp_path_factory.mktemp("krun") / "libkrun.so.1"
        command = ["cc", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror", "-O1", *flags]
        subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True)
        return str(library)

    return compiled


@pytest.fixture(scope="session", params=["1.10", "1.19"])
def stand_in(request: pytest.FixtureRequest, build: Callable[..., str]) -> str:
    """The library's path; its guests are processes in namespaces."""
    return build("-DOLD") if request.param == "1.10" else build()


@pytest.fixture(scope="session")
def real() -> str:
    """A real libkrun (a fork of 1.17) with its kernel beside it."""
    package = importlib.util.find_spec("smol")
    assert package and package.submodule_search_locations, "the package smolmachines is not installed"
    return str(Path(package.submodule_search_locations[0]) / "libkrun.so")
