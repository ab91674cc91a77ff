"""Build libcrun as a shared library from Debian's source package: ``python -m machineplane.runtime.libcrun_build``.

Debian ships the program ``crun`` and a static library only, so the shared library that the runtime loads is built here,
once, in a temporary directory. The machine's own apt configuration is read, never changed: sources are fetched with a
private one that is derived from it.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from machineplane.runtime import slices
from machineplane.runtime.crun.locate import (
    DEFAULT_PREFIX,
    LIBRARY_NAME,
    VERSION_NAME,
    Libcrun,
    find_libcrun,
    find_system_libcrun,
)
from machineplane.runtime.debsrc import archive_lines, private_apt

BUILD_NEEDS = (
    "dpkg-dev",
    "gcc",
    "make",
    "autoconf",
    "automake",
    "libtool",
    "pkg-config",
    "go-md2man",
    "python3",
    "libcap-dev",
    "libseccomp-dev",
    "libyajl-dev",
    "libc6-dev",
)
SYSTEMD_NEED = "libsystemd-dev"
CONFIGURE = ("./configure", "--enable-shared", "--disable-static")


class BuildError(Exception):
    """libcrun could not be built: what failed, and what to do."""


def say(line: str) -> None:
    """One plain line of progress, at once (a build takes half a minute)."""
    print(line, flush=True)


def run(command: Sequence[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command quietly; its output is shown only when it fails."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", **(env or {})}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise BuildError(f"the program {command[0]} is missing; install it and run this again") from error
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise BuildError(f"`{' '.join(command)}` ended with status {done.returncode}:\n{tail}")


def missing_packages(needs: Sequence[str] = BUILD_NEEDS) -> list[str]:
    """The Debian packages of ``needs`` that dpkg does not report as installed."""
    missing = []
    for package in needs:
        query = ["dpkg-query", "-W", "-f", "${db:Status-Status}", package]
        done = subprocess.run(query, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0 or "installed" not in done.stdout.split():
            missing.append(package)
    return missing


def with_systemd() -> bool:
    """Whether the library can be asked to have systemd make control groups: where systemd runs, or is built for."""
    return slices.runs() or not missing_packages((SYSTEMD_NEED,))


def install_needs() -> None:
    """Install what the build needs and the machine lacks, with apt-get (root only)."""
    missing = missing_packages((*BUILD_NEEDS, SYSTEMD_NEED) if with_systemd() else BUILD_NEEDS)
    if not missing:
        say("libcrun: the build needs are installed")
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0:
        raise BuildError(f"not root, and these packages are missing: run `{' '.join(command)}` as root first")
    say(f"libcrun: installing the build needs {', '.join(missing)}")
    try:
        run(command)
    except BuildError:
        say("libcrun: the package lists seem to be old; fetching them and trying once more")
        run(["apt-get", "update"])
        run(command)


def fetch_source(work: Path) -> Path:
    """Download and unpack Debian's source package of crun below ``work``; returns its folder."""
    lines = archive_lines("deb-src")
    if not lines:
        raise BuildError(
            "no Debian archive is configured in /etc/apt: add the lines of this release's `main` suite, "
            f"or put {LIBRARY_NAME} into the prefix yourself"
        )
    options = private_apt(work, lines)
    say("libcrun: fetching the list of Debian's source packages (about 10 MB)")
    run(["apt-get", *options, "update"])
    say("libcrun: fetching and unpacking the source of crun (about 3 MB)")
    run(["apt-get", *options, "source", "crun"], cwd=work / "download")
    folders = [path for path in sorted((work / "download").iterdir()) if path.is_dir()]
    if not folders:
        raise BuildError("`apt-get source crun` unpacked nothing: dpkg-dev may be broken")
    return folders[0]


def source_version(source: Path) -> str:
    """The upstream version of an unpacked crun source, such as ``1.8.1``."""
    with contextlib.suppress(OSError):
        return (source / ".tarball-version").read_text().strip()
    match = re.fullmatch(r"crun-([0-9.]+)", source.name)
    if match is None:
        raise BuildError(f"cannot tell the version of the source in {source}")
    return match.group(1)


def compile_library(source: Path) -> Path:
    """Configure and make libcrun in ``source``; returns the shared object."""
    if not (source / "configure").exists():
        say("libcrun: generating the configure script")
        run(["./autogen.sh"], cwd=source)
    say("libcrun: configuring")
    run(CONFIGURE if with_systemd() else (*CONFIGURE, "--disable-systemd"), cwd=source)
    say("libcrun: compiling (about half a minute)")
    run(["make", f"-j{os.cpu_count() or 1}", "libcrun.la"], cwd=source)
    built = source / ".libs" / LIBRARY_NAME
    if not built.exists():
        raise BuildError(f"make ended well but left no {built.name}; is this source older than 1.0?")
    return built


def install(built: Path, version: str, prefix: Path) -> Libcrun:
    """Put the library and its version file under ``prefix``, each by an atomic rename, the version last."""
    prefix.mkdir(parents=True, exist_ok=True)
    fresh = prefix / f".{LIBRARY_NAME}.new"
    shutil.copyfile(built.resolve(), fresh)
    fresh.chmod(0o755)
    with contextlib.suppress(BuildError):  # a library with its debug information works as well
        run(["strip", "--strip-unneeded", str(fresh)])
    mark = prefix / f".{VERSION_NAME}.new"
    mark.write_text(f"{version}\n")
    fresh.replace(prefix / LIBRARY_NAME)
    mark.replace(prefix / VERSION_NAME)
    return Libcrun(path=prefix / LIBRARY_NAME, version=version)


@contextlib.contextmanager
def _workspace() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="magik-libcrun-") as name:
        yield Path(name)


def build(prefix: Path) -> Libcrun:
    """Fetch, compile and install libcrun under ``prefix``.

    Raises:
        BuildError: with the step that failed and what to do.
    """
    install_needs()
    with _workspace() as work:
        source = fetch_source(work)
        version = source_version(source)
        return install(compile_library(source), version, prefix)


def ensure(prefix: Path = DEFAULT_PREFIX, *, force: bool = False) -> Libcrun:
    """The library under ``prefix``, else the system's, else one built now. Idempotent."""
    if not force:
        found = find_libcrun(prefix) or find_system_libcrun()
        if found is not None:
            say(f"libcrun: using {found.path} (version {found.version})")
            return found
    say(f"libcrun: no shared library found; building one into {prefix} (about a minute)")
    built = build(prefix)
    say(f"libcrun: installed {built.path} (version {built.version})")
    return built


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m machineplane.runtime.libcrun_build", description=__doc__)
    parser.add_argument(
        "--prefix", type=Path, default=DEFAULT_PREFIX, help="where libcrun.so goes (%(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="build even if a library is there")
    options = parser.parse_args(arguments)
    try:
        ensure(options.prefix, force=options.force)
    except (BuildError, OSError) as error:
        print(f"libcrun: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
