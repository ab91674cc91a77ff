"""Who a container runs as, and with which capabilities."""

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from machineplane.runtime.errors import PodSpecError
from magik_proto.capabilities import CAPABILITIES

_MAX_ACCOUNTS = 1024 * 1024
"""Bytes read of an image's /etc/passwd and /etc/group; accounts behind are not found."""

_MAX_ID = 2**31 - 1

# What Docker grants by default, from its documentation.
DEFAULT_CAPABILITIES = (
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
)


def image_file(layers: Sequence[Path], path: str) -> str:
    """The text of a file of an image's layers (lowest first), as the topmost layer has it; empty if there is none.

    No symbolic link is followed: a hostile image could point one at the machine's own file.
    """
    for layer in reversed(layers):
        current = layer
        for part in path.strip("/").split("/"):
            current = current / part
            if current.is_symlink() or not current.exists():
                break
        else:
            if not stat.S_ISREG(current.lstat().st_mode):
                return ""  # an overlay whiteout: removed by this layer
            fd = os.open(current, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(fd, "rb") as file:
                return file.read(_MAX_ACCOUNTS).decode(errors="replace")
    return ""


def _rows(text: str) -> list[list[str]]:
    return [line.split(":") for line in text.splitlines() if line and not line.startswith("#")]


def _number(text: str) -> int | None:
    return (
        int(text)
        if text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= _MAX_ID
        else None
    )


def _account(name: str, layers: Sequence[Path]) -> tuple[int, int]:
    number = _number(name)
    for row in _rows(image_file(layers, "etc/passwd")):
        if len(row) >= 4 and (row[0] == name or (number is not None and row[2] == name)):
            uid, gid = _number(row[2]), _number(row[3])
            if uid is not None and gid is not None:
                return uid, gid
    if number is None:
        raise PodSpecError(f"the image's user {name!r} is not in its /etc/passwd")
    return number, 0


def _group(name: str, layers: Sequence[Path]) -> int:
    number = _number(name)
    if number is not None:
        return number
    for row in _rows(image_file(layers, "etc/group")):
        if len(row) >= 3 and row[0] == name and (gid := _number(row[2])) is not None:
            return gid
    raise PodSpecError(f"the image's group {name!r} is not in its /etc/group")


def _member_of(uid: int, layers: Sequence[Path]) -> list[int]:
    names = {
        row[0] for row in _rows(image_file(layers, "etc/passwd")) if len(row) >= 4 and row[2] == str(uid)
    }
    groups = _rows(image_file(layers, "etc/group"))
    found = [_number(row[2]) for row in groups if len(row) >= 4 and names & set(row[3].split(","))]
    return [gid for gid in found if gid is not None]


def process_user(
    security: Mapping[str, Any], pod_security: Mapping[str, Any], image_user: str, layers: Sequence[Path]
) -> dict[str, Any]:
    """The OCI ``process.user``: the container's ``runAsUser``/``runAsGroup``, else the pod's, else the image's user.

    Raises:
        PodSpecError: an unknown name, an id out of range, or root where ``runAsNonRoot`` forbids it.
    """
    merged = {**pod_security, **security}
    user_name, _, group_name = image_user.partition(":")
    uid, gid = _account(user_name, layers) if user_name else (0, 0)
    if group_name:
        gid = _group(group_name, layers)
    if merged.get("runAsUser") is not None:
        uid, gid = _account(str(merged["runAsUser"]), layers)
    if merged.get("runAsGroup") is not None:
        gid = _group(str(merged["runAsGroup"]), layers)
    if merged.get("runAsNonRoot") and uid == 0:
        raise PodSpecError("runAsNonRoot is set, but the container would run as root; set runAsUser")
    strict = pod_security.get("supplementalGroupsPolicy") == "Strict"
    extra = [*(() if strict else _member_of(uid, layers)), *(pod_security.get("supplementalGroups") or [])]
    extra += [pod_security["fsGroup"]] if pod_security.get("fsGroup") is not None else []
    return {"uid": uid, "gid": gid, "additionalGids": sorted({int(value) for value in extra} - {gid})}


def _named(names: Iterable[str], grantable: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for name in names:
        short = str(name).upper().removeprefix("CAP_")
        if short == "ALL":
            found.update(grantable)
        elif short in CAPABILITIES:
            found.add(short)
        else:
            raise PodSpecError(f"securityContext.capabilities: {name!r} is not a capability")
    return found


def grantable_capabilities() -> list[str]:
    """The capabilities that this process can pass on: its bounding set (capabilities(7))."""
    text = Path("/proc/self/status").read_text()
    mask = next((int(line.split()[1], 16) for line in text.splitlines() if line.startswith("CapBnd:")), 0)
    return [name for number, name in enumerate(CAPABILITIES) if mask >> number & 1]


def capabilities(security: Mapping[str, Any], *, devices_filtered: bool) -> dict[str, list[str]]:
    """The OCI ``process.capabilities``: Docker's default set, plus ``add``, minus ``drop``.

    Where no control group filters devices, MKNOD is not in the default set: it would open the machine's disks.
    """
    wanted = security.get("capabilities") or {}
    grantable = grantable_capabilities()
    granted = set(grantable if security.get("privileged") else DEFAULT_CAPABILITIES)
    if not devices_filtered:
        granted -= {"MKNOD"}
    dropped = {str(name).upper() for name in wanted.get("drop") or []}
    granted = set() if "ALL" in dropped else granted - _named(wanted.get("drop") or [], CAPABILITIES)
    granted |= _named(wanted.get("add") or [], grantable)
    names = [f"CAP_{name}" for name in CAPABILITIES if name in granted]
    return {"bounding": names, "effective": names, "permitted": names}
