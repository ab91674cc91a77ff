"""Apt with a configuration of its own, derived from the machine's own configured Debian archive.

Reads both of apt's formats (one line per archive, and deb822 stanzas); see sources.list(5). Only the suites of the
running release and only the component ``main`` are taken, so that third parties' archives are never asked.
"""

import contextlib
import os
import pwd
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from attrs import frozen

_ONE_LINE = re.compile(
    r"deb(?:-src)?\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<parts>.+)"
)


@frozen
class Archive:
    """One archive and suite: ``options`` is what stands in brackets in apt's one-line format."""

    options: str
    uri: str
    suite: str

    def line(self, kind: str) -> str:
        """This archive's packages (``deb``) or sources (``deb-src``) as one line of sources.list(5)."""
        options = f"[{self.options}] " if self.options else ""
        return f"{kind} {options}{self.uri} {self.suite} main"


def parse_one_line(text: str) -> list[Archive]:
    """Archives with the component ``main`` of a ``*.list`` file."""
    found = []
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match and "main" in match["parts"].split():
            found.append(Archive((match["options"] or "").strip(), match["uri"], match["suite"]))
    return found


def _stanza_fields(stanza: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line.startswith("#"):
            continue
        if line[:1].isspace() and name:
            fields[name] += "\n" + line.strip()
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def parse_deb822(text: str) -> list[Archive]:
    """Archives with the component ``main`` of a ``*.sources`` file.

    A key written out inside ``Signed-By`` cannot stand on one line; apt then falls back on the machine's trusted keys.
    """
    found = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields = _stanza_fields(stanza)
        enabled = fields.get("enabled", "yes").lower() not in {"no", "false", "off", "0"}
        if not enabled or "main" not in fields.get("components", "").split():
            continue
        signed = fields.get("signed-by", "")
        options = f"signed-by={signed}" if signed.startswith("/") and "\n" not in signed else ""
        found += [
            Archive(options, uri, suite)
            for uri in fields.get("uris", "").split()
            for suite in fields.get("suites", "").split()
        ]
    return found


def release_codename(os_release: Path = Path("/etc/os-release")) -> str:
    """The running release's name, such as ``bookworm``; empty where the system does not say."""
    match = re.search(r"^VERSION_CODENAME=\"?([a-z]+)\"?$", os_release.read_text(), re.MULTILINE)
    return match.group(1) if match else ""


def configured_files() -> list[Path]:
    """The files in which this machine's apt looks for archives, in apt's order."""
    query = ["apt-config", "shell", "FILE", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"]
    shown = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    paths = {name: Path(value) for name, value in re.findall(r"^(FILE|PARTS)='(.*)'$", shown, re.MULTILINE)}
    parts = sorted(paths["PARTS"].iterdir()) if "PARTS" in paths and paths["PARTS"].is_dir() else []
    single = [paths["FILE"]] if "FILE" in paths and paths["FILE"].is_file() else []
    return single + [path for path in parts if path.suffix in {".list", ".sources"}]


def archive_lines(kind: str) -> list[str]:
    """Lines of ``kind`` for the running release's main suites; empty if the machine has no such archive."""
    codename = release_codename()
    suites = {codename, f"{codename}-updates", f"{codename}-security"}
    archives: list[Archive] = []
    for path in configured_files():
        parse = parse_deb822 if path.suffix == ".sources" else parse_one_line
        archives += parse(path.read_text(errors="replace"))
    return list(
        dict.fromkeys(archive.line(kind) for archive in archives if codename and archive.suite in suites)
    )


def private_apt(work: Path, lines: Sequence[str]) -> list[str]:
    """Options that give apt-get a configuration below ``work``, with the archives of ``lines`` and nothing installed.

    Lists and packages that it downloads stay there, verified by the archive's signature.
    """
    (work / "sources.list").write_text("".join(f"{line}\n" for line in lines))
    (work / "status").touch()
    for name in ("empty.d", "lists/partial", "cache/archives/partial", "download"):
        (work / name).mkdir(parents=True, exist_ok=True)
    _give_to_apt_user(work)
    settings = {
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": work / "empty.d",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": work / "empty.d",
        "Dir::State::lists": work / "lists",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def _give_to_apt_user(work: Path) -> None:
    """apt downloads as the user ``_apt``, who must be able to write below ``work``."""
    with contextlib.suppress(KeyError, PermissionError):
        uid = pwd.getpwnam("_apt").pw_uid
        work.chmod(0o711)
        for name in ("lists/partial", "cache/archives/partial", "download"):
            os.chown(work / name, uid, -1)
