"""What of the packages and wheels goes into the image, and where."""

import fnmatch
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

PYTHON = "usr/bin/python3.11"
STDLIB = "usr/lib/python3.11"
SITE = "usr/local/lib/python3.11/dist-packages"  # where Debian's Python looks
PROGRAM = b"""#!/usr/bin/python3.11 -I
from workplane.lean import importing

with importing():
    from workplane.cli import main
main()
"""
INIT = f"""#!/usr/bin/python3.11 -ISB
import sys

sys.path.append("/{SITE}")
from workplane.guest.init import main

main()
""".encode()
PASSWD = b"root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"
GROUP = b"root:x:0:\nnogroup:x:65534:\n"
NSSWITCH = b"hosts: files dns\n"
EMPTY = ("app", "dev", "etc", "proc", "run", "sys")

# Of the standard library: what is for developers, terminals, mail and screens, and what needs libraries that are not here.
# Without _hashlib Python's own hashes are used, as fast on what an agent hashes, and libcrypto (4 MiB) stays unloaded.
_STDLIB_OUT = """
__phello__ antigravity.py idlelib lib2to3 pydoc.py pydoc_data test this.py tkinter turtle.py turtledemo unittest
doctest.py distutils ensurepip venv zipapp.py tabnanny.py pyclbr.py trace.py pdb.py cProfile.py profile.py pstats.py
config-3.11-* curses dbm sqlite3 wsgiref xmlrpc xml imaplib.py nntplib.py poplib.py smtplib.py telnetlib.py ftplib.py
mailbox.py cgi.py cgitb.py aifc.py sunau.py chunk.py wave.py sndhdr.py imghdr.py xdrlib.py uu.py crypt.py pipes.py
msilib ctypes/test ctypes/macholib plistlib.py zoneinfo sitecustomize.py _pydecimal.py _pyio.py rlcompleter.py
lib-dynload/_test* lib-dynload/xx* lib-dynload/_xx* lib-dynload/_ctypes_test* lib-dynload/_codecs_*
lib-dynload/_multibytecodec* lib-dynload/_hashlib* lib-dynload/readline* lib-dynload/_curses* lib-dynload/_dbm*
lib-dynload/_sqlite3* lib-dynload/_crypt* lib-dynload/nis* lib-dynload/ossaudiodev* lib-dynload/audioop*
lib-dynload/_zoneinfo* encodings/big5* lib-dynload/_lsprof* encodings/cp9[345]* encodings/euc_* encodings/gb*
encodings/hz.py encodings/iso2022* encodings/johab.py encodings/shift_*
""".split()  # noqa: SIM905 - a table
# Of wheels: sources of what is compiled, types, tests, and what needs a compiler, HTTP/3, asyncio, or the extra `native`.
_SITE_OUT = """
*.c *.h *.pyi *.pyx *.rs py.typed */tests/* */_tests/* trio/testing/* trio/_tools/* structlog/twisted.py cffi/*
pycparser/* cffi-* pycparser-* pylsqpack* aioquic/h0/* aioquic/h3/connection.py aioquic/asyncio/* cattrs/preconf/*
cbor2/tool.py *.dist-info/RECORD *.dist-info/WHEEL *.dist-info/INSTALLER *.dist-info/REQUESTED
*.dist-info/entry_points.txt *.dist-info/top_level.txt *.dist-info/sboms/* magik_proto/testing/*
magik_mesh/simulation/* magik_mesh/testing*.py trio_quic/testing.py trio_quic/native*.py
""".split()  # noqa: SIM905 - a table


