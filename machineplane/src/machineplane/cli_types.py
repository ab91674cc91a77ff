"""Options and their types that several commands share."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from machineplane.runtime.krun.boot import BOOT_TIMEOUT_S
from machineplane.runtime.slices import DRIVERS
from magik_proto.credentials import ALL_ROLES
from magik_proto.errors import ProtocolError
from magik_proto.identity import BootstrapPeer, PeerId


class PeerType(click.ParamType[BootstrapPeer]):
    """``<identity_hex>@<ip:port>``"""

    name = "ID@IP:PORT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> BootstrapPeer:
        if isinstance(value, BootstrapPeer):
            return value
        try:
            return BootstrapPeer.parse(str(value))
        except ProtocolError as error:
            self.fail(str(error), param, ctx)


class IdType(click.ParamType[PeerId]):
    """64 hex digits"""

    name = "ID"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> PeerId:
        if isinstance(value, PeerId):
            return value
        try:
            return PeerId.parse(str(value))
        except ProtocolError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


STATE_DIR = Path("/var/lib/magik")
RUN_DIR = Path("/run/magik")
DIRECTORY = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)

# What the daemon and `check` take alike, but for the words of help.
LIBKRUN: Mapping[str, Any] = {
    "type": click.Path(path_type=Path, dir_okay=False, exists=True, resolve_path=True)
}
BOOT_TIMEOUT: Mapping[str, Any] = {
    "type": click.FloatRange(1, 600),
    "metavar": "SECONDS",
    "default": BOOT_TIMEOUT_S,
    "show_default": True,
}
CGROUP_DRIVER: Mapping[str, Any] = {
    "type": click.Choice(DRIVERS),
    "default": DRIVERS[0],
    "show_default": True,
}


class Duration(click.ParamType[int]):
    """``30m``, ``1h``, ``7d``: gives milliseconds."""

    name = "DURATION"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", str(value))
        if match is None:
            self.fail(f"{value!r}: expected a number with s, m, h or d, like 30m", param, ctx)
        return int(match[1]) * _UNITS[match[2]] * 1000


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class RolesType(click.ParamType[frozenset[str]]):
    """``run,submit``: roles of a member, at least one."""

    name = "ROLES"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> frozenset[str]:
        if isinstance(value, frozenset):
            return value
        roles = frozenset(role.strip() for role in str(value).split(","))
        if not roles <= ALL_ROLES:
            self.fail(f"{value!r}: expected one or more of {', '.join(sorted(ALL_ROLES))}", param, ctx)
        return roles


class LabelType(click.ParamType[tuple[str, str]]):
    """``key=value``"""

    name = "KEY=VALUE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return str(value[0]), str(value[1])
        key, equals, text = str(value).partition("=")
        if not equals or not key:
            self.fail(f"{value!r}: expected key=value", param, ctx)
        return key, text
