"""Compare the binding of libkrun with a header of it: `check_krun_header.py libkrun.h [libkrun.h …]`.

For a look at a new version. A call that a header lacks is told and is no error: versions differ in what they offer.
"""

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

from machineplane.runtime.krun.binding import NEEDED, ROOT_TAG, SIGNATURES

_WINDOWS = re.compile(r"#ifdef _WIN32.*?#else(.*?)#endif", re.DOTALL)
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
_PROTOTYPE = re.compile(r"\b(\w+)\s+(krun_\w+)\s*\(([^)]*)\)\s*;")
_NAME = re.compile(r"\w+(\[\])?$")

# What C says -> what the binding says. Arrays of texts and of bytes are pointers.
_TYPES: dict[str, Any] = {
    "uint8_t": ctypes.c_uint8,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "int": ctypes.c_int,
    "bool": ctypes.c_bool,
    "char*": ctypes.c_char_p,
    "char*[]": ctypes.POINTER(ctypes.c_char_p),
    "uint8_t*": ctypes.POINTER(ctypes.c_uint8),
}


def prototypes(header: str) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """For each call of a header its result's type in C, and its arguments' types as ctypes has them."""
    text = _COMMENT.sub(" ", _WINDOWS.sub(r"\1", header))
    return {name: (result, _arguments(given)) for result, name, given in _PROTOTYPE.findall(text)}


def _arguments(text: str) -> tuple[Any, ...]:
    given = " ".join(text.split())
    return () if given in {"", "void"} else tuple(_type(part) for part in given.split(","))


def _type(declaration: str) -> Any:
    """``const char *const argv[]`` → an array of texts; what is not known stands for itself, and is unlike anything."""
    array = "[]" if declaration.rstrip().endswith("[]") else ""
    bare = _NAME.sub("", declaration.replace("const", " ").strip()).replace(" ", "") + array
    return _TYPES.get(bare, bare)


def differences(header: str) -> list[str]:
    """What the binding says otherwise than the header."""
    found = prototypes(header)
    problems = [f"{name}: the header lacks it" for name in NEEDED if name not in found]
    for name in SIGNATURES.keys() & found.keys():
        result, arguments = found[name]
        if result != "int32_t" or arguments != SIGNATURES[name]:
            problems.append(f"{name}: the header has {result} {arguments}, the binding {SIGNATURES[name]}")
    tag = re.search(r'KRUN_FS_ROOT_TAG "([^"]*)"', header)
    if tag and tag[1] != ROOT_TAG:
        problems.append(f"KRUN_FS_ROOT_TAG is {tag[1]!r}, the binding has {ROOT_TAG!r}")
    return sorted(problems)


def main() -> int:
    status = 0
    for path in sys.argv[1:]:
        header = Path(path).read_text()
        problems = differences(header)
        absent = sorted(SIGNATURES.keys() - prototypes(header).keys())
        print(
            f"{path}: {len(SIGNATURES) - len(absent)} calls compared, absent: {', '.join(absent) or 'none'}"
        )
        print("\n".join(problems) or "the same")
        status |= bool(problems)
    return status


if __name__ == "__main__":
    sys.exit(main())
