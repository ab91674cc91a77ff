import pytest

from machineplane.runtime.images.errors import BadReference
from machineplane.runtime.images.names import normalise, parse_reference

DIGEST = "sha256:" + "0f" * 32


@pytest.mark.parametrize(
    ("given", "complete"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("me/app", "docker.io/me/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/me/app", "docker.io/me/app:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost/magik/pause:latest", "localhost/magik/pause:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("box:5000/a/b_c:V1", "box:5000/a/b_c:V1"),
        ("ghcr.io/a/b--c/d.e", "ghcr.io/a/b--c/d.e:latest"),
        ("[fd00::1]:5000/x", "[fd00::1]:5000/x:latest"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"r.example/x:1@{DIGEST}", f"r.example/x:1@{DIGEST}"),
    ],
)
def test_references_are_completed_as_docker_does(given: str, complete: str) -> None:
    assert normalise(given) == complete
    assert normalise(complete) == complete


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "Busybox",
        "a//b",
        "/a",
        "a/",
        "a:",
        "a b",
        "a:" + "t" * 129,
        "a@sha256:12",
        "a@md5:" + "0" * 32,
        "a\n",
        "../etc",
        "x/../y",
        "-a",
        "a" * 256,
        "host:port/x",
        "ex_ample.com/x",
        "a:b:c",
        "\x1b[2J",
    ],
)
def test_what_is_no_reference_is_refused_in_one_printable_line(bad: str) -> None:
    with pytest.raises(BadReference) as caught:
        parse_reference(bad)
    said = str(caught.value)
    assert said.isprintable()
    assert "[HOST[:PORT]/]NAME" in said
