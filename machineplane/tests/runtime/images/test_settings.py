"""The registry configuration: what it means, and that what is wrong with it is told by file and key."""

import json
from pathlib import Path

import pytest

from machineplane.runtime.images.errors import BadSettings
from machineplane.runtime.images.registry.credentials import parse_docker_cfg, parse_docker_config
from machineplane.runtime.images.registry.endpoint import endpoints_of, open_client
from machineplane.runtime.images.registry.settings import (
    HostSettings,
    RegistrySettings,
    load_settings,
    read_settings,
)

YAML = """
registries:
  docker.io:
    mirrors: [https://mirror.test/hub, "http://10.0.0.1:5000"]
  "*":
    enabled: false
auths:
  https://index.docker.io/v1/: {auth: dTpw}
downloads: {at-once: 5}
garbage-collection: {high-percent: 90, low-percent: 70, maximum-age-hours: 2}
"""
TOML = """
[registries."docker.io"]
mirrors = ["https://mirror.test/hub", "http://10.0.0.1:5000"]
[registries."*"]
enabled = false
[auths."https://index.docker.io/v1/"]
auth = "dTpw"
[downloads]
at-once = 5
[garbage-collection]
high-percent = 90
low-percent = 70
maximum-age-hours = 2
"""


@pytest.mark.parametrize(("name", "text"), [("a.yaml", YAML), ("a.toml", TOML)])
def test_both_forms_say_the_same(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    settings = load_settings(path)
    urls = [str(e.url("library/a", "blobs/x")) for e in endpoints_of("docker.io", settings)]
    assert urls == [
        "https://mirror.test/v2/hub/library/a/blobs/x",
        "http://10.0.0.1:5000/v2/library/a/blobs/x",
        "https://registry-1.docker.io/v2/library/a/blobs/x",
    ]
    assert endpoints_of("other.test", settings) == []
    assert settings.at_once == 5
    assert (settings.garbage.high_percent, settings.garbage.low_percent) == (90, 70)
    assert settings.garbage.maximum_age_s == 7200
    (key,) = settings.keyring.find("docker.io", "library/a")
    assert (key.username, key.password) == ("u", "p")
    assert "p" not in repr(key).replace("password", "")


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.touch()
    assert load_settings(path) == RegistrySettings()


def test_names_of_localhost_have_no_registry_unless_listed() -> None:
    assert endpoints_of("localhost", RegistrySettings()) == []
    assert len(endpoints_of("localhost:5000", RegistrySettings())) == 1
    assert len(endpoints_of("localhost", read_settings({"registries": {"localhost": {}}}, "x"))) == 1


WRONG = {
    "registrys: {}": "registrys is not known: there are registries, auths",
    "registries: {a.test: {insecure: true}}": "registries.a.test.insecure is not known",
    "registries: {a.test: {plain-http: 1}}": "registries.a.test.plain-http has to be true or false",
    "registries: {a.test: {ca: /no/such}}": "registries.a.test.ca has to be the path of a file",
    "registries: {a.test: {mirrors: x}}": "registries.a.test.mirrors has to be a list",
    "registries: {a.test: {mirrors: [mirror.test]}}": "registries.a.test.mirrors has 'mirror.test'",
    "registries: {a.test: {mirrors: ['ftp://x']}}": "registries.a.test.mirrors has 'ftp://x'",
    "registries: {a.test: {mirrors: ['https://u:p@x']}}": "registries.a.test.mirrors has",
    "registries: {a.test: {mirrors: ['https://x:99999']}}": "registries.a.test.mirrors has",
    "registries: {a.test: {plain-http: true, skip-verify: true}}": "registries.a.test.plain-http goes with",
    "registries: {a.test: {skip-verify: true, ca: /dev/null}}": "registries.a.test.ca has to be",
    "registries: [a]": "registries is not a table",
    "[1]": "is not a table",
    "downloads: {at-once: 0}": "downloads.at-once has to be a whole number from 1 to 64",
    "downloads: {at-once: true}": "downloads.at-once has to be",
    "garbage-collection: {high-percent: 70}": "garbage-collection.low-percent is 80",
    "garbage-collection: {minimum-age-seconds: 7200, maximum-age-hours: 1}": "maximum-age-hours has to be",
    "auths: {a.test: {}}": "auths.a.test has neither auth nor username",
    "auths: {a.test: {auth: '%%'}}": "auths.a.test.auth is not base64",
    "auths: {a.test: {auth: dQ==}}": "auths.a.test.auth is not base64 of NAME:PASSWORD",
    "auths: {a.test: {username: 1}}": "auths.a.test.username is not a text",
    'auths: {a.test: {username: u, password: "s3cret\\n"}}': "auths.a.test has control characters",
    "auths: [a]": "auths is not a table",
    "credsStore: desktop": "credsStore names a credential helper",
    "a: [": "is not YAML",
    "a: !!python/object:os.system {}": "is not YAML",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_by_file_and_key(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(BadSettings) as caught:
        load_settings(path)
    said = str(caught.value)
    assert said.startswith(f"registry configuration {path}")
    assert WRONG[text] in said
    assert said.isprintable() and "s3cret" not in said


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"cannot be read \(No such file"):
        load_settings(tmp_path / "none.yaml")


def test_an_authority_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("hello")
    with pytest.raises(BadSettings, match=r"ca\.pem is no file of certificates"):
        open_client(HostSettings(ca=tmp_path / "ca.pem"))


@pytest.mark.parametrize(
    ("key", "host", "path", "fits"),
    [
        ("a.test", "a.test", "x/y", True),
        ("https://a.test/v2/", "a.test", "x", True),
        ("a.test:5000", "a.test", "x", False),
        ("a.test:5000", "a.test:5000", "x", True),
        ("*.test", "a.test", "x", True),
        ("*.test", "b.a.test", "x", False),
        ("r*.a.test", "reg.a.test", "x", True),
        ("a.test/team", "a.test", "team/app", True),
        ("a.test/team", "a.test", "teams/app", False),
        ("registry-1.docker.io", "docker.io", "library/a", True),
        ("b.test", "a.test", "x", False),
    ],
)
def test_which_key_is_for_which_image(key: str, host: str, path: str, fits: bool) -> None:
    document = json.dumps({"auths": {key: {"username": "u", "password": "p"}}}).encode()
    assert bool(parse_docker_config(document, "secret").find(host, path)) is fits


def test_the_longest_key_is_tried_first() -> None:
    auths = {key: {"username": key, "password": "p"} for key in ("a.test", "a.test/team/app", "a.test/team")}
    found = parse_docker_cfg(json.dumps(auths).encode(), "secret").find("a.test", "team/app")
    assert [key.username for key in found] == ["a.test/team/app", "a.test/team", "a.test"]


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"[" * 100_000, b'{"auths": 7}'])
def test_secrets_that_are_none(data: bytes) -> None:
    for parse in (parse_docker_config, parse_docker_cfg):
        with pytest.raises(BadSettings):
            parse(data, "secret default/regcred")
