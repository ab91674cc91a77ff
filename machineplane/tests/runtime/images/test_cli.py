import io
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from machineplane.runtime.images.cli import image
from machineplane.runtime.images.make import main, make_image
from machineplane.runtime.images.store import ImageStore

pytestmark = pytest.mark.root


def run(state: Path, *words: str, stdin: bytes = b"") -> Any:
    return CliRunner().invoke(image, [*words, "--state-dir", str(state)], input=io.BytesIO(stdin))


def test_import_list_remove_prune(tmp_path: Path) -> None:
    archive, state = tmp_path / "a.tar", tmp_path / "state"
    make_image(archive, ref="localhost/a", files={"a": (b"x" * 9000, 0o644)})
    imported = run(state, "import", str(archive))
    assert imported.output.startswith("localhost/a:latest sha256:")
    assert run(state, "import", "-", "--ref", "busybox", stdin=archive.read_bytes()).exit_code == 0
    heads, *rows = run(state, "ls").output.splitlines()
    assert heads.split() == ["REFERENCE", "DIGEST", "ARCHITECTURE", "CREATED", "SIZE"]
    assert [row.split()[0] for row in rows] == ["docker.io/library/busybox:latest", "localhost/a:latest"]
    assert run(state, "rm", "busybox", "localhost/a").output == "removed busybox\nremoved localhost/a\n"
    freed = run(state, "prune").output
    assert freed.startswith("freed ") and freed != "freed 0 B\n"
    assert (state / "images").is_dir()
    assert len(run(state, "ls").output.splitlines()) == 1


def test_a_module_becomes_an_image(tmp_path: Path) -> None:
    module, state = tmp_path / "app.wasm", tmp_path / "state"
    module.write_bytes(b"\0asm\x01\0\0\0")
    nameless = run(state, "import", str(module))
    assert nameless.exit_code == 1 and "--ref" in nameless.output
    assert run(state, "import", str(module), "--ref", "localhost/app").exit_code == 0
    store = ImageStore(state / "images")
    found = store.resolve("localhost/app")
    assert found.config.entrypoint == ("/app.wasm",)
    assert (store.layer_paths(found)[0] / "app.wasm").read_bytes() == module.read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["import", "/no/such/file"], "Error: /no/such/file cannot be read (No such file or directory)"),
        (
            ["rm", "busybox"],
            "Error: image docker.io/library/busybox:latest is not on this machine: import it",
        ),
        (["import", "/dev/null", "--ref", "Bad"], "Error: image reference 'Bad' has upper-case letters"),
        (["pull", "Bad"], "Error: image reference 'Bad' has upper-case letters"),
        (["pull", "localhost/a"], "Error: image localhost/a:latest is not on this machine: import it"),
        (["pull", "127.0.0.1:1/a"], "Error: registry 127.0.0.1:1 cannot be reached at 127.0.0.1:1 ("),
        (
            ["pull", "a", "--registry-config", "/no/such.yaml"],
            "Error: registry configuration /no/such.yaml cannot be read (No such file or directory)",
        ),
        (
            ["export", "a", "-o", "/dev/null"],
            "Error: image docker.io/library/a:latest is not on this machine",
        ),
    ],
)
def test_errors_are_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    result = run(tmp_path, *words)
    assert result.exit_code == 1
    *before, last = result.output.splitlines()
    assert last.startswith(said)
    assert all("no daemon is asked" in line for line in before)


def test_make_busybox(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["busybox", str(tmp_path / "out.tar")])
    assert result.exit_code == 0, result.output
    assert run(tmp_path, "import", str(tmp_path / "out.tar")).output.startswith("localhost/busybox:latest")