def assemble(debian: Path, site: Path, root: Path) -> None:
    """Copy from the unpacked packages ``debian`` and wheels ``site`` what the image has into the new folder ``root``."""
    _copy(debian, root, [PYTHON])
    _copy(debian / STDLIB, root / STDLIB, _kept(debian / STDLIB, _STDLIB_OUT))
    _copy(site, root / SITE, _kept(site, _SITE_OUT))
    _copy(debian, root, _licences(debian))
    for path, data, mode in (
        ("usr/bin/workplane", PROGRAM, 0o755),
        ("usr/bin/workplane-init", INIT, 0o755),
        ("etc/passwd", PASSWD, 0o644),
        ("etc/group", GROUP, 0o644),
        ("etc/nsswitch.conf", NSSWITCH, 0o644),
    ):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
        (root / path).chmod(mode)
    for link in ("lib", "lib64"):
        (root / link).symlink_to(f"usr/{link}")
    _add_libraries(debian, root)
    for program in sorted(root.rglob("*")):
        if program.is_file() and not program.is_symlink() and program.read_bytes()[:4] == b"\x7fELF":
            shorten(program)


def interpreter(root: Path) -> list[str]:
    """The command that runs the image's own Python on this machine, with nothing of this machine."""
    loader = next(root.glob("usr/lib*/**/ld-linux-*.so.*"))
    return [str(loader), "--library-path", str(loader.parent), str(root / PYTHON)]


def _kept(folder: Path, out: Iterable[str]) -> Iterator[str]:
    patterns = [part for pattern in out for part in (pattern, f"{pattern}/*")]
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if (
            path.is_file()
            and "__pycache__" not in name
            and not any(fnmatch.fnmatchcase(name, p) for p in patterns)
        ):
            yield name


def _licences(debian: Path) -> Iterator[str]:
    return (
        str(path.relative_to(debian))
        for path in sorted(debian.glob("usr/share/doc/*/copyright"))
        if not path.is_symlink()
    )


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
        (target / name).chmod(0o755 if (source / name).stat().st_mode & 0o100 else 0o644)


def _add_libraries(debian: Path, root: Path) -> None:
    """The shared libraries that the image's programs and modules need, and no others; asked of the loader itself."""
    loader = next((debian / "lib").glob("*-linux-gnu/ld-linux-*.so.*"))
    folders = [debian / part / loader.parent.name for part in ("lib", "usr/lib")]
    place = f"usr/lib/{loader.parent.name}"
    needed = {loader.name}
    for program in (root / PYTHON, *sorted(root.rglob("*.so"))):
        needed |= _needed(loader, folders, program)
    for name in sorted(needed):
        _copy(next(f for f in folders if (f / name).exists()), root / place, [name])
        (root / place / name).chmod(0o755)
    for link in sorted({*(debian / "lib64").glob(loader.name), *(debian / "lib").glob(loader.name)}):
        (root / "usr" / link.parent.name).mkdir(exist_ok=True)
        (root / "usr" / link.parent.name / link.name).symlink_to(f"/{place}/{loader.name}")


def _needed(loader: Path, folders: Iterable[Path], program: Path) -> set[str]:
    """Names of libraries. Raises SystemExit where one is not in the packages."""
    command = [loader, "--library-path", ":".join(map(str, folders)), "--list", program]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    names = set()
    for line in listed.splitlines():
        name, arrow, path = (part.strip() for part in line.partition("=>"))
        if not arrow or "/" in name:  # not needed by name: the kernel's own, or the loader
            continue
        if not any(path.startswith(f"{folder}/") for folder in folders):
            raise SystemExit(f"workplane image: {program.name} needs {name}, which no package brings: {path}")
        names.add(name)
    return names


def shorten(path: Path) -> None:
    """Cut a 64-bit ELF file behind its last segment: symbols and sections are for debuggers, no loader reads them."""
    data = bytearray(path.read_bytes())
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    headers = (struct.unpack_from("<QQQQ", data, offset + number * size + 8) for number in range(count))
    end = max(offset + count * size, *(start + length for start, _, _, length in headers))
    struct.pack_into("<Q", data, 40, 0)  # e_shoff
    struct.pack_into("<HHH", data, 58, 0, 0, 0)  # e_shentsize, e_shnum, e_shstrndx
    path.write_bytes(data[:end])
