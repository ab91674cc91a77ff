import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "images"))

from debian_registry import Registry
from lab_support import Lab, running_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three machines that are all alive when a test begins; a test that kills one starts it again."""
    yield from running_lab("itest", 3, tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def lone_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    yield from running_lab("itest1", 1, tmp_path_factory.mktemp("lone"))


@pytest.fixture(scope="module")
def hidden_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """m0 and m4 can be reached; m1 and m2 are behind cone NATs, m3 is behind a symmetric one; each behind its own."""
    options = ("--nat", "m1,m2", "--nat-symmetric", "m3")
    yield from running_lab("itestn", 5, tmp_path_factory.mktemp("hidden"), *options)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three machines that talk to any registry in clear text, for the one of the tests is on one of them."""
    folder = tmp_path_factory.mktemp("site")
    settings = folder / "registries.yaml"
    settings.write_text(yaml.safe_dump({"registries": {"*": {"plain-http": True}}}))
    yield from running_lab("itestr", 3, folder, "--", "--registry-config", str(settings))


@pytest.fixture
def registry(site: Lab, tmp_path: Path) -> Iterator[Registry]:
    """On m0 of the site, for one user."""
    host = str(site.machines["m0"]["mesh"]).rpartition(":")[0]
    made = Registry(f"{host}:5000", tmp_path / "registry", "user", "s3cret")
    made.start("nsenter", f"--net=/proc/{site.machines['m0']['pid']}/ns/net")
    try:
        yield made
    finally:
        made.stop()
